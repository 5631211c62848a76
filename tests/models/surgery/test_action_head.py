"""The RoIAlign head: what a box sees, and which weights a detector starts from."""

from typing import Any

import pytest
import torch
from torchvision.ops import roi_align

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.supervised import Supervised
from vitdistill.models.build import build
from vitdistill.models.surgery.action_head import box_logits, detector, pool_boxes
from vitdistill.models.surgery.classifier import finetunable
from vitdistill.tasks.actions import Actions

NET: dict[str, Any] = {"img_size": 32, "patch_size": 8, "frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def video_net(**options: Any) -> Any:
    torch.manual_seed(0)
    return build("video_vit_small_patch16_224", args={**NET, **options}, num_classes=options.pop("num_classes", 0))


def test_a_box_sees_the_patches_in_it() -> None:
    """Features that are one number per patch: the maximum over a box, at the places between patch centres."""
    features = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 1, 4, 4)
    boxes = torch.tensor(
        [[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.25, 0.25]], [[0.75, 0.75, 1.0, 1.0], [0.25, 0.0, 0.5, 0.25]]]
    )
    pooled = pool_boxes(features, boxes)[..., 0]
    assert pooled[0, 0] > 14.5 and pooled[0, 1] < 3
    assert pooled[1, 0] == pytest.approx(15.0) and 1 <= pooled[1, 1] < 4
    constant = pool_boxes(torch.full((1, 5, 4, 4), 2.5), torch.rand(1, 3, 4).sort(dim=-1).values * 0.5 + 0.2)
    assert torch.allclose(constant, torch.full((1, 3, 5), 2.5))


def test_a_box_is_pooled_from_the_mean_over_time_of_a_grid_that_is_no_square() -> None:
    """Against torchvision's RoIAlign, at one over the patch's size, on tokens put together by hand."""
    network = detector(video_net(img_size=(16, 48)), 5, head_init=1.0, dropout=0.5).eval()
    clips = torch.randn(2, 3, 4, 16, 48)
    boxes = torch.tensor([[[0.1, 0.2, 0.9, 0.7], [0.0, 0.0, 0.4, 1.0]], [[0.5, 0.1, 0.6, 0.9], [0.2, 0.5, 1.0, 1.0]]])
    maps = network(clips).final.patches.reshape(2, 2, 2, 6, 32).mean(dim=1).permute(0, 3, 1, 2)
    pixels = boxes * torch.tensor([48.0, 16.0, 48.0, 16.0])
    cut = roi_align(maps, list(pixels), 7, spatial_scale=1 / 8, aligned=True).amax(dim=(2, 3))
    expected = network.net.head(cut).view(2, 2, 5)
    logits = box_logits(network, network(clips).final.patches, boxes)
    assert torch.allclose(logits, expected, atol=1e-5)
    dropped = box_logits(network, network.train()(clips).final.patches, boxes)
    assert not torch.allclose(dropped, logits, atol=1e-3)


def test_what_lies_beyond_the_frame_is_cut_off() -> None:
    features = torch.full((1, 2, 4, 4), -2.0)
    pooled = pool_boxes(features, torch.tensor([[[-0.3, 0.2, 0.5, 1.4], [0.1, -0.9, 1.9, 0.6]]]))
    assert torch.allclose(pooled, torch.full((1, 2, 2), -2.0))


def test_validation_loss_is_summed_over_key_frames() -> None:
    task = Actions()
    target, scores = torch.rand(5, 2, 7).round(), torch.randn(5, 2, 3)
    whole = task.validation_loss(scores, target)
    assert whole is not None and whole == pytest.approx(5 * float(task.loss(scores, target)["bce"]), rel=1e-6)


def test_pooling_flips_with_features_and_boxes() -> None:
    features, corners = torch.randn(2, 3, 4, 4), torch.rand(2, 5, 2, 2).sort(dim=2).values
    boxes = corners.flatten(2)
    flipped = boxes.clone()
    flipped[..., [0, 2]] = 1 - boxes[..., [2, 0]]
    assert torch.allclose(pool_boxes(features, boxes), pool_boxes(features.flip(-1), flipped), atol=1e-5)


def test_logits_of_a_box_do_not_depend_on_the_others_or_on_padding() -> None:
    network = detector(video_net(), 5, head_init=1.0).eval()
    clips, boxes = torch.randn(2, 3, 4, 32, 32), torch.rand(2, 3, 2, 2).sort(dim=2).values.flatten(2)
    logits = box_logits(network, network(clips).final.patches, boxes)
    assert logits.shape == (2, 3, 5)
    assert torch.allclose(box_logits(network, network(clips).final.patches, boxes[:, 1:2]), logits[:, 1:2], atol=1e-6)
    method = Supervised(network, task=Actions())
    target = torch.cat((boxes, (torch.rand(2, 3, 5) > 0.5).float()), dim=-1)
    padded = torch.cat((target, torch.full((2, 2, 9), torch.nan)), dim=1)
    assert torch.allclose(method(clips, padded).loss, method(clips, target).loss, atol=1e-6)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[..., 4:])
    assert torch.allclose(method(clips, target).loss, expected, atol=1e-6)


def test_gradients_reach_every_weight_and_padding_brings_no_nan() -> None:
    network = detector(video_net(), 3, head_init=1.0)
    target = torch.full((2, 2, 7), torch.nan)
    target[:, 0] = torch.tensor([0.1, 0.1, 0.8, 0.9, 1, 0, 1])
    Supervised(network, task=Actions())(torch.randn(2, 3, 4, 32, 32), target).loss.backward()
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learnt)
    assert not network.net.pos_embed.requires_grad


def test_a_detector_keeps_the_weights_of_its_body() -> None:
    pretrained = video_net()
    network = detector(pretrained, 3)
    own, body = network.net.state_dict(), pretrained.net.state_dict()
    assert all(torch.equal(own[name], body[name]) for name in body) and own["head.weight"].shape == (3, 32)
    assert own["head.weight"].abs().max() < 1e-3
    recognises = finetunable(pretrained, 7)
    with torch.no_grad():
        recognises.net.fc_norm.weight.normal_()
    after = detector(recognises, 3).net.state_dict()
    assert torch.equal(after["norm.weight"], recognises.net.fc_norm.weight)
    assert not any(name.startswith("fc_norm") for name in after)


def test_networks_over_images_are_refused() -> None:
    with pytest.raises(UserError, match="network that detects actions must be a video ViT"):
        Supervised(tiny("vit"), task=Actions())
