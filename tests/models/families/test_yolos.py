"""YOLOS: the authors' values, patches left out with their positions, images of any size, and the published cost."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from golden_values import Golden
from tiny import DETECTORS, tiny
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.families.yolos import Yolos, resize_patches, resize_table
from vitdistill.models.macs import traced_macs
from vitdistill.models.merged import Merged
from vitdistill.models.network import Network
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.models.surgery.linear_head import with_linear_head
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.gather import take
from vitdistill.types import Capture, TokenGrid

SIZES = [(32, 32), (40, 24), (16, 64)]  # the second and third on other grids, the third with as many patches


@pytest.fixture(params=DETECTORS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


def images_of(size: tuple[int, int], b: int = 2) -> Tensor:
    return torch.randn(b, 3, *size, generator=torch.Generator().manual_seed(1))


@cache
def published(size: str) -> Backbone:
    """Without weights, of VOC's classes."""
    return with_tokens(build(f"yolos_{size}", meta=True, num_classes=20))


# --- the authors' values --------------------


def test_predictions_and_positions_are_the_authors(golden: Callable[[str], Golden]) -> None:
    case = golden("yolos_a")
    hyper: dict[str, Any] = case.hyper
    args = {name: hyper[name] for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    sizes = {"img_size": hyper["init_pe_size"], "mid_size": hyper["mid_pe_size"]}
    net = Yolos(**args, **sizes, num_classes=4, mid_positions=True, det_tokens=hyper["det_token_num"])
    net.load_state_dict({name.removeprefix("backbone."): value for name, value in case.part("model").items()})
    backbone = build(net.eval())
    with torch.no_grad():
        for size in ("native", "other_size"):
            prediction = backbone(case.inputs[f"image_{size}"]).prediction
            case.check(f"logits_{size}", prediction[..., :-4])
            case.check(f"boxes_{size}", prediction[..., -4:])
        for table, own in ((net.pos_embed, net.table_grid), (net.mid_pos_embed, net.mid_grid)):
            name = "pos_embed" if table is net.pos_embed else "mid_pos_embed"
            case.check(f"{name}_other_size", resize_table(table, own, (6, 4), net.det_tokens))
    before = case.inputs["pretraining_pos_embed"]
    moved = torch.cat((before[:, :1], resize_patches(before[:, 1:], (4, 4), (5, 6))), dim=1)
    case.check("finetune_det_pos_embed_cls_and_patches", moved)


# --- patches left out, and sizes --------------------


def in_stored_order(net: Any, images: Tensor, keep: Tensor) -> Tensor:
    """[class token, kept patches, detection tokens], as the authors run them, written out sample by sample."""
    grid, q = (images.shape[2] // 8, images.shape[3] // 8), net.det_tokens
    tables = [resize_table(net.pos_embed, net.table_grid, grid, q)[0]]
    if net.mid_pos_embed is not None:
        tables += list(resize_table(net.mid_pos_embed, net.mid_grid, grid, q)[:, 0])
    found = []
    for image, row in zip(images, keep, strict=True):
        rows = torch.cat((torch.tensor([0]), row + 1, torch.arange(q) + 1 + grid[0] * grid[1]))
        start = torch.cat((net.cls_token[0], net.patch_embed(image[None])[0], net.det_token[0])) + tables[0]
        tokens = start[rows][None]
        for index, block in enumerate(net.blocks):
            tokens = block(tokens)
            if index < len(net.blocks) - 1 and len(tables) > 1:
                tokens = tokens + tables[index + 1][rows]
        det = net.norm(tokens)[:, -q:]
        found.append(torch.cat((net.class_embed(det), net.bbox_embed(det).sigmoid()), dim=-1))
    return torch.cat(found)


@pytest.mark.parametrize("size", SIZES)
def test_the_adapter_is_the_network_whatever_the_size(net: nn.Module, size: tuple[int, int]) -> None:
    images, backbone = images_of(size), with_tokens(build(net))
    with torch.no_grad():
        expected = net(images)
        output = backbone(images)
        every = torch.arange(size[0] * size[1] // 64).expand(2, -1)
        assert torch.equal(output.prediction, expected) and expected.shape == (2, 6, 15)
        assert torch.equal(backbone(images, keep=every).prediction, expected)
        torch.testing.assert_close(expected, in_stored_order(net, images, every), rtol=1e-5, atol=1e-5)
    assert output.grid == TokenGrid(1, size[0] // 8, size[1] // 8)
    assert backbone.grid == TokenGrid(1, 4, 4) and backbone.input.size == (32, 32)  # its own again


@pytest.mark.parametrize("size", SIZES)
def test_positions_between_the_blocks_go_along_with_the_patches_that_are_kept(
    net: nn.Module, size: tuple[int, int]
) -> None:
    images, count = images_of(size), size[0] * size[1] // 64
    keep = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(i))[:5] for i in range(2)])
    with torch.no_grad():
        output = build(net)(images, keep=keep)
        torch.testing.assert_close(output.prediction, in_stored_order(net, images, keep), rtol=1e-5, atol=1e-5)
        shuffled = build(net)(images, keep=keep.flip(1)).prediction
    torch.testing.assert_close(output.prediction, shuffled, rtol=1e-5, atol=1e-5)
    assert output.final.special.shape == (2, 7, 24) and output.final.patches.shape == (2, 5, 24)


def test_several_selections_of_each_image() -> None:
    backbone, images = build(tiny("yolos")), images_of((32, 32))
    keep = torch.stack([torch.arange(5) + i for i in range(4)])
    with torch.no_grad():
        got = backbone(images, keep=keep).prediction
        expected = backbone(images.repeat_interleave(2, dim=0), keep=keep).prediction
    torch.testing.assert_close(got, expected)


def test_within_fit_it_has_the_size_of_the_inputs() -> None:
    backbone = with_tokens(build(tiny("yolos")))
    with backbone.fit((40, 24)):
        assert backbone.grid == TokenGrid(1, 5, 3) and backbone.input.shape == (3, 40, 24)
        backbone(images_of((40, 24)))
        assert backbone.grid == TokenGrid(1, 5, 3)
    assert backbone.grid == TokenGrid(1, 4, 4)
    vit = with_tokens(build(tiny("vit")))
    with vit.fit((40, 24)):
        assert vit.grid == TokenGrid(1, 4, 4)  # whose size is fixed


@pytest.mark.parametrize("size", [(36, 32), (32, 4)])
def test_sizes_that_patches_do_not_fill_are_refused(size: tuple[int, int]) -> None:
    backbone = build(tiny("yolos"))
    with pytest.raises(
        UserError, match=f"whole patches of 8x8 pixels; got {size[0]}x{size[1]} pixels.*Use 32x"
    ) as error:
        backbone(images_of(size))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"img_size": 30}, "img_size of YOLOS must be whole patches"),
        ({"mid_size": 32}, "mid_size needs mid_positions"),
        ({"mid_positions": True, "mid_size": [32, 30]}, "mid_size of YOLOS must be whole patches"),
        ({"det_tokens": 0}, "det_tokens of YOLOS must be at least 1; got 0"),
    ],
)
def test_impossible_arguments_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build("yolos_tiny", args={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, **args})


def test_the_table_between_the_blocks_may_have_a_size_of_its_own() -> None:
    net = tiny("yolos", img_size=(40, 24), mid_size=(24, 32))
    assert net.pos_embed.shape == (1, 1 + 15 + 6, 24) and net.mid_pos_embed.shape == (2, 1, 1 + 12 + 6, 24)
    images, every = images_of((32, 32)), torch.arange(16).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(net(images), in_stored_order(net, images, every), rtol=1e-5, atol=1e-5)


# --- what it says of itself --------------------


def test_the_published_architectures() -> None:
    """Widths, depths and tables; parameters of the whole as the authors count them."""
    sizes = {"tiny": (192, 12, (50, 83), 0), "small": (384, 12, (32, 54), 11), "small_dwr": (330, 14, (32, 54), 13)}
    sizes["base"] = (768, 12, (50, 84), 11)  # on the meta device, where nothing is initialised
    for size, (width, depth, grid, tables) in sizes.items():
        network = published(size)
        net: Any = network.net
        assert (network.width, network.depth, net.table_grid, network.detections) == (width, depth, grid, 100)
        assert network.num_classes == 20 and net.class_embed.layers[2].out_features == 21
        assert tables == (0 if net.mid_pos_embed is None else len(net.mid_pos_embed))
    assert "yolos_small_dwr" in timm.list_models("yolos*")


def test_what_learns_slowly_and_what_does_not_decay(net: nn.Module) -> None:
    assert net.no_weight_decay() == {"pos_embed", "cls_token", "det_token"}
    groups = timm.models.group_parameters(net, net.group_matcher())
    first = next(names for names in groups.values() if "patch_embed.proj.weight" in names)
    assert {"cls_token", "pos_embed"} <= set(first) and not {"mid_pos_embed", "det_token"} & set(first)


def test_saliency_is_that_of_the_detection_tokens_unless_another_is_asked_for() -> None:
    backbone, images = with_tokens(build(tiny("yolos"))), images_of((32, 32))
    assert backbone.saliency_by_default == "det" and with_tokens(build(tiny("vit"))).saliency_by_default == "cls"
    output = backbone(images, capture=backbone.saliency_capture())
    assert torch.equal(backbone.saliency(output), backbone.saliency(output, kind="det"))
    assert not torch.allclose(backbone.saliency(output), backbone.saliency(output, kind="cls"))


def test_what_a_prediction_names() -> None:
    backbone = build(tiny("yolos"))
    prediction = torch.zeros(1, 3, 15)
    prediction[0, 0, 4] = prediction[0, 1, 10] = prediction[0, 2, 9] = 1.0  # class 4, no object, class 9
    assert backbone.named(prediction).tolist() == [[4, -1, 9]]
    order = torch.tensor([9, 4])  # the data has two of its classes
    chosen = backbone.in_order(prediction, order)
    assert chosen.shape == (1, 3, 2 + 1 + 4) and chosen[0, :, :3].argmax(-1).tolist() == [1, 2, 0]
    teacher = Teacher(backbone)
    teacher.order = order
    images = images_of((32, 32))
    assert torch.equal(teacher(images).prediction, backbone.in_order(backbone(images).prediction, order))


def test_a_teacher_takes_images_of_their_own_size() -> None:
    student, teacher = build(tiny("yolos")), build(tiny("yolos", seed=2, embed_dim=36))
    guide = Teacher.of(teacher, student)
    images = images_of((24, 40))
    assert torch.equal(guide(images).prediction, teacher(images).prediction)


def test_boxes_are_float32_in_half_precision(net: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(images_of((32, 32))).dtype == torch.float32
    assert net.bfloat16()(images_of((40, 24)).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "use",
    [
        lambda network: Merged.over(network, 2),
        lambda network: Supervised(network),
        lambda network: finetunable(network, 10),
        lambda network: finetunable(network, 5, new_head=True),
        lambda network: linear_only(network, 5),
        lambda network: with_linear_head(network, "cls", torch.zeros(5, 24), torch.zeros(5)),
    ],
)
def test_a_detector_is_no_classifier(use: Callable[[Network], Any]) -> None:
    with pytest.raises(UserError, match="; got yolos_tiny, which finds objects. ") as error:
        use(build(tiny("yolos")))
    assert "\n" not in str(error.value)


# --- cost --------------------

# GMACs of Ti and B with VOC's 20 classes, and of B with 75%, 50% and 25% of the patches.
COSTS = {
    (512, 672): (17.5, 162.4, 118.0, 77.8, 41.7),
    (512, 800): (22.7, 199.1, 143.0, 92.8, 48.4),
    (800, 1328): (106.6, 697.2, 466.2, 275.0, 123.3),
}


def test_the_cost_of_detection_resolutions() -> None:
    """2 d^2 for the hidden layers of each head, and d times what they put out, for 100 tokens."""
    small, base = published("tiny"), published("base")
    for size, costs in COSTS.items():
        patches = size[0] * size[1] // 256
        got = [small.macs(size=size).total, base.macs(size=size).total]
        got += [base.macs(int(patches * keep), size=size).total for keep in (0.75, 0.5, 0.25)]
        assert [value / 1e9 for value in got] == pytest.approx(costs, abs=0.06), size
    assert base.macs().head == 100 * (4 * 768**2 + 768 * (21 + 4))


def test_macs_of_a_size_are_those_that_torch_counts() -> None:
    backbone: Backbone = with_tokens(build(tiny("yolos")))
    size = (40, 24)
    for kept in (None, 5):
        traced = traced_macs(backbone, (3, *size), kept, layernorm=False).total
        assert backbone.macs(kept, layernorm=False, size=size).total == traced
    with backbone.fit(size):
        assert backbone.macs(size[0] * size[1] // 64).total == backbone.macs(size=size).total
    with pytest.raises(UserError, match="between 1 and 15"):
        backbone.macs(16, size=(40, 24))


def test_capturing_the_last_queries_stops_there() -> None:
    backbone, images = with_tokens(build(tiny("yolos"))), images_of((40, 24))
    early = backbone(images, capture=Capture.at(-1, "qkv", head=False))
    full = backbone(images, capture=Capture.at(-1, "qkv"))
    assert early.prediction is None and torch.equal(early.qkv(-1).q, full.qkv(-1).q)
    assert take(full.final.patches, torch.tensor([[14], [0]])).shape == (2, 1, 24)
