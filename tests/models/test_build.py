"""From a name, a file, a run directory or a module object to a backbone; and what is said when that cannot be."""

import argparse
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build, rebuild
from vitdistill.models.families import as_network
from vitdistill.models.families.cait import CaiT
from vitdistill.models.families.swin import Swin
from vitdistill.models.families.vit import ViT
from vitdistill.models.network import Opaque
from vitdistill.models.presets import PRESETS
from vitdistill.models.record import METADATA, ModelRecord, record_of, set_statistics
from vitdistill.models.surgery.attention_heads import head_count, set_heads
from vitdistill.models.weights.read import read_weights
from vitdistill.training.train import export_weights
from vitdistill.types import Capture

ARGS: dict[str, Any] = {key: value for key, value in SMALL.items() if key != "num_classes"}
NAME = "deit_tiny_patch16_224"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return tiny("deit", seed=4).state_dict()


@pytest.fixture
def file(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # was read at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def refused(spec: str, **options: Any) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as error:
        build(spec, **options)
    text = str(error.value)
    assert text and "\n" not in text
    return text


# --- what can be built --------------------


def test_a_timm_name(images):
    backbone = build(NAME, args=ARGS, num_classes=7)
    assert isinstance(backbone, ViT) and backbone.name == NAME and backbone.num_classes == 7
    assert backbone(images).prediction.shape == (3, 7)


def test_no_class_count_keeps_the_architectures():
    assert build(NAME, args=ARGS).num_classes == 1000


def test_objects_are_taken_as_they_are():
    net = tiny("deit")
    backbone = build(net)
    assert backbone.net is net and build(backbone) is backbone


@pytest.mark.parametrize(
    ("family", "adapter"), [("deit_distilled", ViT), ("clip", ViT), ("cait", CaiT), ("swin", Swin)]
)
def test_each_family_gets_its_adapter(family, adapter):
    assert type(as_network(tiny(family))) is adapter


def test_any_other_classifier_is_opaque(images):
    backbone = build("test_resnet", num_classes=10, image_size=32)  # a CNN takes any size
    assert isinstance(backbone, Opaque) and not backbone.maskable and backbone.num_classes == 10
    assert torch.equal(backbone.eval()(images).prediction, backbone.net(images))
    assert record_of(backbone.net).args == {"num_classes": 10}
    for capture in (Capture.at(0, "qkv"), Capture.at(0, "output"), Capture(head=False)):
        with pytest.raises(UserError, match=r"logits only|has blocks"):
            backbone(images, capture=capture)


def test_an_opaque_network_with_two_heads_trains_them(images):
    class TwoHeads(nn.Module):
        num_classes = 2

        def forward(self, x: torch.Tensor) -> Any:
            score = x.flatten(1)[:, :2]
            return (score, score + 1) if self.training else score

    output = build(TwoHeads()).train()(images)
    assert torch.equal(output.distilled, output.prediction + 1)


def test_a_module_must_state_its_classes():
    with pytest.raises(UserError, match="state its number of classes; got Linear"):
        _ = build(nn.Linear(3, 4)).num_classes


def test_meta_builds_without_memory(file):
    for spec in (NAME, f"{NAME}@{file}", "swin_tiny_patch4_window7_224"):
        backbone = build(spec, meta=True)
        assert {p.device.type for p in backbone.parameters()} == {"meta"} and backbone.input.size == (224, 224)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_ordinary_timm_networks(preset):
    backbone = build(preset)
    family = preset.split("_")[0] + ("_yolos" if "yolos" in preset else "")
    known = {"digits": (10, 36), "moving": (10, 128), "sounds": (9, 45), "scenes": (11, 64), "scenes_yolos": (10, 64)}
    assert (backbone.num_classes, backbone.grid.count) == known[family]
    record = record_of(backbone.net)
    again = timm.create_model(record.architecture, **record.args)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in backbone.net.state_dict().items()
    }


def test_the_record_rebuilds_the_network_without_its_drop_path():
    backbone = build(NAME, args={**ARGS, "drop_path_rate": 0.3}, num_classes=5)
    record = record_of(backbone.net)
    assert record.architecture == NAME and record.args == {**ARGS, "num_classes": 5}
    assert record.mean == list(backbone.input.mean) and record.std == list(backbone.input.std)
    assert record_of(tiny("deit")) == ModelRecord(architecture=None)


# --- weights files --------------------


def assert_loaded(backbone: Backbone, weights: dict[str, torch.Tensor]) -> None:
    state = backbone.net.state_dict()
    assert list(state) == list(weights) and all(torch.equal(state[name], weights[name]) for name in weights)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_a_name_with_a_weights_file(tmp_path, weights, suffix):
    path = tmp_path / f"weights.{suffix}"
    save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
    assert_loaded(build(f"{NAME}@{path}", args=ARGS), weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_official_files_hold_a_model_and_their_command_line(tmp_path, weights, legacy):
    """As DeiT and MAE publish them."""
    path = tmp_path / "official.pth"
    content = {"model": weights, "args": argparse.Namespace(lr=5e-4, data="/data"), "epoch": 299, "optimizer": {}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_loaded(build(f"{NAME}@{path}", args=ARGS), weights)


@pytest.mark.parametrize("container", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_other_containers_and_prefixes_of_parallel_training(tmp_path, weights, container):
    torch.save({container: {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "w.pth")
    assert_loaded(build(f"{NAME}@{tmp_path / 'w.pth'}", args=ARGS), weights)


def test_averaged_weights_come_first(tmp_path, weights):
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save({"model": zeros, "model_ema": weights}, tmp_path / "w.pth")
    assert_loaded(build(f"{NAME}@{tmp_path / 'w.pth'}", args=ARGS), weights)


def test_official_deit3_layer_scale_is_renamed(tmp_path):
    net = tiny("deit3", seed=3)
    official = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in net.state_dict().items()
    }
    assert any("gamma_1" in name for name in official)
    torch.save({"model": official}, tmp_path / "deit3.pth")
    assert_loaded(build(f"deit3_small_patch16_224@{tmp_path / 'deit3.pth'}", args=ARGS), net.state_dict())


def test_the_class_count_is_the_files_unless_another_is_asked_for(file, weights, caplog):
    assert build(f"{NAME}@{file}", args=ARGS).num_classes == 10
    assert build(f"{NAME}@{file}", args=ARGS, num_classes=10).num_classes == 10
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        other = build(f"{NAME}@{file}", args=ARGS, num_classes=4)
    assert "new classifier for 4 classes (the file has 10)" in caplog.text
    state = other.net.state_dict()
    assert state["head.weight"].shape == (4, 24)
    assert all(torch.equal(state[name], weights[name]) for name in weights if not name.startswith("head"))


@pytest.mark.parametrize("family", ["deit_distilled", "swin"])
def test_other_heads_are_replaced_too(tmp_path, family):
    net = tiny(family)
    name = net.pretrained_cfg["architecture"]
    args = {**ARGS} if family == "deit_distilled" else {**SWIN}
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert_loaded(build(f"{name}@{tmp_path / 'w.safetensors'}", args=args), net.state_dict())
    other = build(f"{name}@{tmp_path / 'w.safetensors'}", args=args, num_classes=4)
    assert other.num_classes == 4
    heads = [k for k, v in other.net.state_dict().items() if v.shape != net.state_dict()[k].shape]
    assert heads and all(k.startswith("head") for k in heads)


SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3)}


def test_a_file_without_a_head_gets_one_for_the_asked_classes(tmp_path, weights):
    body = {name: value for name, value in weights.items() if not name.startswith("head")}
    save_file(body, tmp_path / "body.safetensors")
    spec = f"{NAME}@{tmp_path / 'body.safetensors'}"
    assert build(spec, args=ARGS, num_classes=6).num_classes == 6
    assert build(spec, args=ARGS).num_classes == 0  # a pre-trained encoder stays one


@pytest.mark.parametrize("family", ["deit", "deit3", "cait", "swin"])
def test_positions_are_resampled_to_another_image_size(tmp_path, family):
    net = tiny(family)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    args = {**(SWIN if family == "swin" else ARGS)}
    args.pop("img_size")
    spec = f"{net.pretrained_cfg['architecture']}@{tmp_path / 'w.safetensors'}"
    if family == "swin":
        args["window_size"] = 8
    backbone = build(spec, args=args, image_size=64)
    assert backbone.input.size == (64, 64) and backbone.num_classes == 10
    assert backbone(torch.zeros(1, 3, 64, 64)).prediction.shape == (1, 10)
    if family == "deit":
        own, old = backbone.net.pos_embed, net.pos_embed
        assert own.shape == (1, 65, 24)
        torch.testing.assert_close(own[:, 0], old[:, 0])
        torch.testing.assert_close(own[:, 1:].mean(), old[:, 1:].mean(), rtol=0.1, atol=0.02)


# --- run directories --------------------


@pytest.fixture
def run(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    args = {**ARGS, "num_classes": 10}
    ModelRecord(NAME, args, [0.5] * 3, [0.25] * 3, [f"class {i}" for i in range(10)]).write(folder)
    save_file(weights, folder / "student.safetensors")
    return folder


def test_a_run_directory(run, weights):
    backbone = build(str(run))
    assert_loaded(backbone, weights)
    record = record_of(backbone.net)
    assert record.classes[9] == "class 9" and record.mean == [0.5] * 3 and record.std == [0.25] * 3


def test_a_run_directory_with_other_classes_forgets_their_names(run):
    backbone = build(str(run), num_classes=3)
    assert backbone.num_classes == 3 and record_of(backbone.net).classes == []


def test_an_unfinished_run(run):
    (run / "student.json").unlink()
    text = refused(str(run))
    assert "must hold student.json and student.safetensors" in text and "It is no run directory" in text
    (run / "config.yaml").write_text("student: vit_tiny_patch16_224")
    assert f"vitdistill resume {run}" in refused(str(run))


def test_a_run_without_its_weights(run):
    (run / "student.safetensors").unlink()
    message = refused(str(run))
    assert "A run given as a model must be finished" in message and f"vitdistill resume {run}" in message


@pytest.mark.parametrize("content", ["{", "[]", '{"architecture": "a", "colour": 1}', "null"])
def test_a_damaged_record(run, content):
    (run / "student.json").write_text(content)
    assert "student.json must be a model record" in refused(str(run))


def test_a_run_of_a_module_object(run):
    ModelRecord(None).write(run)
    assert "trained from a module object" in refused(str(run))


def test_the_statistics_of_a_run_are_those_of_its_network(run):
    backbone = build(str(run))
    assert backbone.input.mean == (0.5,) * 3 and backbone.input.std == (0.25,) * 3
    again = rebuild(record_of(backbone.net))
    assert again.input.mean == (0.5,) * 3 and again.input.std == (0.25,) * 3


# --- the record in a weights file --------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Weights with the record of their network: other heads in the last block, and statistics that are not timm's."""
    backbone = build(NAME, args={**ARGS, "num_classes": 10, "num_heads": 2})
    set_heads(backbone, {-1: 4})
    set_statistics(backbone.net, [0.4] * 3, [0.2] * 3)
    record = record_of(backbone.net)
    record.classes = [f"class {i}" for i in range(10)]
    export_weights(backbone.net.state_dict(), tmp_path / "recorded.safetensors", record)
    return tmp_path / "recorded.safetensors"


def heads(backbone: Backbone) -> list[int]:
    return [head_count(backbone, block) for block in range(backbone.depth)]


@pytest.mark.parametrize("args", [{}, ARGS])
def test_a_weights_file_says_what_its_tensors_do_not_show(recorded, args, caplog):
    args = {key: value for key, value in args.items() if key != "num_heads"}
    backbone = build(f"{NAME}@{recorded}", args=args)
    assert heads(backbone) == [2, 2, 4] and not caplog.records
    assert backbone.input.mean == (0.4,) * 3 and backbone.input.std == (0.2,) * 3
    assert record_of(backbone.net).heads == {2: 4} and record_of(backbone.net).classes[3] == "class 3"
    assert heads(rebuild(record_of(backbone.net))) == [2, 2, 4]
    assert record_of(build(f"{NAME}@{recorded}", num_classes=7).net).classes == []


def test_under_another_name_the_heads_are_the_files_and_the_rest_is_given(recorded):
    args = {key: value for key, value in ARGS.items() if key != "num_heads"}
    backbone = build(f"vit_tiny_patch16_224@{recorded}", args=args)
    assert backbone.name == "vit_tiny_patch16_224" and heads(backbone) == [2, 2, 4]
    assert backbone.input.mean == (0.4,) * 3  # not the (0.5, 0.5, 0.5) of timm's vit_tiny


def test_heads_other_than_those_of_the_file_are_warned_of(recorded, caplog):
    assert heads(build(f"{NAME}@{recorded}", args={"num_heads": 3})) == [3, 3, 4]
    assert "was trained with 2 attention heads, not 3" in caplog.text


def test_timm_reads_a_file_with_a_record(recorded):
    net = timm.create_model(NAME, checkpoint_path=str(recorded), **{**SMALL, "num_heads": 2})
    assert torch.equal(net.norm.weight, load_file(recorded)["norm.weight"])


def test_files_of_others_have_no_record(file, tmp_path, weights, caplog):
    assert ModelRecord.of_file(file) is None and ModelRecord.of_file(tmp_path / "none.safetensors") is None
    save_file(weights, tmp_path / "odd.safetensors", metadata={METADATA: '{"colour": 1}'})
    assert_loaded(build(f"{NAME}@{tmp_path / 'odd.safetensors'}", args=ARGS), weights)
    assert "record of its network is unreadable" in caplog.text


# --- bad input --------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deit_smal_patch16_224", "deit_small_patch16_224"),
        ("digits-teachr", "digits-teacher"),
        ("digits_vit_smal", "digits_vit_small"),
    ],
)
def test_unknown_names_come_with_near_ones(name, near):
    text = refused(name)
    assert f"got '{name}'" in text and f"'{near}'" in text


@pytest.mark.parametrize("name", ["", "zzzzzzzzzzzz"])
def test_names_near_nothing(name):
    assert "A model is a timm name, name@weights-file" in refused(name)


def test_a_path_that_is_not_there():
    assert "There is no folder such in" in refused("no/such/folder")


def test_a_missing_file(tmp_path):
    assert "must exist" in refused(f"{NAME}@{tmp_path / 'nothing.pth'}", args=ARGS)
    assert "A file must be named behind the @" in refused(f"{NAME}@", args=ARGS)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_truncated_files_are_called_damaged_and_never_code(tmp_path, weights, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights}, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        text = refused(f"{NAME}@{path}", args=ARGS)
        assert "whole" in text and str(path) in text and "code" not in text


@pytest.mark.parametrize("content", [b"not a pickle at all", b"<html>404</html>", bytes(range(256))])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_another_kind(tmp_path, content, suffix):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    said = "web page" if content.startswith(b"<") and suffix == "pth" else "whole"
    assert said in refused(f"{NAME}@{tmp_path / f'w.{suffix}'}", args=ARGS)


class Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.flag),)


class Custom:
    pass


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path, weights, legacy):
    flag, path = tmp_path / "ran", tmp_path / "w.pth"
    torch.save({"model": weights, "extra": Bomb(flag)}, path, _use_new_zipfile_serialization=not legacy)
    text = refused(f"{NAME}@{path}", args=ARGS)
    assert "holds code, which is not run" in text and str(path) in text and "safetensors" in text
    path.write_bytes(pickle.dumps(Bomb(flag)))
    refused(f"{NAME}@{path}", args=ARGS)
    assert not flag.exists()


def test_whole_modules_and_own_classes_count_as_code(tmp_path):
    for content in (tiny("deit"), {"model": {}, "config": Custom()}):
        torch.save(content, tmp_path / "w.pth")
        assert "holds code" in refused(f"{NAME}@{tmp_path / 'w.pth'}", args=ARGS)


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(2), 3])
def test_files_without_names(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert "mapping from names to tensors" in refused(f"{NAME}@{tmp_path / 'w.pth'}", args=ARGS)


def test_files_without_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    assert "must hold tensors by name" in refused(f"{NAME}@{tmp_path / 'w.pth'}", args=ARGS)


def test_weights_of_another_size_name_tensors_and_both_shapes(file):
    text = refused(f"{NAME}@{file}", args={**ARGS, "embed_dim": 48})
    assert "must fit VisionTransformer" in text and "of another shape" in text
    assert "(1, 1, 24) instead of (1, 1, 48)" in text and str(file) in text


def test_weights_of_another_depth_and_family(file):
    assert "12 missing (blocks.3." in refused(f"{NAME}@{file}", args={**ARGS, "depth": 4})
    assert "12 unexpected (blocks.2." in refused(f"{NAME}@{file}", args={**ARGS, "depth": 2})
    assert "missing" in refused(f"cait_xxs24_224@{file}", args=ARGS)
    assert "must fit SwinTransformer" in refused(f"swin_tiny_patch4_window7_224@{file}", args=SWIN)


def test_a_failed_conversion_is_one_line(tmp_path, weights):
    save_file({**weights, "pos_embed": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert "must fit VisionTransformer" in refused(f"{NAME}@{tmp_path / 'w.safetensors'}", args=ARGS)


@pytest.mark.parametrize(("size", "remedy"), [(33, "Use 32 or 40"), (7, "Use 8"), (39, "Use 32 or 40")])
def test_the_image_size_must_be_a_multiple_of_the_patch_size(size, remedy):
    text = refused(NAME, args={**ARGS, "img_size": size})
    assert f"multiple of the patch size 8 of {NAME}; got {size}. {remedy}" in text


def test_image_size_by_either_name_and_the_architectures_own_argument_wins(run):
    body = {key: value for key, value in ARGS.items() if key != "img_size"}
    assert build(NAME, args=body, image_size=48).input.size == (48, 48)
    assert build(NAME, args=ARGS, image_size=48).input.size == (32, 32)
    assert build(str(run), image_size=48).input.size == (48, 48)


def test_unknown_arguments_of_the_architecture():
    text = refused(NAME, args={**ARGS, "heads": 3})
    assert "cannot be built with" in text and "'heads'" in text


def test_a_swin_of_many_windows_gives_no_global_attention():
    text = refused("swin_tiny_patch4_window7_224", args={**SWIN, "window_size": 2})
    assert "last Swin stage must be one window" in text and "4x4 stage" in text


def test_dynamic_image_sizes_have_no_grid():
    assert "dynamic" in refused(NAME, args={**ARGS, "dynamic_img_size": True})


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("spec", "pretrained"),
    [
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", False),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", True),
        ("vit_tiny_patch16_224.augreg_in21k", True),
    ],
)
def test_hub_weights_without_a_network(spec, pretrained):
    text = refused(spec, pretrained=pretrained)
    assert f"weights of {spec} must be in timm's cache or downloadable" in text and "@weights-file" in text


@pytest.mark.usefixtures("offline")
def test_clip_weights_with_the_wrong_activation_are_warned_of(monkeypatch, caplog):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, **args))
    for name in ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_quickgelu_224.openai"):
        caplog.clear()
        build(name, args=ARGS, pretrained=True)
        assert ("QuickGELU" in caplog.text) == ("quickgelu" not in name)


# --- reading files --------------------


def test_reading_leaves_out_what_is_no_tensor(tmp_path, weights):
    torch.save({"model": {**weights, "version": 2}}, tmp_path / "w.pth")
    assert sorted(read_weights(tmp_path / "w.pth")) == sorted(weights)
    save_file(weights, tmp_path / "w.safetensors")
    assert {k: v.shape for k, v in read_weights(tmp_path / "w.safetensors").items()} == {
        k: v.shape for k, v in load_file(tmp_path / "w.safetensors").items()
    }
