"""AST: against the authors' numbers and by hand, its published size and cost, and what it says it takes."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_values import Golden
from vitdistill.errors import UserError
from vitdistill.methods.mae import MAE
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.models.families import ast
from vitdistill.models.families.ast import AST
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.macs import traced_macs
from vitdistill.models.record import has_new_head, record_of
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.models.weights.read import adapt, load_into
from vitdistill.models.weights.spectrograms import fitted, one_channel, positions_on
from vitdistill.types import TokenGrid

TINY: dict[str, Any] = {"img_size": [48, 64], "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def tiny(**args: Any) -> Backbone:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = build("ast_tiny", args={**TINY, **args})
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return with_tokens(network.eval())


# --- the authors' numbers --------------------------------------------------------------------------------------------


def test_the_authors_numbers(golden) -> None:
    case: Golden = golden("ast_a")
    hyper = case.hyper
    network = build(
        "ast_tiny",
        args={
            "img_size": [hyper["input_fdim"], hyper["input_tdim"]],
            "stride": [hyper["fstride"], hyper["tstride"]],
            **{name: hyper[name] for name in ("embed_dim", "depth", "num_heads")},
            "num_classes": hyper["label_dim"],
        },
    ).eval()
    net = network.net
    load_into(net, adapt(case.part("model"), net), "the golden file")  # under the authors' names
    spectrogram = case.inputs["spectrogram"].transpose(1, 2)[:, None]  # they have time first
    with torch.no_grad():
        case.check("patch_tokens", net.patch_embed(spectrogram))
        case.check("logits", network(spectrogram).prediction)
    old, new = tuple(hyper["deit_grid"]), tuple(hyper["grid_f_t"])
    case.check("adapted_patch_weight", one_channel(case.inputs["deit_patch_weight"]))
    case.check("adapted_pos_embed", positions_on(case.inputs["deit_pos_embed"], old, new))
    deit = {"patch_embed.proj.weight": case.inputs["deit_patch_weight"], "pos_embed": case.inputs["deit_pos_embed"]}
    both = fitted({**deit, "head.weight": torch.zeros(9, 24), "head_dist.bias": torch.zeros(9)}, net, {})
    assert set(both) == set(deit)  # the heads of images are left out
    case.check("adapted_patch_weight", both["patch_embed.proj.weight"])
    case.check("adapted_pos_embed", both["pos_embed"])
    assert case.checked == set(case.expected)


@pytest.mark.parametrize(
    ("old", "rows", "new_time"), [((14, 14), slice(1, 13), 50), ((24, 24), slice(6, 18), 50)], ids=["224", "384"]
)
def test_frequencies_are_cut_out_of_the_middle_and_time_is_stretched(old, rows, new_time) -> None:
    """By hand, for the sizes of ESC-50: time from 14 or 24 patches to 50, then frequency from as many to 12."""
    table = torch.randn(1, 2 + old[0] * old[1], 3)
    got = positions_on(table, old, (12, new_time))
    lines = table[0, 2:].reshape(*old, 3)[rows]
    # Linear interpolation between the middles of patches, held at both ends.
    places = ((torch.arange(new_time) + 0.5) * old[1] / new_time - 0.5).clamp(0, old[1] - 1)
    left = places.floor().long()
    right, share = (left + 1).clamp(max=old[1] - 1), (places - left)[:, None]
    expected = lines[:, left] * (1 - share) + lines[:, right] * share
    torch.testing.assert_close(got[0, 2:].reshape(12, new_time, 3), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(got[:, :2], table[:, :2])


def test_positions_of_audioset_are_cut_in_time_and_frequencies_can_be_stretched() -> None:
    table = torch.randn(1, 2 + 12 * 101, 3)
    plane = table[:, 2:].reshape(12, 101, 3)
    assert torch.equal(positions_on(table, (12, 101), (12, 50))[:, 2:], plane[:, 25:75].reshape(1, -1, 3))
    assert positions_on(table, (12, 101), (12, 101)).equal(table)
    taller = positions_on(table, (12, 101), (15, 101))[:, 2:].reshape(15, 101, 3)
    expected = F.interpolate(plane.permute(2, 0, 1)[None], size=(15, 101), mode="bilinear", align_corners=False)
    torch.testing.assert_close(taller, expected[0].permute(1, 2, 0))


def test_the_mean_of_both_tokens_is_classified_behind_a_norm_of_its_own() -> None:
    backbone, inputs = tiny(), torch.randn(2, 1, 48, 64)
    net = backbone.net
    with torch.no_grad():
        output = backbone(inputs)
        tokens = net.forward_features(inputs)
        pooled = (tokens[:, 0] + tokens[:, 1]) / 2
        weight, bias = net.head_norm.weight, net.head_norm.bias
        expected = net.head(F.layer_norm(pooled, (24,), weight, bias, 1e-5))
    torch.testing.assert_close(output.prediction, expected)
    net.set_distilled_training(True)  # as for a distilled DeiT, which then answers twice
    assert isinstance(net.train()(inputs), Tensor) and backbone(inputs).distilled is None


def test_patches_are_numbered_frequency_by_frequency() -> None:
    backbone = tiny(stride=[16, 16], img_size=[32, 64])  # patches apart
    inputs = torch.zeros(1, 1, 32, 64)
    silent = backbone.net.patch_embed(inputs)
    inputs[:, :, 16:32, 0:16] = 1  # high frequencies at the beginning
    changed = (backbone.net.patch_embed(inputs) - silent).abs().sum(dim=-1) > 0
    assert changed.nonzero().tolist() == [[0, 4]] and backbone.input.patch == (1, 16, 16)


# --- as published ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "giga"),
    [("base384", None, 57.99), ("base", 500, 47.45), ("base", 300, 27.48), ("small", None, 16.21)],
)
def test_multiply_accumulates(name: str, kept: int | None, giga: float) -> None:
    network = build(f"ast_{name}", num_classes=50, meta=True)
    assert network.macs(kept).total / 1e9 == pytest.approx(giga, abs=0.006)
    traced = traced_macs(network, network.input.shape, kept)
    assert (traced.other, traced.total) == (network.macs(kept, layernorm=False).total, network.macs(kept).total)


def test_the_networks_and_what_they_take() -> None:
    network = with_tokens(build("ast_base384", num_classes=50, meta=True))
    spec = network.input
    assert spec.shape == (1, 128, 512) and spec.sound and spec.patch is None
    assert spec.mean == (-6.6268077,) and spec.std == (2 * 5.358466,)  # ESC-50's
    assert network.grid == TokenGrid(1, 12, 50) and (network.specials, network.depth, network.width) == (2, 12, 768)
    norms = {name: part.eps for name, part in network.net.named_modules() if isinstance(part, torch.nn.LayerNorm)}
    assert norms.pop("head_norm") == 1e-5 and set(norms.values()) == {1e-6}
    with torch.device("meta"):
        deit = timm.create_model("deit_base_distilled_patch16_224", num_classes=0)
    own = {name for name in network.net.state_dict() if not name.startswith(("head.", "head_norm."))}
    assert own == set(deit.state_dict())
    assert record_of(network.net).args == {"num_classes": 50}


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [("audioset", -4.2677393, 2 * 4.5689974), ([-5.0, 4.0], -5.0, 8.0), ("esc50", -6.6268077, 2 * 5.358466)],
    ids=["audioset", "own", "esc50"],
)
def test_statistics_of_other_data(given: Any, mean: float, std: float) -> None:
    network = tiny(statistics=given)
    assert (network.input.mean, network.input.std) == ((mean,), (std,))
    record = record_of(network.net)
    assert (record.mean, record.std, record.args["statistics"]) == ([mean], [std], given)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"statistics": "esc"}, "statistics must be esc50, audioset, or mean .*; got 'esc'.*'esc50'"),
        ({"statistics": [-5.0]}, "statistics must be"),
        ({"statistics": [-5.0, 0.0]}, "statistics must be"),
        ({"img_size": 64}, "two numbers, mel bins and frames; got 64"),
        ({"img_size": [8, 64]}, "room for a patch.*; got 8x64 mel bins x frames, patches of 16x16 every 10x10"),
        ({"stride": 0}, "a stride of at least 1"),
        ({"global_pool": "avg"}, "reads the mean of class and distillation token; got avg"),
        ({"colour": 3}, "ast_tiny cannot be built with"),
    ],
    ids=["name", "one_number", "no_deviation", "one_size", "too_small", "stride", "pool", "unknown"],
)
def test_what_cannot_be_built_is_said(args: dict[str, Any], words: str, unchecked: None) -> None:
    with pytest.raises(UserError, match=words) as error:
        build("ast_tiny", args={**TINY, **args})
    assert "\n" not in str(error.value)


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match="Did you mean 'ast_small'"):
        build("ast_smal")


# --- ImageNet's weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [("tiny", "deit_tiny_distilled_patch16_224"), ("base384", "deit_base_distilled_patch16_384")],
    ids=["tiny", "base384"],
)
def test_it_begins_as_deit(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With timm's weights made up, at their own shapes but for the depth, which nothing here depends on."""
    asked: list[str] = []

    def made_up(model: str) -> dict[str, Tensor]:
        asked.append(model)
        with torch.device("meta"):
            shapes = timm.create_model(model, num_classes=0, depth=1).state_dict()
        return {key: torch.full(value.shape, 0.5) for key, value in shapes.items()}

    monkeypatch.setattr(ast, "image_weights", made_up)
    monkeypatch.setitem(ast.FIXED, "depth", 1)
    monkeypatch.setattr("vitdistill.models.build.hub_in_reach", lambda: None)
    body = build(f"ast_{name}", args={"depth": 1}, pretrained=True)
    assert asked == [source] and body.num_classes == 0
    assert body.net.patch_embed.proj.weight[0, 0, 0, 0].item() == 1.5  # the sum of three colours
    assert body.net.pos_embed.shape[1] == 602 and bool((body.net.pos_embed == 0.5).all())
    student = build(f"ast_{name}", args={"depth": 1}, num_classes=50, pretrained=True)
    assert student.num_classes == 50 and has_new_head(student.net) and not record_of(student.net).classes


def test_imagenets_weights_have_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdistill.models.build.hub_in_reach", lambda: None)
    with pytest.raises(UserError, match="an ast_tiny of DeiT's own sizes; got embed_dim 24, depth 2. Leave it out"):
        build("ast_tiny", args={"embed_dim": 24, "depth": 2}, pretrained=True)


# --- what becomes of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 5])
def test_a_fresh_classifier_for_other_classes(classes: int) -> None:
    body = tiny(num_classes=classes)
    network = finetunable(body, 3, new_head=bool(classes), head_init=1.0)
    assert isinstance(network.net, AST) and network.num_classes == 3 and network.net.global_pool == "token"
    assert torch.equal(network.net.head_norm.weight, torch.ones(24))  # the norm is the classifier's
    for name, value in body.net.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(network.net.state_dict()[name], value)
    assert build(record_of(network.net).architecture, args=record_of(network.net).args).grid == body.grid


def test_other_uses_that_it_has_no_place_for() -> None:
    body = tiny()
    with pytest.raises(UserError, match="reads the mean of class and distillation token"):
        finetunable(body, 3, pool="avg", new_head=True)
    with pytest.raises(UserError, match="reads the class token of a ViT"):
        linear_only(body, 3, "cls")
    with pytest.raises(UserError, match="Pixels are predicted of patches that do not overlap"):
        MAE(body)
