"""Images and masks stay together, whatever is done to them."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EvalBatchSampler
from vitdistill.data.samples import ViewOptions
from vitdistill.data.segments.device import SegmentsOnDevice
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.data.segments.masks import IGNORED, PADDING
from vitdistill.data.segments.samples import Segmented
from vitdistill.data.segments.scenes import scene_segments
from vitdistill.data.segments.sizes import scaled_size, scored_size
from vitdistill.data.segments.transforms import TrainTransform, ValTransform, distorted
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

SPEC = InputSpec((3, 48, 48), (0.5,) * 3, (0.5,) * 3)


def halves(height: int = 40, width: int = 60) -> Segmented:
    """Left black and class 0, right white and class 1."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 1
    return Segmented(Image.fromarray(mask * 255).convert("RGB"), mask)


def test_sizes_are_those_of_the_published_protocol() -> None:
    assert scored_size((512, 683), (512, 512)) == (512, 683)
    assert scaled_size((1000, 1500), (512, 512), 0.5) == (256, 384)
    assert scaled_size((300, 3000), (512, 512)) == (205, 2048), "the longer side has a limit of its own"
    assert scored_size((300, 3000), (512, 512)) == (512, 5115)
    assert scored_size((48, 48), (48, 48)) == (48, 48)


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_is_of_the_image_and_its_mask_alike(seed: int) -> None:
    torch.manual_seed(seed)
    image, mask = TrainTransform((32, 32), (0.5, 2.0), hflip=0.5)(halves())
    assert image.shape == (3, 32, 32) and mask.shape == (32, 32) and image.dtype == mask.dtype == torch.uint8
    inside = mask != PADDING
    assert {0, 1} <= set(mask.unique().tolist()), "a crop with one class is drawn anew"
    differ = ((image[0] > 127).long() != mask.long()) & inside
    assert differ.float().mean() < 0.1, "but for the border, where pixels are mixed"
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert inside[:rows, :columns].all() and inside.sum() == rows * columns, "padding is right and below"


def test_padding_is_0_behind_normalisation_and_ignored() -> None:
    torch.manual_seed(0)
    image, mask = TrainTransform((32, 32), (0.5, 0.5))(halves())
    assert (mask == PADDING).any()
    images, targets = SegmentsOnDevice(Augment(recipe="none"), SPEC.mean, SPEC.std, 2).train(image[None], mask[None])
    assert torch.equal(targets[0] == IGNORED, mask == PADDING) and not (targets == PADDING).any()
    assert (images[0][:, mask == PADDING] == 0).all() and (
        images[0][:, mask != PADDING].abs() > 0.9
    ).float().mean() > 0.9


def test_masks_are_never_interpolated_and_stay_as_they_are_in_validation() -> None:
    sample = halves(20, 31)
    image, mask = ValTransform((16, 16))(sample)
    assert image.shape == (3, 16, 25) and np.array_equal(mask.numpy(), sample.mask)
    torch.manual_seed(3)
    assert set(TrainTransform((32, 32), (1.7, 1.7))(sample)[1].unique().tolist()) <= {0, 1, PADDING}


def test_images_of_different_sizes_are_filled_up_in_a_batch() -> None:
    scenes = scene_segments(SegmentFiles(), sizes=(2, 2)).val
    scenes._drawn = {0: (np.zeros((30, 40, 3), np.uint8), np.ones((30, 40), np.uint8))}
    scenes.load(1)
    transform = scenes.transform(SPEC, ViewOptions(augment=Augment(recipe="none")), train=False)
    (batch,) = make_loader(scenes, transform, EvalBatchSampler(2, 2), seed=0)
    assert batch.images.shape == (2, 3, 48, 64) and batch.targets.shape == (2, 48, 48)
    assert (batch.targets[0, :30, :40] == 1).all() and (batch.targets[0] == PADDING).sum() == 48 * 48 - 30 * 40
    assert batch.sizes.tolist() == [[48, 64], [48, 48]]


def test_colours_change_and_nothing_moves() -> None:
    image = torch.full((3, 8, 8), 90, dtype=torch.uint8)
    image[0] = 200
    torch.manual_seed(0)
    made = torch.stack([distorted(image, 0.5) for _ in range(40)]).float()
    assert (made.flatten(2).std(dim=2) == 0).all(), "one colour stays one colour"
    spread = made.mean(dim=(2, 3))
    assert len({tuple(colour.tolist()) for colour in spread.round()}) > 20
    assert spread[:, 0].median() > spread[:, 1].median()


def test_scenes_have_a_background_and_ten_digits() -> None:
    source = scene_segments(SegmentFiles(), sizes=(3, 2))
    image, mask = source.train.load(1)[0]
    assert source.classes == ["background", *"0123456789"] and source.image_size == 48
    assert image.size == (48, 48) and 0 < (mask > 0).mean() < 0.5 and mask.max() <= 10
    transform = source.train.transform(SPEC, ViewOptions(augment=Augment(recipe="none")), train=True)
    assert transform.ratio == (0.9, 1.25) and transform.hflip == 0
    with pytest.raises(UserError, match="--segments.classes has no effect on the bundled scenes"):
        scene_segments(SegmentFiles(classes=11))


def test_augmentation_that_would_part_image_and_mask_is_refused() -> None:
    samples = scene_segments(SegmentFiles(), sizes=(1, 1)).train
    for augment, words in (
        (Augment(recipe="deit"), "scale, auto_augment, mixup or cutmix, erasing, smoothing, crop_pct"),
        (Augment(recipe="none", interpolation="bicubic"), "interpolation"),
    ):
        with pytest.raises(UserError, match=f"repeats only .and --segments.ratio.; got {words}"):
            samples.transform(SPEC, ViewOptions(augment=augment), train=True)
    with pytest.raises(UserError, match="read as RGB, for networks with 3 channels; got in_chans 1"):
        samples.transform(InputSpec((1, 8, 8), (0.5,), (0.5,)), ViewOptions(augment=Augment(recipe="none")), train=True)
