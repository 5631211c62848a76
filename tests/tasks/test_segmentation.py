"""Networks that label pixels: what they are made of, how they see large images, and what they answer for."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tiny import tiny
from vitdistill.data.images.augment import Augment
from vitdistill.data.segments.masks import IGNORED, PADDING
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build
from vitdistill.models.families.pixels import PixelViT
from vitdistill.models.families.segmenter import SegmenterViT
from vitdistill.models.families.upernet import UperNetViT
from vitdistill.tasks.segmentation import Segmentation

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
    assert not task.testing


def test_a_picture_is_labelled_at_its_own_size() -> None:
    torch.manual_seed(0)
    network, task = segmenter(), Segmentation(5)
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (10, 21, 3)).astype(np.uint8))
    mask = task.labelled(network, picture, at_once=2)
    assert mask.shape == (10, 21) and mask.dtype == np.uint8 and mask.max() < 5
    assert np.array_equal(mask, task.labelled(network, picture))


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
