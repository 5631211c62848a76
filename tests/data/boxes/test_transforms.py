"""Boxes that move along with pixels, through flips, resizes and crops of the published recipes."""

from pathlib import Path

import numpy as np
import pytest
import torch

import box_trees
from vitdistill.data.boxes.files import BoxFiles
from vitdistill.data.boxes.resizing import RESIZINGS, resized, resizing_of
from vitdistill.data.boxes.sources import open_boxes
from vitdistill.data.device import OnDevice, blank_padding
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import make_loader
from vitdistill.data.order import EvalBatchSampler
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.types import InputSpec

SPEC = InputSpec((3, 48, 64), (0.5,) * 3, (0.5,) * 3, (1, 8, 8))
PLAIN = ViewOptions(augment=Augment(recipe="none"))
SMALL = BoxFiles(sides=[48, 64, 80], longest=120, eval_side=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    return open_boxes(box_trees.coco(tmp_path_factory.mktemp("coco")), SMALL)


@pytest.mark.parametrize(
    ("size", "recipe", "expected"),
    [
        ((375, 500), "voc", (512, 672)),
        ((500, 375), "voc", (672, 512)),
        ((300, 500), "voc", (480, 800)),
        ((480, 640), "coco", (800, 1056)),
        ((480, 640), "coco_tiny", (512, 672)),
        ((427, 640), "coco_tiny", (512, 752)),
    ],
    ids=["wide", "high", "long", "coco", "tiny", "tiny_long"],
)
def test_sizes_of_validation_are_whole_patches(size: tuple[int, int], recipe: str, expected: tuple[int, int]) -> None:
    sizes = RESIZINGS[recipe]
    assert resized(size, sizes.eval_side, sizes.eval_longest, (16, 16)) == expected


def test_recipes_are_those_of_the_authors() -> None:
    tiny, coco, voc = (RESIZINGS[name] for name in ("coco_tiny", "coco", "voc"))
    assert (tiny.sides[0], tiny.sides[-1], coco.sides[0], coco.sides[-1]) == (256, 608, 480, 800)
    assert (tiny.longest, coco.longest, voc.longest) == (1013, 1333, 800) and voc.sides[0] == 416
    assert (tiny.crop, voc.crop) == ((384, 600), (384, 512)) and {s.before for s in RESIZINGS.values()} == {
        (400, 500, 600)
    }


def test_other_sizes_scale_the_crops_along() -> None:
    found = resizing_of(BoxFiles(sides=[304]), "voc")
    assert found is not None and (found.before, found.crop, found.longest) == ((200, 250, 300), (192, 256), 400)
    assert resizing_of(BoxFiles(resize="fixed"), "voc") is None
    with pytest.raises(UserError, match="--boxes.longest has no effect where all images get the network's size"):
        resizing_of(BoxFiles(resize="fixed", longest=100), "voc")


def test_boxes_stay_around_what_they_were_drawn_around(source: DataSource) -> None:
    """Every box of a generated image has one colour, on a dark ground."""
    colours = {name: torch.tensor(colour) for name, colour in box_trees.COLOURS.items()}
    transform = source.train.transform(SPEC, PLAIN, train=True)
    sizes, boxes, fewer = set(), 0, 0
    for draw in range(60):
        torch.manual_seed(draw)
        sample = source.train.load(draw % 10)[0]
        image, targets = transform(sample)
        height, width = image.shape[-2:]
        sizes.add((height, width))
        assert height % 8 == width % 8 == 0 and max(height, width) <= 120
        there = targets[~targets[:, 0].isnan()]
        fewer += len(there) < len(sample.classes)
        for number, x, y, w, h in there.tolist():
            assert 0 <= x - w / 2 < x + w / 2 <= 1 + 1e-6 and 0 <= y - h / 2 < y + h / 2 <= 1 + 1e-6
            if w * width >= 6 and h * height >= 6:
                boxes += 1
                middle = image[:, int(y * height), int(x * width)].long()
                assert (middle - colours[source.classes[int(number)]]).abs().max() < 40
                left, right = int((x - w / 2) * width) - 3, int((x + w / 2) * width) + 3
                if left >= 0:
                    assert image[:, int(y * height), left].max() < 60, "the box begins where the colour does"
                if right < width:
                    assert image[:, int(y * height), right].max() < 60
    assert len(sizes) > 5 and boxes > 30 and fewer > 0, "crops leave out boxes"


def test_the_same_seed_gives_the_same_view(source: DataSource) -> None:
    transform = source.train.transform(SPEC, PLAIN, train=True)
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(transform(source.train.load(1)[0]))
    assert torch.equal(made[0][0], made[1][0])
    torch.testing.assert_close(made[0][1], made[1][1], atol=0, rtol=0, equal_nan=True)
    assert transform.random and transform.sizes_differ


def test_validation_is_resized_only(source: DataSource) -> None:
    transform = source.val.transform(SPEC, PLAIN, train=False)
    assert not transform.random
    for index in range(len(source.val)):
        sample = source.val.load(index)[0]
        image, targets = transform(sample)
        width, height = sample.image.size
        assert tuple(image.shape[-2:]) == resized((height, width), 64, 120, (8, 8))
        there = targets[: len(sample.classes)]
        assert (
            torch.equal(there[:, 0], torch.from_numpy(sample.classes).float()) and targets[len(there) :].isnan().all()
        )
        scale = torch.tensor([width, height, width, height])
        corners = torch.cat((there[:, 1:3] - there[:, 3:] / 2, there[:, 1:3] + there[:, 3:] / 2), dim=1) * scale
        torch.testing.assert_close(corners, torch.from_numpy(sample.corners), atol=1e-3, rtol=0)


def test_flips_are_what_the_recipe_says(source: DataSource) -> None:
    def hflip(data: DataSource, augment: Augment) -> float:
        return data.train.transform(SPEC, ViewOptions(augment=augment), train=True).hflip  # type: ignore[attr-defined]

    assert hflip(source, Augment(recipe="none")) == 0.5 and hflip(source, Augment(recipe="none", hflip=0.2)) == 0.2
    assert hflip(open_boxes("scenes"), Augment(recipe="none")) == 0.0, "a digit in a mirror is none"
    with pytest.raises(UserError, match="take the augmentations hflip and repeats only; got scale, color_jitter"):
        hflip(source, Augment(recipe="none", scale=0.5, color_jitter=0.4))


def test_scenes_are_moved_with_their_boxes() -> None:
    samples = open_boxes("scenes").train
    spec = InputSpec((3, 48, 48), (0.5,) * 3, (0.5,) * 3, (1, 6, 6))
    transform, still = (samples.transform(spec, PLAIN, train=train) for train in (True, False))
    sample = samples.load(0)[0]
    image, targets = still(sample)
    assert torch.equal(image, torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)) and not still.random
    moved = set()
    for seed in range(8):
        torch.manual_seed(seed)
        shifted, other = transform(sample)
        assert shifted.shape == (3, 48, 48) and not transform.sizes_differ
        there = ~other[:, 0].isnan()
        moved |= {round(48 * value) for value in (other[there][0, 1:3] - targets[0, 1:3]).tolist()}
    assert len(moved) > 2 and max(map(abs, moved)) <= 4


def test_batches_of_images_that_differ_are_filled_up_and_blanked(source: DataSource) -> None:
    transform = source.val.transform(SPEC, PLAIN, train=False)
    (batch,) = make_loader(source.val, transform, EvalBatchSampler(len(source.val), 6), seed=0)
    assert batch.sizes is not None and batch.images.shape[-2:] == tuple(batch.sizes.amax(dim=0).tolist())
    assert len({tuple(size) for size in batch.sizes.tolist()}) > 1
    made = blank_padding(OnDevice(Augment(recipe="none"), SPEC.mean, SPEC.std, 3).eval(batch.images), batch.sizes)
    for index, (height, width) in enumerate(batch.sizes.tolist()):
        own = transform(source.val.load(index)[0])[0]
        assert torch.equal(batch.images[index, :, :height, :width], own)
        torch.testing.assert_close(made[index, :, :height, :width], own / 127.5 - 1, atol=1e-5, rtol=0)
        assert not made[index, :, height:].any() and not made[index, :, :, width:].any()


def test_a_network_of_one_size_gets_whole_images_squeezed(source: DataSource) -> None:
    spec = InputSpec((1, 32, 32), (0.5,), (0.5,))
    image, targets = source.val.transform(spec, PLAIN, train=False)(source.val.load(0)[0])
    assert image.shape == (1, 32, 32) and targets.shape == (2, 5)


def test_clips_and_views_are_refused(source: DataSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A network over clips needs videos; got images with boxes"):
        source.val.transform(InputSpec((3, 4, 16, 16), (0.5,) * 3, (0.5,) * 3), PLAIN, train=False)
    with pytest.raises(UserError, match="--stride has no effect with a network over single images"):
        source.val.transform(SPEC, ViewOptions(augment=PLAIN.augment, stride=2), train=False)
