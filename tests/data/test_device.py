import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN as MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as STD

from vitdistill.data import Augment
from vitdistill.data.device import OnDevice
from vitdistill.data.order import seed_everything_at
from vitdistill.errors import UserError

CLASSES = 5


def on_device(**options) -> OnDevice:
    return OnDevice(Augment(**options), MEAN, STD, CLASSES)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return images, torch.arange(8) % CLASSES


def test_normalisation(batch):
    images, targets = batch
    before = images.clone()
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    expected = (images.double() / 255 - mean) / std
    normalised, same_targets = on_device(recipe="none").train(images, targets)
    torch.testing.assert_close(normalised.double(), expected, rtol=1e-6, atol=1e-6)
    assert normalised.dtype == torch.float32 and same_targets is targets and torch.equal(images, before)
    assert torch.equal(on_device(recipe="deit").eval(images), normalised), "validation is never erased or mixed"
    assert on_device().eval(images[:0]).shape == (0, 3, 16, 16)


def test_mixed_targets_are_distributions_with_smoothing(batch):
    images, targets = batch
    step = on_device(recipe="deit")
    mixed_any = False
    for seed in range(8):
        seed_everything_at(seed)
        mixed, soft = step.train(images, targets)
        assert soft.shape == (8, CLASSES) and mixed.shape == images.shape
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        assert soft.min() >= 0.1 / CLASSES - 1e-6
        mixed_any |= bool((soft.max(1).values < 0.85).any())
    assert mixed_any


def test_targets_follow_the_images_under_mixup():
    # One constant image per class: the mixing share can be read off the pixels and must be that of the targets.
    images = (torch.arange(4, dtype=torch.uint8) * 60).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    step = OnDevice(
        Augment(recipe="none", mixup=0.8, cutmix=1.0), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), num_classes=4
    )
    values = torch.arange(4.0) * 60
    for seed in range(6):
        seed_everything_at("mix", seed)
        mixed, soft = step.train(images, torch.arange(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ values, rtol=1e-4, atol=1e-2)


def test_erasing_changes_about_the_asked_share_of_images(batch):
    images, targets = batch
    images = images.repeat(32, 1, 1, 1)
    seed_everything_at(1)
    step = on_device(recipe="none", erasing=0.25)
    erased, _ = step.train(images, targets.repeat(32))
    changed = (erased != step.eval(images)).flatten(1).any(1).float().mean()
    assert 0.15 < changed < 0.35


def test_a_step_repeats_from_its_seed(batch):
    def run(*keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed_everything_at(*keys)
        return on_device(recipe="deit").train(*batch)

    first, again, other = run(3, 7), run(3, 7), run(3, 8)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_odd_batches_are_refused_early_when_mixing(batch):
    images, targets = batch
    with pytest.raises(UserError, match=r"even batch size per process; got 7.*--augment.mixup 0"):
        on_device(recipe="deit").check_batch_size(7)
    with pytest.raises(UserError, match="even batch size"):
        on_device(recipe="deit").train(images[:7], targets[:7])
    on_device(recipe="deit").check_batch_size(8)
    on_device().check_batch_size(7)
    assert len(on_device().train(images[:7], targets[:7])[0]) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_step_repeats_and_never_waits_for_the_device(batch):
    images, targets = (part.cuda() for part in batch)
    step = on_device(recipe="deit")
    step.train(images, targets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes = []
        for _ in range(2):
            seed_everything_at(3, 7)
            outcomes.append(step.train(images, targets))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and torch.equal(outcomes[0][1], outcomes[1][1])


# --- clips --------------------


def test_clips_are_normalised_and_mixed_alike_in_every_frame():
    clips = torch.randint(0, 256, (4, 3, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clips[:, :, 1] = clips[:, :, 0]  # still pictures stay still, whatever is erased or mixed
    options = Augment(recipe="none", mixup=0.8, cutmix=1.0, smoothing=0.1)
    on_device = OnDevice(options, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 10)
    frames = on_device.eval(clips[:, :, 0])
    assert torch.equal(on_device.eval(clips)[:, :, 1], frames)
    for seed in range(4):
        seed_everything_at(seed, "clips")
        mixed, targets = on_device.train(clips, torch.arange(4))
        assert mixed.shape == clips.shape and targets.shape == (4, 10)
        assert torch.equal(mixed[:, :, 0], mixed[:, :, 1]) and not torch.equal(mixed[:, :, 0], frames)


# --- several views --------------------


def test_several_views_are_normalised_each_by_itself(batch):
    images, targets = batch
    views = (images[:, :, :4, :6], images[:, :, None].expand(-1, -1, 2, -1, -1))
    normalised, same_targets = on_device(recipe="none").train(views, targets)
    assert same_targets is targets and [view.shape for view in normalised] == [view.shape for view in views]
    for view, one in zip(views, normalised, strict=True):
        assert torch.equal(one, on_device().eval(view))
    assert all(torch.equal(a, b) for a, b in zip(on_device().eval(views), normalised, strict=True))
    seed_everything_at(1)
    erased, _ = on_device(recipe="none", erasing=1.0).train((images, images), targets)
    assert not torch.equal(erased[0], erased[1])


def test_several_views_and_what_has_no_labels_cannot_be_mixed(batch):
    images, targets = batch
    for wrong in ((images, images), targets), (images, None):
        with pytest.raises(ValueError, match="Only single views with labels can be mixed"):
            on_device(recipe="deit").train(*wrong)
    assert on_device(recipe="none").train(images, None)[1] is None
