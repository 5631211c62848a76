"""Files of YOLOS: Hugging Face's, the authors', other classes and grids, and back to Hugging Face."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from golden_values import FOLDER
from kept_models import keep_run
from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.families.yolos import resize_table
from vitdistill.models.record import record_of
from vitdistill.models.weights.yolos import to_hugging_face
from vitdistill.verbs.export import export

transformers = pytest.importorskip("transformers")

ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 3.0}
SIZES = [(40, 48), (48, 32)]


def images_of(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def theirs(mid: bool = True, **changes: Any) -> Any:
    """A tiny model of transformers with random weights."""
    options = {
        **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 72},
        **{"image_size": [40, 48], "patch_size": 8, "num_detection_tokens": 10, "layer_norm_eps": 1e-6},
        **{"use_mid_position_embeddings": mid, "id2label": {0: "cat", 1: "dog", 2: "cow", 3: "emu"}},
    }
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.YolosForObjectDetection(transformers.YolosConfig(**{**options, **changes})).eval()
        for parameter in model.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return model


def predicted(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(images)
    return torch.cat((output.logits, output.pred_boxes), dim=-1)


@pytest.mark.parametrize("names", ["disk", "memory"])
@pytest.mark.parametrize("mid", [True, False])
def test_a_folder_of_transformers_gives_what_it_gives_there(tmp_path: Path, mid: bool, names: str) -> None:
    model = theirs(mid)
    model.save_pretrained(tmp_path)
    if names == "memory":
        save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    network = build(str(tmp_path)).eval()
    assert network.name == "yolos_tiny" and record_of(network.net).classes == ["cat", "dog", "cow", "emu"]
    for size in SIZES:
        images = images_of(size)
        with torch.no_grad():
            torch.testing.assert_close(network(images).prediction, predicted(model, images), rtol=1e-5, atol=1e-6)


def test_sizes_that_are_no_whole_patches_are_cut_off(tmp_path: Path) -> None:
    """The hub's yolos-tiny says 800 x 1333; with positions between the blocks, transformers needs whole patches."""
    model = theirs(mid=False, image_size=[40, 53])
    model.save_pretrained(tmp_path)
    network, images = build(str(tmp_path)).eval(), images_of((40, 48))
    assert network.input.size == (40, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(images).prediction, predicted(model, images), rtol=1e-5, atol=1e-6)


def test_the_authors_names(tmp_path: Path) -> None:
    tensors = load_file(FOLDER / "yolos_a.safetensors")
    own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    torch.save({"model": own, "epoch": 3, "args": None}, tmp_path / "yolos.pth")
    args = {**ARGS, "img_size": [40, 48], "mid_positions": True}
    network = build(f"yolos_tiny@{tmp_path / 'yolos.pth'}", args=args).eval()
    assert network.num_classes == 4
    with torch.no_grad():
        got = network(tensors["input.image_native"]).prediction
    torch.testing.assert_close(got[..., :-4], tensors["expect.logits_native"], rtol=1e-5, atol=1e-5)


def test_other_classes_keep_all_but_the_last_layer_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        network = build(str(tmp_path), num_classes=7).eval()
    assert "a new classifier for 7 classes (the file has 4)" in caplog.text
    images = images_of((40, 48))
    with torch.no_grad():
        got = network(images).prediction
    assert got.shape == (2, 10, 12)
    torch.testing.assert_close(got[..., -4:], predicted(model, images)[..., -4:], rtol=1e-5, atol=1e-6)


def test_both_tables_are_brought_to_another_size(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    net, other = build(str(tmp_path)).net, build(str(tmp_path), args={"img_size": [48, 32]}).net
    for name in ("pos_embed", "mid_pos_embed"):
        expected = resize_table(getattr(net, name), (5, 6), (6, 4), 10)
        assert torch.equal(getattr(other, name), expected)


def test_a_file_that_does_not_say_its_grid_is_refused(tmp_path: Path) -> None:
    save_file(dict(tiny("yolos", img_size=(40, 24)).state_dict()), tmp_path / "own.safetensors")
    spec = f"yolos_tiny@{tmp_path / 'own.safetensors'}"
    args = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "det_tokens": 6, "mid_positions": True}
    with pytest.raises(UserError, match="on which grid.*15 positions of patches.*4x4.*file_img_size") as error:
        build(spec, args={**args, "img_size": 32})
    assert "\n" not in str(error.value)
    net = build(spec, args={**args, "img_size": 32, "file_img_size": [40, 24]}).net
    assert net.pos_embed.shape == (1, 1 + 16 + 6, 24)
    with pytest.raises(UserError, match="must fit Yolos"):
        build(spec, args={**args, "img_size": [40, 24], "mid_positions": False})


def test_weights_of_a_detector_are_none_of_a_vit(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="looks like YOLOS") as error:
        build(f"vit_tiny_patch16_224@{tmp_path / 'model.safetensors'}", args={**ARGS, "img_size": 32})
    assert "\n" not in str(error.value)


# --- back to Hugging Face --------------------


def test_names_and_values_are_those_that_transformers_writes(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    wanted, got = load_file(tmp_path / "model.safetensors"), to_hugging_face(build(str(tmp_path)).net)  # type: ignore[arg-type]
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("mid", [True, False])
def test_an_exported_folder_loads_in_transformers(tmp_path: Path, mid: bool) -> None:
    args = {**ARGS, "img_size": [40, 48], "mid_positions": mid, "det_tokens": 10}
    network = build("yolos_tiny", args=args, num_classes=4).eval()
    result = export(str(keep_run(network, tmp_path / "run")), format="hub")
    assert result["max_difference"] < 1e-5 and "YolosForObjectDetection" in result["load"]
    folder = result["path"]
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert tuple(processor.image_mean) == network.input.mean
    for size in SIZES:
        images = images_of(size)
        with torch.no_grad():
            expected = network(images).prediction
            torch.testing.assert_close(predicted(model, images), expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(build(folder).eval()(images).prediction, expected)
    assert "object-detection" in Path(folder, "README.md").read_text()


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
def test_other_forms(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    args = {**ARGS, "img_size": [40, 48], "mid_positions": True, "det_tokens": 10}
    network = build("yolos_tiny", args=args, num_classes=4).eval()
    result = export(str(keep_run(network, tmp_path / "run")), format=format)  # type: ignore[arg-type]
    assert result["max_difference"] < 1e-4
    if format == "safetensors":
        images = images_of((48, 32))
        again = build(f"yolos_tiny@{result['path']}").eval()
        with torch.no_grad():
            assert torch.equal(again(images).prediction, network(images).prediction)


def test_what_transformers_has_not_is_refused() -> None:
    net = tiny("yolos", init_values=0.1)
    with pytest.raises(UserError, match=r"transformers' YOLOS has no such network; got one with blocks.0.ls1.gamma"):
        to_hugging_face(net)  # type: ignore[arg-type]
