"""Training on labels alone, and with patches left out at random."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build
from vitdistill.tasks.actions import Actions
from vitdistill.tasks.classification import Classification
from vitdistill.tokens.keep import keep_count

TARGETS = torch.tensor([1, 0, 9])
CLIPS: dict[str, Any] = {"img_size": 32, "patch_size": 8, "frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def entering(block: nn.Module, run: Callable[[], object]) -> Tensor:
    """The tokens that enter a block while something runs."""
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    run()
    handle.remove()
    (tokens,) = seen
    return tokens


@pytest.mark.parametrize("family", ["vit", "registers", "clip", "dinov3", "rope_mixed"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.95])
def test_it_is_what_timms_patch_dropout_is(family: str, rate: float, images: Tensor) -> None:
    """As many patches and all special tokens; and of the patches that timm draws, the same scores."""
    theirs = tiny(family, patch_drop_rate=rate).train()
    method = Supervised(tiny(family), patch_drop=rate).train()
    torch.manual_seed(0)
    dropped = entering(theirs.blocks[0], lambda: theirs(images))
    ours = entering(method.student.net.blocks[0], lambda: method(images, TARGETS))
    assert ours.shape == dropped.shape
    specials = theirs.num_prefix_tokens
    torch.testing.assert_close(ours[:, :specials], dropped[:, :specials])
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = theirs(images)
        torch.manual_seed(seed)
        drawn = torch.randn(3, 16).argsort(dim=-1)[:, : dropped.shape[1] - specials]
        got = method.student(images, keep=drawn).prediction
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_both_special_tokens_of_a_distilled_network_stay(images: Tensor) -> None:
    """timm's own patch dropout takes the distillation token for a patch."""
    method = Supervised(tiny("deit_distilled"), patch_drop=0.75).train()
    blocks = method.student.net.blocks
    ours = entering(blocks[0], lambda: method(images, TARGETS))
    whole = entering(blocks[0], lambda: method.student(images))
    assert ours.shape[1] == 2 + 4 and torch.equal(ours[:, :2], whole[:, :2])


@pytest.mark.parametrize(("rate", "kept"), [(0.01, None), (0.1, 14), (0.5, 8), (0.75, 4), (0.99, 1)])
def test_the_number_of_patches_is_that_of_keep(rate: float, kept: int | None, images: Tensor) -> None:
    method = Supervised(tiny("deit"), patch_drop=rate).train()
    step = method(images, TARGETS)
    assert method.kept_patches(0.3) == kept == method.passes(0.3)[0].kept
    assert (kept or 16) == keep_count(1 - rate, 16)
    assert (None if step.kept is None else step.kept.shape) == (None if kept is None else (3, kept))
    assert method.masked is method.student


def test_every_image_and_step_has_a_selection_of_its_own_and_all_patches_have_their_turn(images: Tensor) -> None:
    torch.manual_seed(0)
    method = Supervised(tiny("deit"), patch_drop=0.5).train()
    one, other = (method(images, TARGETS).kept for _ in range(2))
    assert len({tuple(row) for row in (*one.tolist(), *other.tolist())}) == 6
    drawn = method._draw(torch.zeros(4000, 3, 1, 1))
    counts = drawn.flatten().bincount(minlength=16)
    assert int((counts - 2000).abs().max()) < 200, "every patch is kept in half of the images"


def test_the_same_seed_draws_the_same_patches(images: Tensor) -> None:
    method = Supervised(tiny("deit"), patch_drop=0.5).train()
    steps = [method(images, TARGETS) for seed in (3, 3, 4) if torch.manual_seed(seed)]
    assert torch.equal(steps[0].kept, steps[1].kept) and torch.equal(steps[0].loss, steps[1].loss)
    assert not torch.equal(steps[0].kept, steps[2].kept)


def test_without_it_nothing_is_drawn_and_nothing_is_masked(images: Tensor) -> None:
    method = Supervised(tiny("deit"), task=Classification(10)).train()
    before = torch.random.get_rng_state()
    step = method(images, TARGETS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert step.kept is None and method.masked is None and method.kept_patches(0.0) is None
    assert torch.equal(step.prediction, tiny("deit").train()(images))
    assert torch.equal(step.loss, nn.functional.cross_entropy(step.prediction, TARGETS))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"patch_drop must lie in \[0, 1\); got"):
        Supervised(tiny("deit"), patch_drop=rate)


def test_what_cannot_be_done_without_patches_is_refused() -> None:
    for net, why in ((tiny("swin"), "windows"), (nn.Conv2d(3, 10, 32), "patches are not known")):
        net.num_classes = 10
        with pytest.raises(UserError, match=rf"cannot leave out patches \(.*{why}.*\); got patch_drop 0.5\. .*a ViT"):
            Supervised(net, patch_drop=0.5)
        assert Supervised(net).patch_drop == 0
    actions = Actions(classes=3)
    network = actions.with_head(build("video_vit_small_patch16_224", args=CLIPS, num_classes=0))
    with pytest.raises(UserError, match=r"actions reads its answer out of the whole grid.*got patch_drop 0\.5"):
        Supervised(network, task=actions, patch_drop=0.5)
    Supervised(network, task=actions)


@pytest.mark.parametrize("family", ["deit", "dinov3"])
def test_a_network_that_drops_patches_by_itself_does_not_drop_them_twice(family: str, images: Tensor) -> None:
    net = tiny(family, patch_drop_rate=0.5)
    with pytest.raises(UserError, match=r"drops patches by itself \(patch_drop_rate\).*Build it without"):
        Supervised(net, patch_drop=0.5)
    Supervised(net).train()(images, TARGETS)
