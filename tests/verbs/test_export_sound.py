"""A student over sound, exported: as transformers' AST, and as weights that this package loads."""

import json
from pathlib import Path

import pytest
import torch

import vitdistill
from kept_models import keep_run
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.network import Network
from vitdistill.models.surgery.attention_heads import set_heads

CLASSES = ["rain", "dog", "clock"]
ARGS = {"img_size": [48, 64], "stride": [8, 16], "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}


def network(**args: object) -> Network:
    torch.manual_seed(0)
    built = build("ast_small", args={**ARGS, "statistics": [-5.0, 4.0], **args}).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return built


def kept(student: Network, folder: Path) -> Path:
    sound = {"size": [48, 64], "channels": 1, "sampling_rate": 16000, "mean": [-5.0], "std": [8.0]}
    run = keep_run(student, folder, CLASSES)
    record = json.loads((run / "student.json").read_text())
    (run / "student.json").write_text(json.dumps({**record, "preprocessing": sound}))
    return run


def test_a_hub_folder_is_transformers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    student = network()
    result = vitdistill.export(str(kept(student, tmp_path / "run")), format="hub")
    folder = result["path"]
    assert result["load"] == f"transformers.ASTForAudioClassification.from_pretrained({folder!r})"
    # transformers gives the classifier's norm the epsilon of all others, 1e-6 and not 1e-5.
    assert result["max_difference"] < 1e-4
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    assert model.config.id2label == dict(enumerate(CLASSES))
    model.classifier.layernorm.eps = 1e-5
    inputs = torch.randn(2, 1, 48, 64)
    with torch.no_grad():
        expected = student.net(inputs)
        torch.testing.assert_close(model(inputs[:, 0].transpose(1, 2)).logits, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(build(folder).eval().net(inputs), expected, atol=0, rtol=0)
        (Path(folder) / "student.json").unlink()  # as anybody's folder of AST
        again = build(folder).eval()
        torch.testing.assert_close(again.net(inputs), expected, atol=0, rtol=0)
    assert again.input.mean == (-5.0,) and again.input.std == (8.0,)
    extractor = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    assert (extractor["mean"], extractor["std"], extractor["max_length"]) == (-5.0, 4.0, 64)
    card = (Path(folder) / "README.md").read_text()
    assert "audio-classification" in card and "48 mel bins x 64 frames" in card and "- timm" not in card


def test_weights_are_loaded_by_this_package(tmp_path: Path) -> None:
    result = vitdistill.export(str(kept(network(), tmp_path / "run")))
    assert result["max_difference"] == 0 and result["load"].startswith("vitdistill.build('ast_small@")


def test_what_transformers_has_not_is_refused(tmp_path: Path) -> None:
    student = network()
    set_heads(student, {-1: 6})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="other attention heads; got block 1 has 6"):
        vitdistill.export(str(kept(student, tmp_path / "heads")), format="hub")
    oblong = network(patch_size=[16, 8])
    with pytest.raises(UserError, match="square patches over one channel.*; got patches of 16x8, 1 channels"):
        vitdistill.export(str(kept(oblong, tmp_path / "oblong")), format="hub")
