"""What adapters of networks that label pixels promise. A new family is one line in `FAMILIES`."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitdistill.errors import UserError
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build, rebuild
from vitdistill.models.families import as_network
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.families.pixels import PixelViT
from vitdistill.models.merged import Merged
from vitdistill.models.record import record_of
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.models.surgery.linear_head import with_linear_head
from vitdistill.models.teacher import Teacher
from vitdistill.types import QKV, Capture, Point, TokenGrid

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "segmenter": ("segmenter_tiny", {**SMALL, "decoder_heads": 2}),
    "segmenter, linear": ("segmenter_tiny", {**SMALL, "decoder": "linear"}),
    "upernet": ("upernet_vit_tiny", {**SMALL, "num_heads": [3, 3, 4], "channels": 16}),
    "upernet, wide": ("upernet_vit_tiny_star", {**SMALL, "channels": 16}),
}
ALL: tuple[Point, ...] = ("qkv", "attention", "attention_residual", "ffn", "output")
KEEP = torch.tensor([[0, 3, 4, 9, 12], [1, 2, 5, 6, 15], [0, 1, 2, 3, 4]])


def pixels(family: str) -> PixelViT:
    """A network whose every parameter is random, in eval mode."""
    name, args = FAMILIES[family]
    torch.manual_seed(0)
    network = build(name, args=dict(args), num_classes=5)
    assert isinstance(network, PixelViT)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(params=FAMILIES)
def network(request: pytest.FixtureRequest) -> PixelViT:
    return pixels(request.param)


def test_it_describes_itself(network: PixelViT) -> None:
    assert network.grid == TokenGrid(1, 4, 4) and network.input.size == (32, 32) and network.num_classes == 5
    assert (network.depth, network.width, network.specials) == (3, 24, 2 if "star" in network.name else 1)
    assert network.input.patch == (1, 8, 8) and network.reads_grid and network.maskable


@pytest.mark.parametrize("training", [False, True])
def test_all_patches_are_bit_identical_to_the_untouched_network(
    network: PixelViT, images: Tensor, training: bool
) -> None:
    network.train(training)
    torch.manual_seed(1)
    expected = network.net(images)
    torch.manual_seed(1)
    output = as_network(network.net)(images)
    first, second = expected if isinstance(expected, tuple) else (expected, None)
    assert torch.equal(output.prediction, first) and output.prediction.shape == (3, 5, 32, 32)
    assert output.distilled is second is None or torch.equal(output.distilled, second)
    assert output.final.all.shape == (3, network.specials + 16, 24) and output.grid == network.grid


def test_keeping_every_patch_changes_nothing_and_fewer_are_refused(network: PixelViT, images: Tensor) -> None:
    every = torch.arange(16).expand(3, -1)
    whole = network(images).prediction
    assert torch.equal(network(images, keep=every).prediction, whole)
    torch.testing.assert_close(network(images, keep=every.flip(1)).prediction, whole, rtol=1e-4, atol=3e-5)
    with pytest.raises(UserError, match="reads the whole grid of patches.*got 5 of 16 patches") as caught:
        network(images, keep=KEEP)
    assert "\n" not in str(caught.value)


def test_a_teachers_maps_come_in_the_order_of_the_datas_classes(network: PixelViT, images: Tensor) -> None:
    teacher = Teacher(network)
    teacher.order = torch.tensor([4, 0, 2, 1, 3])
    assert torch.equal(teacher(images).prediction, network(images).prediction[:, teacher.order])


def decoder_runs(network: PixelViT) -> list[int]:
    """Filled by every run of the decoder, or of a part of it."""
    ran: list[int] = []
    for part in network.net.decoder.modules():
        part.register_forward_hook(lambda *_: ran.append(1))
    return ran


@pytest.mark.parametrize("keep", [None, KEEP], ids=["whole", "masked"])
def test_a_pass_without_its_head_gives_the_same_blocks_and_runs_no_decoder(
    network: PixelViT, images: Tensor, keep: Tensor | None
) -> None:
    capture = Capture(frozenset((block, point) for block in (0, -1) for point in ALL), head=False)
    ran = decoder_runs(network)
    early = network(images, keep=keep, capture=capture)
    assert not ran and early.prediction is None and early.final is None and set(early.captured) == capture.points
    if keep is None:
        whole = network(images, capture=Capture(capture.points))
        assert ran
        for asked in capture.points:
            for one, other in zip(early.captured[asked], whole.captured[asked], strict=True):
                assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    else:
        assert early.tokens(-1).all.shape == (3, network.specials + 5, 24) and torch.equal(early.kept, KEEP)
    hooked = (part for part in network.net.encoder.modules() if part._forward_hooks or part._forward_pre_hooks)
    assert not list(hooked)


def test_a_masked_segmenter_is_its_encoder_masked(images: Tensor) -> None:
    network, capture = pixels("segmenter"), Capture.at(-1, "output", head=False)
    plain = as_network(network.net.encoder)
    got, expected = (one(images, keep=KEEP, capture=capture).tokens(-1).all for one in (network, plain))
    assert torch.equal(got, expected)


ENDS = [
    Capture(),
    Capture(head=False),
    *(Capture.at(block, point, head=False) for block in (0, -1) for point in ("qkv", "output")),
]
ENDED = ["head", "nothing", "0-qkv", "0-output", "-1-qkv", "-1-output"]


@pytest.mark.parametrize("capture", ENDS, ids=ENDED)
def test_the_macs_of_a_pass_are_those_that_torch_counts(network: PixelViT, images: Tensor, capture: Capture) -> None:
    for keep in (None,) if capture.head else (None, KEEP):
        with FlopCounterMode(display=False) as counter:
            network(images, keep=keep, capture=capture)
        kept = None if keep is None else 5
        assert 3 * network.macs(kept, capture, layernorm=False).total == counter.get_total_flops() / 2


@pytest.mark.parametrize("capture", ENDS[2:], ids=ENDED[2:])
def test_what_a_pass_reaches_is_what_autograd_reaches(network: PixelViT, images: Tensor, capture: Capture) -> None:
    output, read = network(images, capture=capture), []
    for tokens in output.captured.values():
        read += [tokens.q, tokens.k, tokens.v] if isinstance(tokens, QKV) else [tokens.all]
    sum(value.square().sum() for value in read).backward()
    reached = {parameter for parameter in network.parameters() if parameter.grad is not None and parameter.grad.any()}
    assert network.reached(capture) == reached


def test_a_prediction_in_training_reaches_every_parameter(network: PixelViT, images: Tensor) -> None:
    """DDP waits for the gradient of every parameter that trains."""
    output = network.train()(images)
    heads = [output.prediction, *([] if output.distilled is None else [output.distilled])]
    torch.stack(heads).square().sum().backward()
    assert network.reached(Capture()) == set(network.parameters())
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert network.head_parameters == set(network.net.decoder.parameters())


@pytest.mark.parametrize("kind", ["cls", "patch"])
def test_saliency_is_of_all_patches_and_detached(network: PixelViT, images: Tensor, kind: Any) -> None:
    output = network(images.requires_grad_(), capture=network.saliency_capture(-1, kind))
    scores = network.saliency(output, -1, kind)
    assert scores.shape == (3, 16) and scores.dtype == torch.float32 and not scores.requires_grad
    assert bool((scores >= 0).all()) and bool((scores.sum(dim=1) <= 1 + 1e-5).all())


def test_gradient_checkpointing_gives_the_same_gradients(network: PixelViT, images: Tensor) -> None:
    gradients = []
    for recompute in (False, True):
        one = copy.deepcopy(network)
        one.net.set_grad_checkpointing(recompute)
        for part in one.modules():  # as in training, where that draws nothing at random
            part.training = not isinstance(part, nn.Dropout2d | nn.BatchNorm2d)
        torch.manual_seed(2)
        one(images).prediction.square().sum().backward()
        gradients.append([parameter.grad for parameter in one.net.encoder.parameters()])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_copies_and_records_give_the_same(network: PixelViT, images: Tensor) -> None:
    expected = network(images).prediction
    again = rebuild(record_of(network.net))
    again.net.load_state_dict(network.net.state_dict())
    for one in (again.eval(), pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(one(images).prediction, expected)


def test_what_needs_the_head_of_a_masked_network_is_refused_before_the_first_step(network: PixelViT) -> None:
    """A masked student with labels, tokens that are merged, and a pass up to the head of a masked teacher."""
    teacher = Teacher.of(copy.deepcopy(network), network)
    with pytest.raises(UserError, match="reads the whole grid of patches.*got keep 0.5"):
        Ranked(keep=0.5, mask="student").check(network, teacher)
    Ranked(keep=0.5).check(network, teacher)  # a teacher whose blocks are compared
    with pytest.raises(UserError, match="Tokens can be merged in .*, which labels pixels"):
        Merged.over(network, 2)


def test_it_is_no_classifier_of_images(network: PixelViT) -> None:
    with pytest.raises(
        UserError, match="must say what a whole image shows; got .*, which labels pixels. Give --task segm"
    ):
        Supervised(network)
    for refused in (
        lambda: finetunable(network, 5, new_head=True),
        lambda: linear_only(network, 5),
        lambda: with_linear_head(network, "cls", torch.zeros(5, 24), torch.zeros(5)),
    ):
        with pytest.raises(UserError) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert record_of(network.net).beyond_timm == "a decoder that labels pixels"
