"""Weights files as training codes leave them: opened without running code, prefixes taken off, misfits named."""

import argparse
import collections
import datetime
import gzip
import json
import logging
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.record import ModelRecord, record_of
from vitdistill.models.weights.read import read_weights
from vitdistill.models.weights.unwrap import common_prefix, without_prefix

NAME = "deit_tiny_patch16_224"
ARGS: dict[str, Any] = {key: value for key, value in SMALL.items() if key != "num_classes"}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(tiny("deit", seed=4).state_dict())


def loaded(path: Path, weights: dict[str, torch.Tensor], body: bool = False) -> None:
    """Every tensor of the file is in the network, as it is."""
    state = build(f"{NAME}@{path}", args=ARGS).net.state_dict()
    wanted = {name: value for name, value in weights.items() if not (body and name.startswith("head"))}
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def refused(path: Path, **args: Any) -> str:
    with pytest.raises(UserError) as error:
        build(f"{NAME}@{path}", args={**ARGS, **args})
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what lies beside the weights --------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_values_beside_the_weights(tmp_path, weights, legacy):
    """NumPy's and Python's, as scripts save them: data, so they are read, and thrown away."""
    content = {
        "model": weights,
        "best": np.float64(81.5),
        "scores": np.arange(3, dtype=np.float32),
        "names": np.array(["a", "b"]),
        "ints": [np.int64(3), np.bool_(True), np.float16(1), np.uint8(2)],
        "dtype": np.dtype("float32"),
        "rng": np.random.RandomState(0).get_state(),
        "torch_rng": torch.get_rng_state(),
        "args": argparse.Namespace(out=pathlib.Path("runs/a"), sizes=(1, 2), names={"a"}),
        "more": types.SimpleNamespace(lr=1e-3),
        "out": pathlib.PurePosixPath("/data"),
        "windows": pathlib.PureWindowsPath("C:/data"),
        "when": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "took": datetime.timedelta(hours=3),
        "log": collections.defaultdict(list, loss=[1.0]),
        "last": collections.deque([1, 2], maxlen=3),
        "order": collections.OrderedDict(a=collections.Counter("aab")),
        "numbers": {1, 2, complex(1, 2), 3.5},
        "range": slice(1, 2),
        "bytes": b"abc",
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": np.float32(1)}]},
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    loaded(tmp_path / "w.pth", weights)


def test_names_of_numpy_1_and_of_other_systems(tmp_path, weights):
    """What older and newer releases call the same types."""
    torch.save({"model": weights, "a": np.float64(1), "p": pathlib.PurePosixPath("a")}, tmp_path / "w.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    raw = (tmp_path / "w.pth").read_bytes()
    for new, old in ((b"numpy._core.multiarray", b"numpy.core.multiarray"), (b"PurePosixPath", b"WindowsPath")):
        assert new in raw
        raw = raw.replace(new, old) if b"numpy" in new else raw
    (tmp_path / "w.pth").write_bytes(raw)
    loaded(tmp_path / "w.pth", weights)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.load, ("/nothing",)


class Config:
    pass


@pytest.mark.parametrize(("what", "named"), [(Evil(), "numpy.load"), (Config(), "Config"), (tiny("deit"), "timm")])
def test_anything_else_is_named_and_not_run(tmp_path, weights, what, named):
    torch.save({"model": weights, "config": what}, tmp_path / "w.pth")
    text = refused(tmp_path / "w.pth")
    assert "holds code, which is not run" in text and named in text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, weights, dtype):
    save_file({name: value.to(dtype) for name, value in weights.items()}, tmp_path / "w.safetensors")
    loaded(tmp_path / "w.safetensors", {name: value.to(dtype).float() for name, value in weights.items()})


def test_arrays_of_numpy_and_parameters_are_weights(tmp_path, weights):
    torch.save({name: value.numpy() for name, value in weights.items()}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights)
    torch.save({name: torch.nn.Parameter(value) for name, value in weights.items()}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights)


# --- suffixes and folders --------------------


@pytest.mark.parametrize("suffix", ["bin", "pth", "ckpt", "weights"])
def test_safetensors_under_another_suffix(tmp_path, weights, suffix):
    save_file(weights, tmp_path / f"w.{suffix}")
    loaded(tmp_path / f"w.{suffix}", weights)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_under_the_suffix_of_safetensors(tmp_path, weights, legacy):
    torch.save(weights, tmp_path / "w.safetensors", _use_new_zipfile_serialization=not legacy)
    loaded(tmp_path / "w.safetensors", weights)


def test_shards(tmp_path, weights):
    names = list(weights)
    index = {}
    for number, part in enumerate((names[:9], names[9:])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    loaded(tmp_path / "model.safetensors.index.json", weights)
    loaded(tmp_path, weights)  # the folder
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 missing: model-00002-of-00002.safetensors" in refused(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert "must map names to files" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88\n", "git lfs pull"),
        ("w.npz", b"PK\x03\x04", "safetensors format; got"),
        ("w.h5", b"\x89HDF", "(Keras)"),
        ("w.pth", b"<!DOCTYPE html><html>", "(a web page, such as a site answers in place of the file)"),
        ("w.pth", b'{"error": "not found"}', "(JSON, perhaps a configuration or a site's answer)"),
        ("w.pth.gz", gzip.compress(b"weights"), "(compressed by gzip). Unpack it first"),
        ("w.pkl", pickle.dumps({"a": np.zeros(2)}, protocol=4), "(a pickle of another writer)"),
    ],
    ids=["git lfs", "npz", "keras", "web page", "json", "gzip", "pickle"],  # gzip's bytes hold the time
)
def test_other_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def test_a_torchscript_program(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "TorchScript" in refused(tmp_path / "w.pt") and "torch.jit.load" in refused(tmp_path / "w.pt")


# --- containers and prefixes --------------------


@pytest.mark.parametrize(
    "prefix",
    [
        *("model.", "module.", "_orig_mod.", "net.", "backbone.", "encoder.", "student.", "teacher.", "network."),
        *("module._orig_mod.", "_orig_mod.module.", "model.backbone.", "model.module.", "module.model.net."),
        *("vit.", "self_made_name.", "method.student.net.", "base_model.model.", "trunk.0."),
    ],
)
def test_prefixes(tmp_path, weights, prefix, caplog):
    torch.save({"state_dict": {prefix + name: value for name, value in weights.items()}}, tmp_path / "w.ckpt")
    loaded(tmp_path / "w.ckpt", weights)
    assert not caplog.records


@pytest.mark.parametrize(
    "path", [["ema_state_dict"], ["network"], ["state_dict", "model"], ["anything"], ["net", "module"]]
)
def test_containers(tmp_path, weights, path):
    content: dict[str, Any] = dict(weights)
    for name in reversed(path):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: torch.zeros(2)}}}
    torch.save(content, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights)


def test_lightning_says_what_it_leaves_out(tmp_path, weights, caplog):
    state = {f"model.{name}": value for name, value in weights.items()} | {"loss.weight": torch.ones(10)}
    torch.save(
        {"state_dict": state, "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 1e-3}}, tmp_path / "w"
    )
    loaded(tmp_path / "w", weights)
    assert "1 tensors outside 'model.' are left out (loss.weight" in caplog.text


def test_dino_gives_its_teacher(tmp_path, weights, caplog):
    """{"student": module.backbone.*, "teacher": backbone.*, head.*}, as its authors train."""
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    head = {"head.mlp.0.weight": torch.ones(4, 24), "head.last_layer.weight_g": torch.ones(4, 1)}
    body = {name: value for name, value in weights.items() if not name.startswith("head")}
    content = {
        "student": {f"module.backbone.{name}": zeros[name] for name in body}
        | {f"module.{k}": v for k, v in head.items()},
        "teacher": {f"backbone.{name}": value for name, value in body.items()} | head,
        "dino_loss": {"center": torch.zeros(1, 4)},
        "args": argparse.Namespace(arch="vit_small"),
    }
    torch.save(content, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights, body=True)
    assert "the teacher's weights are taken" in caplog.text
    assert build(f"{NAME}@{tmp_path / 'w.pth'}", args=ARGS).num_classes == 0
    torch.save({"teacher": content["teacher"], "student": {}}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights, body=True)
    torch.save({"student": content["student"]}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", zeros, body=True)


def test_of_equal_networks_the_averaged_one_is_taken_and_said_so(tmp_path, weights, caplog):
    zeros = {f"student.{name}": torch.zeros_like(value) for name, value in weights.items()}
    torch.save(zeros | {f"ema.module.{name}": value for name, value in weights.items()}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights)
    assert "the weights under 'ema.module.' are taken; there are equal ones under 'student.'" in caplog.text


def test_of_two_networks_the_one_that_fits_is_taken(tmp_path, weights):
    """A distillation: the teacher is wider."""
    wide = timm.create_model(NAME, **{**SMALL, "embed_dim": 48}).state_dict()
    both = {f"teacher.{k}": v for k, v in wide.items()} | {f"student.{k}": v for k, v in weights.items()}
    torch.save({"state_dict": both}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth", weights)


def test_a_checkpoint_of_a_run_knows_its_network(tmp_path, weights):
    (tmp_path / "checkpoints").mkdir()
    classes = [f"class {i}" for i in range(10)]
    ModelRecord(NAME, {**ARGS, "num_classes": 10}, [0.4] * 3, [0.2] * 3, classes).write(tmp_path)
    state = {f"method.student.net.{name}": value for name, value in weights.items()}
    torch.save(
        {"state_dict": state, "epoch": 3, "callbacks": {"ema": {"model": {}}}}, tmp_path / "checkpoints/last.ckpt"
    )
    backbone = build(f"{NAME}@{tmp_path / 'checkpoints' / 'last.ckpt'}")
    assert all(torch.equal(backbone.net.state_dict()[name], value) for name, value in weights.items())
    assert backbone.input.mean == (0.4,) * 3 and record_of(backbone.net).classes == classes


def test_an_averaged_model_of_torch_counts_beside_its_weights(tmp_path, weights):
    average = torch.optim.swa_utils.AveragedModel(tiny("deit", seed=4))
    torch.save(average.state_dict(), tmp_path / "w.pth")
    assert "n_averaged" in average.state_dict()
    loaded(tmp_path / "w.pth", weights)


def test_dinov2s_chunks_of_blocks(tmp_path):
    """`blocks.1.2.` of its own training is the third block."""
    net = tiny("deit3", seed=3)
    parts = {
        n.replace("blocks.", "blocks.0." if "blocks.0" in n else "blocks.1."): v for n, v in net.state_dict().items()
    }
    torch.save({"teacher": {f"backbone.{name}": value for name, value in parts.items()}}, tmp_path / "w.pth")
    state = build(f"deit3_small_patch16_224@{tmp_path / 'w.pth'}", args=ARGS).net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_dinov2_with_registers_as_published(tmp_path):
    """The class token's position goes into the token, for timm's network adds none to it."""
    net = tiny("registers", seed=3)
    published = dict(net.state_dict())
    published["register_tokens"] = published.pop("reg_token")
    position = torch.randn(1, 1, 24)
    published["cls_token"] = published["cls_token"] - position
    published["pos_embed"] = torch.cat((position, published["pos_embed"]), 1)
    published["mask_token"] = torch.zeros(1, 24)
    torch.save(published, tmp_path / "w.pth")
    state = build(f"vit_small_patch14_reg4_dinov2@{tmp_path / 'w.pth'}", args=ARGS).net.state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=0)


def test_prefix_of_names():
    assert common_prefix(["a.b.c", "a.b.d.e"]) == "a.b." and common_prefix(["a.b", "c.d"]) == common_prefix([]) == ""
    assert common_prefix(["a", "a"]) == "" and common_prefix([*["a.b"] * 19, "head.c"]) == "a."


def test_names_that_fit_are_left_alone(weights):
    own = {name: value.shape for name, value in weights.items()}
    assert without_prefix(weights, own, []) is weights


# --- what does not fit --------------------


def test_an_unknown_prefix_within_names_is_said(tmp_path, weights):
    renamed = {name.replace("blocks.", "stages.all."): value for name, value in weights.items()}
    save_file(renamed, tmp_path / "w.safetensors")
    text = refused(tmp_path / "w.safetensors")
    assert "36 missing (blocks.0.norm1.weight" in text and "the unexpected names begin with 'stages.all.'" in text


def test_a_missing_block_is_refused(tmp_path, weights):
    rest = {f"model.{name}": value for name, value in weights.items() if not name.startswith("blocks.1.")}
    save_file(rest, tmp_path / "w.safetensors")
    assert "12 missing (blocks.1.norm1.weight" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["vit.embeddings.detection_tokens", "vit.encoder.mid_position_embeddings"], "YOLOS"),
        (["module.v.patch_embed.proj.weight", "module.mlp_head.0.weight"], "AST"),
        (["encoder.patch_embed.proj.weight", "decoder.cls_emb"], "Segmenter"),
        (["backbone.patch_embed.proj.weight", "decode_head.classifier.weight"], "UperNet as mmsegmentation"),
        (["encoder.patch_embed.proj.weight", "decoder.decode_head.classifier.1.weight"], "UperNet. "),
        (["vision_model.head.probe", "vision_model.embeddings.patch_embedding.weight"], "SigLIP"),
        (["layer1.0.conv1.weight", "fc.weight"], "ResNet"),
        (["stages.0.blocks.0.conv_dw.weight"], "ConvNeXt"),
        (["conv_stem.weight"], "EfficientNet"),
        (["bert.embeddings.word_embeddings.weight"], "a text network"),
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "Swin"),
        (["base_model.model.blocks.0.attn.qkv.lora_A.weight"], "LoRA"),
    ],
)
def test_files_of_other_networks_are_named(tmp_path, names, what):
    save_file({name: torch.ones(3, 3) for name in names}, tmp_path / "w.safetensors")
    text = refused(tmp_path / "w.safetensors")
    assert "looks like" in text and what in text and str(tmp_path) in text


def test_quantised_weights_are_refused(tmp_path, weights):
    save_file({name: (100 * value).to(torch.int8) for name, value in weights.items()}, tmp_path / "w.safetensors")
    assert "of integers (cls_token torch.int8" in refused(tmp_path / "w.safetensors")


def test_the_body_of_a_segmenter_is_not_taken_for_the_whole(tmp_path, weights):
    parts = {f"encoder.{name}": value for name, value in weights.items()} | {"decoder.cls_emb": torch.ones(1)}
    torch.save({"model": parts}, tmp_path / "w.pth")
    assert "looks like Segmenter" in refused(tmp_path / "w.pth")


def test_a_vit_of_another_size_is_described(tmp_path, weights):
    save_file(weights, tmp_path / "w.safetensors")
    assert "looks like a ViT of width 24 and depth 3, patch 8" in refused(tmp_path / "w.safetensors", embed_dim=48)
    with pytest.raises(UserError, match="must fit ResNet.*looks like a ViT of width 24"):
        build(f"test_resnet@{tmp_path / 'w.safetensors'}")


def test_files_without_weights_say_what_they_hold(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"a": 1}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="must hold tensors by name; got .*with epoch, optimizer"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(pickle.dumps([1]))
    logging.getLogger("vitdistill").debug("a list")
    with pytest.raises(UserError):
        read_weights(tmp_path / "w.pth")


def test_weights_of_a_training_that_diverged_are_refused(tmp_path, weights):
    torch.save({**weights, "norm.weight": weights["norm.weight"] * float("nan")}, tmp_path / "w.pth")
    assert "must be finite numbers" in (words := refused(tmp_path / "w.pth"))
    assert "1 of" in words
    assert "(norm.weight)" in words


def test_another_special_token_is_named_and_no_grid_is_asked_for(tmp_path, weights):
    """One more row of positions is that of the token, not of another size."""
    positions = torch.cat((weights["pos_embed"][:, :1], weights["pos_embed"]), dim=1)
    torch.save({**weights, "dist_token": weights["cls_token"], "pos_embed": positions}, tmp_path / "w.pth")
    assert "1 unexpected (dist_token)" in refused(tmp_path / "w.pth")
    torch.save(weights, tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"missing \(dist_token"):
        build(f"deit_tiny_distilled_patch16_224@{tmp_path / 'plain.pth'}", args=ARGS)
