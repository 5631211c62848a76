"""Exported students: read back by timm, transformers and onnxruntime, with classes and the very preprocessing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vitdistill
from kept_models import CLASSES, keep_run
from vitdistill.data.device import OnDevice
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.recipes import eval_transform
from vitdistill.errors import UserError
from vitdistill.exporting.card import METHODS
from vitdistill.models.build import build
from vitdistill.models.network import Network
from vitdistill.models.record import record_of, set_statistics
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.verbs.table import TRAINING

VIT = {"patch_size": 7, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 4}
SIZED = {"crop_pct": 0.8, "interpolation": "bilinear"}
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit of 28 pixels": ("vit_tiny_patch16_224", {**VIT, "img_size": 28}),
    "vit of 28 x 56 pixels": ("vit_tiny_patch16_224", {**VIT, "img_size": (28, 56)}),
    "mean-pooled, with other weights' statistics": (
        "vit_base_patch16_224.mae",
        {**VIT, "img_size": 28, "global_pool": "avg", "fc_norm": True},
    ),
    "cnn": ("test_resnet", {"num_classes": 4}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 28, "window_size": 7, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 4},
    ),
}


def network_of(name: str) -> Network:
    architecture, args = STUDENTS[name]
    network = build(architecture, args=args)
    set_statistics(network.net, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    return network


def run_of(name: str, folder: Path) -> Path:
    changes = {"size": [28, 28]} if name == "cnn" else {}
    return keep_run(network_of(name), folder, **SIZED, **changes)


def photographs() -> list[Image.Image]:
    pixels = np.random.default_rng(0)
    return [
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((28, 28), (60, 41), (35, 90), (13, 20))
    ]


def assert_the_transform_of_the_evaluation(net: torch.nn.Module, run: Path, processor: Any = None) -> None:
    """timm's transform for a network is ours: the same pixels, and the same inputs but for the last digits."""
    network, recorded = build(str(run)), json.loads((run / "student.json").read_text())["preprocessing"]
    config = timm.data.resolve_model_data_config(net)
    theirs = timm.data.create_transform(**config, is_training=False)
    pixels = timm.data.create_transform(**config, is_training=False, normalize=False)
    augment = Augment(recipe="none", crop_pct=recorded["crop_pct"], interpolation=recorded["interpolation"])
    ours = eval_transform(augment, network.input.size)
    on_device = OnDevice(augment, network.input.mean, network.input.std, 4)
    for image in photographs():
        made = ours(image)
        assert torch.equal(pixels(image), made)
        torch.testing.assert_close(theirs(image), on_device.eval(made[None])[0], rtol=1e-5, atol=1e-5)
        if processor is not None:
            assert torch.equal(processor(image)["pixel_values"][0], theirs(image))


@pytest.mark.parametrize("name", STUDENTS)
def test_safetensors_load_with_timm_alone_and_its_transform(name: str, tmp_path: Path) -> None:
    run = run_of(name, tmp_path / "run")
    result = vitdistill.export(str(run))
    net = eval(result["load"], {"timm": timm}).eval()
    network = build(str(run)).eval()
    images = torch.randn(2, *network.input.shape)
    with torch.no_grad():
        assert torch.equal(net(images), network.net(images))
    assert_the_transform_of_the_evaluation(net, run)
    assert_the_transform_of_the_evaluation(network.net, run)
    assert network.input.size == ((28, 56) if "56" in name else (28, 28))
    again = build(str(run / "export")).eval()  # student.json is beside the weights
    assert record_of(again.net).classes == CLASSES
    with torch.no_grad():
        assert torch.equal(again.net(images), network.net(images))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_hub_folder_loads_with_timm_and_with_transformers(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = run_of(name, tmp_path / "run")
    result = vitdistill.export(str(run), format="hub")
    folder, network = result["path"], build(str(run)).eval()
    assert result["max_difference"] == 0 and folder == str(run / "export" / "hub")
    images = torch.randn(2, *network.input.shape)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = network.net(images)
        assert torch.equal(net(images), expected) and torch.equal(model(images).logits, expected)
        assert torch.equal(build(folder).eval().net(images), expected)
    assert net.pretrained_cfg["label_names"] == CLASSES
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.config.label2id["red"] == 2
    assert_the_transform_of_the_evaluation(net, run, processor)
    rows = vitdistill.predict(folder, [str(saved(tmp_path))], workers=0, device="cpu")
    assert rows == vitdistill.predict(str(run), [str(tmp_path / "a.png")], workers=0, device="cpu")


def saved(folder: Path) -> Path:
    photographs()[1].save(folder / "a.png")
    return folder / "a.png"


def test_the_model_card_knows_what_every_training_is() -> None:
    assert set(TRAINING) <= METHODS.keys()


def test_the_model_card_says_what_the_run_recorded(tmp_path: Path) -> None:
    run = run_of("vit of 28 pixels", tmp_path / "colours-run")
    folder = Path(vitdistill.export(str(run), format="hub", out=str(tmp_path / "hub"))["path"])
    card = (folder / "README.md").read_text()
    header, _, text = card.removeprefix("---\n").partition("---\n")
    assert "library_name: timm" in header and "pipeline_tag: image-classification" in header
    for words in (
        *(
            "# colours-run",
            "MaskedKD",
            "`deit-teacher` (deit_small_patch16_224)",
            "colours: 100 samples",
            "top-1 % 87.50",
        ),
        *("2.3 GMACs an image, 49% less", "3 epochs, 2 hours on CPU", "dark, bright, red, green"),
        *("3 x 28 x 28 pixels; bilinear, crop_pct 0.8", "local-dir:PATH", "AutoModelForImageClassification"),
    ):
        assert words in text, words
    assert "/somewhere" not in card  # nothing of this machine
    vitdistill.export(str(run), format="hub", out=str(folder))  # an earlier export may be replaced
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"must be a new folder.*notes.txt"):
        vitdistill.export(str(run), format="hub", out=str(folder))


def test_an_encoder_without_classifier_goes_to_the_hub(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = build("vit_tiny_patch16_224", args={**VIT, "img_size": 28, "num_classes": 0})
    run = keep_run(network, tmp_path / "run", [])
    folder = vitdistill.export(str(run), format="hub")["path"]
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = build(str(run)).eval().net(images)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), expected)
        assert torch.equal(model(images).pooler_output, expected)
    assert "AutoModel.from_pretrained" in (Path(folder) / "README.md").read_text()


def test_what_a_hub_folder_cannot_say_is_refused(tmp_path: Path) -> None:
    network = network_of("vit of 28 pixels")
    set_heads(network, {-1: 4})  # type: ignore[arg-type]
    run = keep_run(network, tmp_path / "run")
    with pytest.raises(UserError, match=r"block 1 has 4.*--format safetensors"):
        vitdistill.export(str(run), format="hub")
    assert not (run / "export" / "hub").exists()
    namespace = {"timm": timm}
    exec(vitdistill.export(str(run))["load"], namespace)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(namespace["model"].eval()(images), build(str(run)).eval().net(images))  # type: ignore[attr-defined]


def test_video_students_load_with_the_printed_line(tmp_path: Path) -> None:
    args = {"frames": 4, "img_size": 32, "patch_size": 16, "num_classes": 4, "depth": 1}
    run = keep_run(build("moving_digits_vit_small", args=args), tmp_path / "run", frames=4, stride=2, sampling="dense")
    result = vitdistill.export(str(run))
    assert result["load"].startswith("vitdistill.build('video_vit_small_patch16_224@")
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        again = eval(result["load"], {"vitdistill": vitdistill}).eval()
        assert torch.equal(again.net(clips), build(str(run)).eval().net(clips))
    assert record_of(again.net).preprocessing["stride"] == 2
    with pytest.raises(UserError, match=r"no networks over clips.*--format safetensors"):
        vitdistill.export(str(run), format="hub")


def test_grey_students(tmp_path: Path) -> None:
    network = build("vit_tiny_patch16_224", args={**VIT, "img_size": 28, "in_chans": 1})
    if network.input.shape[0] != 1:
        pytest.skip("networks with one channel are not supported yet")
    set_statistics(network.net, [0.5], [0.25])
    run = keep_run(network, tmp_path / "run")
    folder = vitdistill.export(str(run), format="hub")["path"]
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert timm.data.resolve_model_data_config(net)["input_size"] == (1, 28, 28)
    assert vitdistill.export(str(run))["max_difference"] == 0


def test_onnx_says_classes_and_preprocessing(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = run_of("vit of 28 pixels", tmp_path / "run")
    result = vitdistill.export(str(run), format="onnx")
    entries = onnxruntime.InferenceSession(result["path"]).get_modelmeta().custom_metadata_map
    told = {key: json.loads(value) for key, value in entries.items()}
    assert told["classes"] == CLASSES and told["size"] == [28, 28] and told["channels"] == 3
    assert told["mean"] == [0.4, 0.5, 0.6] and told["std"] == [0.2, 0.25, 0.3]
    assert (told["crop_pct"], told["interpolation"], told["crop_mode"]) == (0.8, "bilinear", "center")
    assert json.loads((run / "export" / "student.json").read_text())["classes"] == CLASSES


def test_onnx_of_a_rotary_student(tmp_path: Path) -> None:
    """Its `forward` takes more than images."""
    pytest.importorskip("onnxruntime")
    network = build("vit_small_patch16_dinov3", args={**VIT, "embed_dim": 24, "img_size": 28})
    result = vitdistill.export(str(keep_run(network, tmp_path / "run")), format="onnx")
    assert result["max_difference"] < 1e-4


def test_what_onnx_has_no_operation_for_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = build("aimv2_large_patch14_224", args={**VIT, "img_size": 28})  # RMSNorm came with a later version
    run = keep_run(network, tmp_path / "run")
    with pytest.raises(UserError, match="must be made of operations that ONNX has.*--format safetensors"):
        vitdistill.export(str(run), format="onnx")
    assert not (run / "export" / "student.onnx").exists()


def test_a_run_from_before_it_was_recorded(tmp_path: Path) -> None:
    run = run_of("vit of 28 pixels", tmp_path / "run")
    record = json.loads((run / "student.json").read_text())
    del record["preprocessing"]
    (run / "student.json").write_text(json.dumps(record))
    result = vitdistill.export(str(run))
    written = json.loads((run / "export" / "student.json").read_text())["preprocessing"]
    assert written["size"] == [28, 28] and written["crop_pct"] == 0.875  # the recipe of its configuration
    assert timm.data.resolve_model_data_config(eval(result["load"], {"timm": timm}))["input_size"] == (3, 28, 28)


def test_records_lie_beside_the_weights_and_replace_no_other(tmp_path: Path) -> None:
    run, other = run_of("vit of 28 pixels", tmp_path / "run"), keep_run(network_of("cnn"), tmp_path / "other")
    folder = tmp_path / "exported"

    def architecture(path: Path) -> str:
        return json.loads(path.read_text())["architecture"]

    vitdistill.export(str(run), out=str(folder / "small.safetensors"))
    assert architecture(folder / "student.json").startswith("vit")
    vitdistill.export(str(other), out=str(folder / "cnn.onnx"), format="onnx")  # beside other weights
    assert (
        architecture(folder / "student.json").startswith("vit") and architecture(folder / "cnn.json") == "test_resnet"
    )
    before = (other / "student.json").read_text()
    vitdistill.export(str(run), out=str(other / "small.safetensors"))  # into another run
    assert (other / "student.json").read_text() == before and architecture(other / "small.json").startswith("vit")
    assert {"small.safetensors", "small.json"} <= set(json.loads((other / "run.json").read_text())["files"])
    with pytest.raises(UserError, match="student.json would be replaced, which no export wrote"):
        vitdistill.export(str(run), out=str(other / "student.onnx"), format="onnx")
    (tmp_path / "student.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="student.json would be replaced, which no export wrote"):
        vitdistill.export(str(run), out=str(tmp_path / "mine.safetensors"))


@pytest.mark.parametrize(("format", "out"), [("safetensors", "s.pt"), ("onnx", "."), ("onnx", "s.safetensors")])
def test_a_file_of_another_ending_is_refused(format: Any, out: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--out must be a file that ends in \.{format}; got "):
        vitdistill.export(str(tmp_path / "run"), format=format, out=str(tmp_path / out))


@pytest.mark.parametrize("format", ["safetensors", "onnx", "hub"])
def test_a_place_that_cannot_be_written_is_one_line(format: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ending = "" if format == "hub" else f".{format}"
    with pytest.raises(UserError, match="must be written and read back; got .*(File exists|Not a directory)"):
        vitdistill.export(str(run_of("cnn", tmp_path / "run")), format=format, out=f"{tmp_path}/file/student{ending}")
