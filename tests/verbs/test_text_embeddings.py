"""`text-embeddings`: CLIP's text model in small, and what a teacher makes of the file."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colours import NETWORK, colours, options
from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.models.text import TextEmbeddings
from vitdistill.models.weights.text import read_text_embeddings, write_text_embeddings
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.text_embeddings import _lines, text_embeddings

transformers = pytest.importorskip("transformers")

WIDTH = 12
WORDS = ["a", "photo", "of", "drawing", ".", "red", "green", "blue", "car", "tench", "goldfish"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def save_tokenizer(folder: Path) -> Any:
    """Whole words as tokens, between CLIP's two special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def config(**more: Any) -> Any:
    sizes = {"vocab_size": 4 + len(WORDS), "max_position_embeddings": 10, "projection_dim": WIDTH}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.CLIPTextConfig(**SIZES, **sizes, **special, **more)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text model of random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def listed(folder: Path, *lines: str, name: str = "names.txt") -> str:
    (folder / name).write_text("\n".join([*lines, ""]))
    return str(folder / name)


def expected(clip: Path, names: list[str], templates: list[str]) -> torch.Tensor:
    """Sentence by sentence with transformers alone."""
    model = transformers.CLIPTextModelWithProjection.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    rows = []
    for name in names:
        each = [
            model(tokenizer(template.format(name), return_tensors="pt")["input_ids"]).text_embeds[0]
            for template in templates
        ]
        rows.append(torch.stack([one / one.norm() for one in each]).mean(dim=0))
    return torch.stack([row / row.norm() for row in rows]).detach()


def test_embeddings_are_the_text_models(clip: Path, tmp_path: Path) -> None:
    names, out = ["red_car", "blue", "tench"], tmp_path / "text.safetensors"
    result = text_embeddings(str(clip), classes=listed(tmp_path, *names), out=str(out), batch_size=2, json=True)
    assert (result["classes"], result["channels"], result["scale"]) == (3, WIDTH, 100.0)
    content = load_file(out)
    assert set(content) == {"text_features", "logit_scale"}
    assert float(content["logit_scale"]) == pytest.approx(4.60517)
    torch.testing.assert_close(
        content["text_features"], expected(clip, ["red car", "blue", "tench"], ["a photo of a {}."])
    )
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == names
    found = read_text_embeddings(out)
    assert found.classes == tuple(names) and found.scale == pytest.approx(100)


def test_templates_are_averaged_at_unit_length(clip: Path, tmp_path: Path) -> None:
    templates = ["a photo of a {}.", "a drawing of a {}."]
    out = tmp_path / "text.safetensors"
    text_embeddings(
        str(clip),
        classes=listed(tmp_path, "red", "car"),
        template=listed(tmp_path, *templates, name="templates.txt"),
        out=str(out),
    )
    torch.testing.assert_close(load_file(out)["text_features"], expected(clip, ["red", "car"], templates))


def test_imagenet_is_named_by_number_and_called_by_word(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "text.safetensors"
    result = text_embeddings(str(clip), classes="imagenet-1k", out=str(out), template="a {}", json=True)
    found = read_text_embeddings(out)
    assert found.classes[:2] == ("n01440764", "n01443537") and len(found.classes) == result["classes"] == 1000
    torch.testing.assert_close(found.features[:2], expected(clip, ["tench", "goldfish"], ["a {}"]))
    assert found.order(["goldfish", "tench"], "two fish") == (1, 0)
    assert 0 < result["alike"] < 20  # two cranes, and others


def test_the_scale_of_a_whole_clip_is_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "projection_dim": WIDTH}
    both = transformers.CLIPConfig(
        text_config=config().to_dict(), vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=3.0
    )
    transformers.CLIPModel(both).save_pretrained(folder)
    save_tokenizer(folder)
    out = tmp_path / "text.safetensors"
    assert text_embeddings(str(folder), classes=listed(tmp_path, "red"), out=str(out))["scale"] == 20.0855
    torch.testing.assert_close(load_file(out)["text_features"], expected(folder, ["red"], ["a photo of a {}."]))


def test_long_sentences_are_cut_and_told(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = listed(tmp_path, "red", "red green blue car of a drawing")
    text_embeddings(str(clip), classes=names, out=str(tmp_path / "text.safetensors"))
    assert "1 of 2 sentences have more than 10 tokens and were cut" in caplog.text


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_scores_have_the_order_of_the_data_and_the_scale_of_the_file(images: torch.Tensor) -> None:
    features = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    net = tiny("clip", num_classes=WIDTH)
    teacher = Teacher(build(net), text_embeddings=TextEmbeddings(features, ("red", "green", "blue car"), scale=7.0))
    cosines = F.cosine_similarity(net(images)[:, None], features[None], dim=-1)
    torch.testing.assert_close(teacher(images).prediction, 7 * cosines)
    teacher.match_classes(["Blue_Car", "red"], "cars")
    torch.testing.assert_close(teacher(images).prediction, 7 * cosines[:, [2, 0]])
    assert teacher.num_classes == 2
    with pytest.raises(UserError, match="Each class of cars must have a text embedding; got none for 'pink' among 3"):
        teacher.match_classes(["pink", "red"], "cars")


@pytest.mark.slow
def test_a_run_is_taught_by_names(clip: Path, tmp_path: Path) -> None:
    """The whole way: the data's names, the file, and a CLIP teacher with a projection of the same width."""
    data = colours(tmp_path / "data", {name: name for name in ("blue", "green", "red")})
    file = tmp_path / "text.safetensors"
    text_embeddings(str(clip), data=str(data), out=str(file))
    asked = options(data, tmp_path / "run", epochs=1)
    sizes = {"student": "vit_tiny_patch16_224", "student_args": NETWORK, "drop_path": 0.0, "criterion": "student"}
    teacher = tiny("clip", num_classes=WIDTH, img_size=16)
    info = maskedkd(teacher=teacher, teacher_text=str(file), keep=2, **sizes, **asked)
    assert info["status"] == "finished" and "top1" in info["accuracy"]
    other = tmp_path / "other.safetensors"
    text_embeddings(str(clip), classes=listed(tmp_path, "red", "green", "tench"), out=str(other))
    asked = options(data, tmp_path / "refused", epochs=1)
    with pytest.raises(UserError, match="must have a text embedding; got none for 'blue' among 3.*text-embeddings"):
        maskedkd(teacher=teacher, teacher_text=str(other), **sizes, **asked)
    with pytest.raises(UserError, match="must have the 8 channels of .*; got 12. Take both from one CLIP model"):
        maskedkd(teacher=tiny("clip", num_classes=8, img_size=16), teacher_text=str(file), **sizes, **asked)


def test_a_file_with_one_tensor_is_taken_in_the_datas_order(tmp_path: Path) -> None:
    save_file({"text": torch.eye(3)}, tmp_path / "old.safetensors")
    torch.save(torch.eye(3), tmp_path / "old.pt")
    found = read_text_embeddings(tmp_path / "old.safetensors")
    assert torch.equal(found.features, torch.eye(3)) and (found.classes, found.scale) == ((), 100.0)
    assert found.order(["c", "b", "a"], "letters") is None
    with pytest.raises(UserError, match="one for each class of the data; got 3 for the 2 of letters"):
        found.order(["a", "b"], "letters")


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        (
            {"a": torch.eye(2), "b": torch.eye(2)},
            None,
            "must hold one tensor of shape .*Make one with `vitdistill text-",
        ),
        ({"text_features": torch.eye(2), "logit_scale": torch.tensor(100.0)}, None, "logarithm.*4.6052 for 100; got"),
        ({"text_features": torch.zeros(2, 2)}, None, "must be finite and not 0"),
        ({"text_features": torch.eye(2)}, {"classes": '["a"]'}, "must name each of its 2 embeddings; got 1 names"),
        ({"text_features": torch.eye(2)}, {"classes": "a, b"}, "must be a JSON list of names"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, words: str
) -> None:
    save_file(tensors, tmp_path / "text.safetensors", metadata)
    with pytest.raises(UserError, match=words) as error:
        read_text_embeddings(tmp_path / "text.safetensors")
    assert "\n" not in str(error.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    text = TextEmbeddings(torch.eye(2), ("ä", "b c"), 14.3)
    write_text_embeddings(text, tmp_path / "text.safetensors")
    found = read_text_embeddings(tmp_path / "text.safetensors")
    assert torch.equal(found.features, text.features) and found.classes == text.classes
    assert found.scale == pytest.approx(14.3)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template": "a photo"}, "A template must have one {} for the name of a class; got 'a photo'"),
        ({"template": "{} of {}"}, "must have one {}"),
        ({"template": "TEMPLATES"}, "A template of .*templates.txt must have one {} .*got 'a drawing'"),
        ({"classes": "TWICE"}, "Each class of .*twice.txt must be named once; got 'red' twice"),
        ({"classes": "EMPTY"}, "At least one class must be named"),
        ({"classes": "SYNSET"}, "WordNet number must be one of ImageNet's; got n99999999"),
        ({"classes": "none.txt"}, "--classes must be a text file with one name a line, or imagenet-1k; got none.txt"),
        ({"classes": None}, "Give the names of classes with --data or with --classes; got neither"),
        ({"data": "digits"}, "with --data or with --classes; got both"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"model": "nowhere"}, r"folder that transformers saved; got nowhere \(no folder\)"),
    ],
)
def test_bad_input_is_one_line(clip: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    files = {
        "TEMPLATES": listed(tmp_path, "a {}", "a drawing", name="templates.txt"),
        "TWICE": listed(tmp_path, "red", "blue", "red", name="twice.txt"),
        "EMPTY": listed(tmp_path, "", name="empty.txt"),
        "SYNSET": listed(tmp_path, "n01440764", "n99999999", name="synset.txt"),
    }
    changes = {name: files.get(value, value) for name, value in changes.items()}
    out = tmp_path / "text.safetensors"
    values = {"model": str(clip), "classes": listed(tmp_path, "red"), "out": str(out), **changes}
    with pytest.raises(UserError, match=words) as error:
        text_embeddings(values.pop("model"), **values)
    assert "\n" not in str(error.value) and not out.exists()


def test_names_of_a_file_from_windows(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffred\r\nsky blue\r\n".encode())
    assert _lines(str(path)) == ["red", "sky blue"]


def test_folders_that_are_no_text_model_are_refused(clip: Path, tmp_path: Path) -> None:
    asked = {"classes": listed(tmp_path, "red"), "out": str(tmp_path / "text.safetensors")}
    bare, other, image = (tmp_path / name for name in ("bare", "other", "image"))
    model = transformers.CLIPTextModelWithProjection.from_pretrained(clip)
    model.save_pretrained(bare)
    with pytest.raises(UserError, match="must hold its tokenizer; got .*bare without tokenizer.json or vocab.json"):
        text_embeddings(str(bare), **asked)
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="must hold a CLIP text model of transformers; got .*model_type 'siglip'"):
        text_embeddings(str(other), **asked)
    # A text model without its projection: what transformers would fill in is random.
    transformers.CLIPTextModel(config()).save_pretrained(image)
    save_tokenizer(image)
    with pytest.raises(UserError, match="CLIP text model with its projection; got .*lacks 1 tensors of it .text_proj"):
        text_embeddings(str(image), **asked)


def test_without_transformers_the_extra_is_named(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"need the transformers library. pip install 'vitdistill\[hf\]'"):
        text_embeddings(str(clip), classes=listed(tmp_path, "red"), out=str(tmp_path / "text.safetensors"))


def test_transformers_logs_as_before(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    level = transformers.logging.get_verbosity()
    with caplog.at_level(logging.WARNING):
        text_embeddings(str(clip), classes=listed(tmp_path, "red"), out=str(tmp_path / "text.safetensors"))
    assert transformers.logging.get_verbosity() == level and not caplog.records
