"""Networks that label pixels: what they are made of, how they see large images, and what they answer for."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from tiny import tiny
from vitdistill.data.device import OnDevice
from vitdistill.data.images.augment import Augment
from vitdistill.data.loader import filled_up
from vitdistill.data.segments.files import SegmentTest
from vitdistill.data.segments.masks import IGNORED, PADDING
from vitdistill.data.segments.transforms import ValTransform
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build
from vitdistill.models.families.pixels import PixelViT
from vitdistill.models.families.segmenter import SegmenterViT
from vitdistill.models.families.upernet import UperNetViT
from vitdistill.tasks.pixels import at_their_size
from vitdistill.tasks.segmentation import Segmentation
from vitdistill.types import Output

NET: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


def segmenter(classes: int = 5, **args: Any) -> PixelViT:
    network = build("segmenter_tiny", args={**NET, **args}, num_classes=classes)
    assert isinstance(network, PixelViT)
    return network.eval()


@pytest.mark.parametrize(
    ("head", "kind"),
    [(None, SegmenterViT), ("linear", SegmenterViT), ("upernet", UperNetViT), ("upernet_wide", UperNetViT)],
    ids=str,
)
def test_a_vit_gets_the_head_that_is_asked_for(head: Any, kind: type) -> None:
    body = build("vit_tiny_patch16_224", args=NET, num_classes=3)
    task = Segmentation(5, head=head)
    made = task.student(body)
    assert isinstance(made, kind) and made.num_classes == 5
    task.check(made)
    assert torch.equal(made.net.encoder.blocks[1].mlp.fc1.weight, body.net.blocks[1].mlp.fc1.weight)
    if head is not None:
        with pytest.raises(UserError, match="--segments.head makes maps of a ViT; .* labels pixels already"):
            task.student(made)
    else:
        assert task.student(made) is made and task.with_head(made) is made
        assert task.with_head(made, new_head=True) is not made


def test_what_does_not_label_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="does not label pixels"):
        Segmentation(10).check(build(tiny("vit")))
    with pytest.raises(UserError, match="must have the 4 classes of the task; .* has 5"):
        Segmentation(4).check(segmenter())
    with pytest.raises(UserError, match="--segments.stride must be at most 16"):
        Segmentation(5, stride=17).check(segmenter())
    with pytest.raises(UserError, match="Images with masks lie in a folder; got list"):
        Segmentation.open([], augment=Augment(recipe="none"))


def test_the_auxiliary_head_counts_in_training_alone() -> None:
    torch.manual_seed(0)
    network = build("upernet_vit_tiny", args=NET, num_classes=5)
    task, images = Segmentation(5), torch.randn(2, 3, 16, 16)
    targets = torch.randint(0, 5, (2, 16, 16), dtype=torch.uint8)
    targets[0, :3] = IGNORED
    network.net.train()
    step = Supervised(network, task=task)(images, targets)
    assert set(step.terms) == {"ce", "auxiliary"}
    network.eval()
    prediction = task.predict(network, images, targets)
    assert prediction.shape == (2, 5, 16, 16)
    expected = F.cross_entropy(prediction, targets.long(), ignore_index=IGNORED)
    torch.testing.assert_close(task.loss(prediction, targets)["ce"], expected)


@torch.no_grad()
def test_large_images_are_seen_through_windows_at_their_own_size() -> None:
    """Two images in one batch, of which each is predicted as it is alone."""
    torch.manual_seed(0)
    network, task = segmenter(), Segmentation(5, stride=11)
    images = torch.randn(2, 3, 16, 27)
    images[1, :, :, 16:] = 99.0  # beyond the second image
    targets = torch.full((2, 20, 34), PADDING, dtype=torch.uint8)
    targets[0], targets[1, :10, :10] = 1, 2
    both = task.predict(network, images, targets)
    assert both.shape == (2, 5, 16, 27) and both[1, :, :, 16:].isnan().all() and not both[0].isnan().any()
    torch.testing.assert_close(both[1, :, :, :16], network(images[1:, :, :, :16]).prediction[0], rtol=1e-4, atol=1e-4)
    windows = [network(images[:1, :, :, start : start + 16]).prediction[0] for start in (0, 11)]
    middle = (windows[0][:, :, 11:] + windows[1][:, :, :5]) / 2
    torch.testing.assert_close(both[0, :, :, 11:16], middle, rtol=1e-4, atol=1e-4)
    loss = task.validation_loss(both, targets)
    one = task.validation_loss(task.predict(network, images[:1], targets[:1]), targets[:1])
    two = task.validation_loss(network(images[1:, :, :, :16]).prediction, targets[1:, :10, :10])
    torch.testing.assert_close(loss, one + two, rtol=1e-4, atol=1e-4)


def test_windows_of_finished_networks_overlap_as_their_publications_have_it() -> None:
    task, net = Segmentation(5), segmenter(img_size=64)
    assert task.stride_of(net) == 64 and task.tested().stride_of(net) == 32
    large = segmenter(img_size=512, depth=1, patch_size=32)
    upernet = build("upernet_vit_tiny", args={**NET, "img_size": 512, "patch_size": 64}, num_classes=5)
    assert task.tested().stride_of(large) == 480 and task.tested().stride_of(upernet) == 341
    assert Segmentation(5, stride=100).tested().stride_of(large) == 100
    assert Segmentation(5).tested().stride_of(segmenter()) == 8, "half of an input of 16"
    assert not task.testing


def test_a_picture_is_labelled_at_its_own_size() -> None:
    torch.manual_seed(0)
    network, task = segmenter(), Segmentation(5)
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (10, 21, 3)).astype(np.uint8))
    mask = task.tested(at_once=2).labelled(network, picture)
    assert mask.shape == (10, 21) and mask.dtype == np.uint8 and mask.max() < 5
    assert np.array_equal(mask, task.tested().labelled(network, picture))


def several(ratios: list[float] | None, *, flip: bool = False) -> Segmentation:
    return Segmentation(5).tested(SegmentTest(test_ratios=ratios, test_flip=flip, stride=11), at_once=3)


class OnePicture:
    """A picture with a mask as the loader has them, alone in its batch."""

    def __init__(self, height: int, width: int) -> None:
        random = np.random.RandomState(0)
        self.image = Image.fromarray(random.randint(0, 255, (height, width, 3)).astype(np.uint8))
        self.mask = random.randint(0, 5, (height, width)).astype(np.uint8)

    def batch(self, network: PixelViT, task: Segmentation) -> tuple[torch.Tensor, torch.Tensor]:
        spec = network.input
        pixels, mask = ValTransform(spec.size, task.views.ratios)(self)
        return OnDevice(Augment(recipe="none"), spec.mean, spec.std, 5).eval(pixels[None]), mask[None]


@torch.no_grad()
def test_probabilities_are_averaged_over_sizes_and_mirror_images() -> None:
    """As the specification of the published test has it, written out once more: without windows that overlap."""
    torch.manual_seed(0)
    network, picture, ratios = segmenter(), OnePicture(24, 24), [0.5, 1.0, 2.0]
    task = Segmentation(5).tested(SegmentTest(test_ratios=ratios, test_flip=True, stride=16), at_once=2)
    assert task.test == "ratios 0.5, 1, 2 and their mirror images" and task.one_by_one
    inputs, masks = picture.batch(network, task)
    found = task.predict(network, inputs, masks)

    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (network.input.mean, network.input.std))
    pixels, total = torch.from_numpy(np.array(picture.image)).permute(2, 0, 1), torch.zeros(5, 24, 24)
    for ratio in ratios:
        sides = [round(16 * ratio)] + ([16] if ratio < 1 else [])  # as small as asked for first, then to one window
        image = pixels
        for side in sides:
            image = tvf.resize(image, [side, side], antialias=False)
        image = (image - mean) / std
        for mirrored in (False, True):
            seen = image.flip(2) if mirrored else image
            rows = [
                [network(cell[None]).prediction[0] for cell in row.split(16, dim=2)] for row in seen.split(16, dim=1)
            ]
            scores = torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)
            scores = F.interpolate(scores[None], size=(24, 24), mode="bilinear", align_corners=False)[0]
            shares = scores.softmax(dim=0)
            total += shares.flip(2) if mirrored else shares
    torch.testing.assert_close(found[0].exp(), total / 6, rtol=1e-4, atol=1e-5)
    assert np.array_equal(task.labelled(network, picture.image), total.argmax(dim=0).numpy())
    loss = F.cross_entropy((total / 6).log()[None], masks.long())
    torch.testing.assert_close(task.validation_loss(found, masks), loss, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("ratios", [None, [1.0]], ids=str)
@pytest.mark.parametrize("size", [(20, 34), (10, 90), (16, 16)], ids=str)
def test_one_size_is_the_plain_test(size: tuple[int, int], ratios: list[float] | None) -> None:
    torch.manual_seed(0)
    network, picture = segmenter(), OnePicture(*size)
    plain, same = several(None), several(ratios)
    assert plain.test == same.test == "single scale" and not same.one_by_one
    inputs, masks = picture.batch(network, plain)
    assert torch.equal(picture.batch(network, same)[0], inputs)
    prediction = plain.predict(network, inputs, masks)
    assert torch.equal(same.predict(network, inputs, masks), prediction)
    # Averaged over this one size, the same classes and the same loss are found.
    averaged = plain.averaged(network, [inputs], size)
    ((scores, _),) = at_their_size(prediction, masks)
    assert torch.equal(averaged.argmax(dim=1), scores.argmax(dim=1))
    torch.testing.assert_close(plain.validation_loss(averaged, masks), plain.validation_loss(prediction, masks))


@torch.no_grad()
def test_mirror_images_change_nothing_where_left_and_right_are_alike() -> None:
    """Of a network that looks at one pixel after the other."""
    network, picture = segmenter(), OnePicture(16, 27)
    colours = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    network.forward = lambda images: Output(prediction=torch.einsum("kc,bchw->bkhw", colours, images))  # type: ignore[assignment,method-assign]
    plain, flipped = several(None), several(None, flip=True)
    assert flipped.test == "ratios 1 and their mirror images"
    inputs, masks = picture.batch(network, plain)
    expected, found = plain.predict(network, inputs, masks), flipped.predict(network, inputs, masks)
    torch.testing.assert_close(found, expected.log_softmax(dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_are_averaged_apart() -> None:
    torch.manual_seed(0)
    network = segmenter()
    task = several([0.75, 1.5])
    alone = [OnePicture(*size).batch(network, task) for size in ((20, 34), (12, 10))]
    inputs, _ = filled_up([inputs[0] for inputs, _ in alone])
    masks = torch.full((2, 20, 34), PADDING, dtype=torch.uint8)
    masks[0], masks[1, :12, :10] = alone[0][1], alone[1][1]
    both = task.predict(network, torch.stack(inputs), masks)
    assert both[1, :, 12:].isnan().all() and both[1, :, :, 10:].isnan().all()
    torch.testing.assert_close(both[0], task.predict(network, *alone[0])[0])
    torch.testing.assert_close(both[1, :, :12, :10], task.predict(network, *alone[1])[0])


@pytest.mark.parametrize("ratios", [[], [0.0], [-1.0, 1.0], [float("nan")], [11.0], [1.0, 1.0]], ids=str)
def test_bad_ratios_are_one_line(ratios: list[float]) -> None:
    with pytest.raises(
        UserError, match=r"--segments.test_ratios must be factors between 0.1 and 10, each once"
    ) as caught:
        SegmentTest(test_ratios=ratios)
    assert "\n" not in str(caught.value)


def test_a_ratio_leaves_a_patch() -> None:
    network = segmenter()
    with pytest.raises(UserError, match=r"must leave a patch .8 pixels. of the 16 .*; got 0.4. Use at least 0.5"):
        several([1.0, 0.4]).check(network)
    several([0.5]).check(network)


def test_one_matrix_is_counted_for_scores_and_details() -> None:
    task = Segmentation(3)
    assert task.details() is None, "of no metrics"
    (scores,), details = task.metrics().values(), task.details()
    assert details is not None and task.tested().details() is None
    true = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    scores.update(F.one_hot(true.long(), 3).permute(0, 3, 1, 2).float(), true)
    details.update(None, None)
    scores.compute()
    scores.reset()
    assert torch.equal(details.compute().diagonal(), torch.bincount(true.flatten().long(), minlength=3))


def test_a_network_that_has_diverged_has_no_finite_loss() -> None:
    prediction, true = torch.full((1, 3, 8, 8), torch.nan), torch.zeros(1, 5, 5, dtype=torch.uint8)
    loss = Segmentation(3).validation_loss(prediction, true)
    assert loss is not None and loss.isnan()


def test_a_detector_does_not_label_pixels() -> None:
    with pytest.raises(UserError, match="A detector does not label pixels"):
        Segmentation(3).with_head(build(tiny("yolos")))
