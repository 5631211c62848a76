"""Masked modelling with CaiT, whose class token joins behind its trunk; and teachers that cannot be a target."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.mae import MAE
from vitdistill.methods.mvd import MVD, FeatureDecoder, per_token_distillation
from vitdistill.methods.targets.pixels import patchify, standardised
from vitdistill.methods.videomae import VideoMAE
from vitdistill.models.families.video_vit import video_vit
from vitdistill.tokens.gather import take
from vitdistill.tokens.masking import Masking, random_mask

DECODER = FeatureDecoder(width=16, depth=1, heads=2)
SIZES = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def clip_net(**options: Any) -> nn.Module:
    """A video ViT over clips of four frames: 2 x 4 x 4 tokens."""
    sizes = {"img_size": 32, "patch_size": 8, "frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return video_vit(**{**sizes, "num_classes": 0, **options})


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(7))


def trunk(net: nn.Module, images: Tensor, kept: Tensor | None = None) -> Tensor:
    """The patches that leave CaiT's trunk."""
    patches = net.patch_embed(images) + net.pos_embed
    patches = patches if kept is None else take(patches, kept)
    for block in net.blocks:
        patches = block(patches)
    return patches


# --- CaiT --------------------


def test_an_mae_of_cait_decodes_its_class_token_and_the_patches_that_it_saw(images, monkeypatch):
    torch.manual_seed(0)
    net = tiny("cait", seed=1)
    method = MAE(net, mask_ratio=0.75, **SIZES)
    kept, masked = random_mask(3, 16, 4)
    monkeypatch.setattr(Masking, "draw", lambda *_args, **_options: (kept, masked))
    step = method(images)
    assert method.decoder.prefix == 1

    patches = trunk(net, images, kept)
    cls = net.cls_token.expand(3, -1, -1)
    for block in net.blocks_token_only:
        cls = block(patches, cls)
    predicted = method.decoder(net.norm(torch.cat((cls, patches), dim=1)), kept, masked)
    expected = F.mse_loss(predicted, take(standardised(patchify(images, method.student.grid)), masked))
    torch.testing.assert_close(step.loss, expected)
    shown = method.reconstruct(images, kept, masked)
    assert shown.shape == images.shape and bool(shown.isfinite().all())
    seen = take(patchify(images, method.student.grid), kept)
    assert torch.equal(take(patchify(shown, method.student.grid), kept), seen)


def test_an_mae_of_cait_trains_its_class_attention(images):
    method = MAE(tiny("cait", seed=1), **SIZES)
    method(images).loss.backward()
    net = method.student.net
    assert net.cls_token.grad.any() and all(p.grad.any() for p in net.blocks_token_only.parameters() if p.dim() > 1)
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


def test_the_features_of_a_cait_image_teacher_are_its_trunks(clips):
    torch.manual_seed(0)
    net = tiny("cait", seed=2)
    method = MVD(clip_net(), image_teacher=net, mask_ratio=0.75, decoder=DECODER)
    target = method.targets["image"]
    kept, masked = method.masking.draw(3, method.student.grid)
    values = target.values(clips, kept, masked)
    assert target.channels == 24 and values.shape == (3, 32, 24)
    with torch.no_grad():  # both were trained with the same statistics
        by_hand = torch.cat([trunk(net, clips[:, :, frame]) for frame in (0, 2)], dim=1)
    torch.testing.assert_close(values, by_hand)
    assert method(clips).loss.isfinite()


@pytest.mark.parametrize("weighted", [False, True])
def test_per_token_distillation_compares_caits_patches(images, weighted):
    net, other = tiny("cait", seed=1), tiny("cait", seed=2, depth=4)
    method = per_token_distillation(net, image_teacher=other, loss="l2", image_weight=0.5 if weighted else 1.0)
    step = method(images)
    (term,) = method.terms
    with torch.no_grad():
        expected = F.mse_loss(term.mlp(net.norm(trunk(net, images))), trunk(other, images))
    torch.testing.assert_close(step.loss, expected * (0.5 if weighted else 1.0))
    step.loss.backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert not [name for name in trained if name.startswith(("cls_token", "blocks_token_only", "head"))]


def test_per_token_distillation_of_a_clip_sees_its_frames_and_the_clip(clips):
    torch.manual_seed(0)
    image, video = tiny("cait", seed=2), clip_net(embed_dim=48)
    method = per_token_distillation(
        clip_net(), image_teacher=image, video_teacher=video, video_weight=0.25, normalise=True
    )
    step = method(clips)
    assert [teacher.passes for teacher in method.teachers] == [2, 1] and set(step.terms) == {"image", "video"}
    torch.testing.assert_close(step.loss.detach(), step.terms["image"] + 0.25 * step.terms["video"])


# --- refusals --------------------


def refused(**options: Any) -> str:
    with pytest.raises(UserError) as error:
        MVD(**{"student": clip_net(), "decoder": DECODER, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_teachers_that_hand_out_no_block_outputs_are_refused_before_the_first_step():
    resnet = timm.create_model("test_resnet", num_classes=10)
    assert "hands out logits only" in refused(image_teacher=resnet)
    assert "image teacher must hand out the outputs of its blocks; got swin" in refused(image_teacher=tiny("swin"))
    for teacher in (resnet, tiny("swin")):
        with pytest.raises(UserError, match="hands out logits only|must hand out the outputs"):
            per_token_distillation(tiny("deit"), image_teacher=teacher)


def test_teachers_of_the_other_kind_and_of_other_patches_are_refused():
    assert "image teacher must see images" in refused(image_teacher=clip_net())
    assert "video teacher must see videos" in refused(video_teacher=tiny("deit"))
    finer = refused(image_teacher=tiny("deit", patch_size=4))
    assert "has 8x8 and the student 2x4x4" in finer and "--image_teacher_args.img_size 16" in finer
    assert "--video_teacher_args.frames 4" in refused(video_teacher=clip_net(frames=8))
    longer = refused(video_teacher=clip_net(frames=8, tubelet=4))
    assert "same frames in tubelets of the same length" in longer and "4 frames, and 8" in longer


def test_nothing_to_learn_from_and_too_much_are_refused():
    assert "needs an image teacher, a video teacher, or both" in refused()
    assert "no other may be given" in refused(bootstrap=0.9, video_teacher=clip_net())
    with pytest.raises(UserError, match="needs an image teacher, a video teacher, or both"):
        per_token_distillation(clip_net())


@pytest.mark.parametrize(
    "make", [lambda net: MAE(net, **SIZES), lambda net: per_token_distillation(net, image_teacher=tiny("deit"))]
)
def test_networks_that_do_not_show_their_patches_are_refused(make):
    with pytest.raises(UserError, match="hands out logits only"):
        make(timm.create_model("test_resnet", num_classes=10))


def test_swin_cannot_be_masked_and_images_are_no_clips():
    with pytest.raises(UserError, match="cannot leave out patches.*Choose a ViT"):
        MAE(tiny("swin"), **SIZES)
    with pytest.raises(UserError, match="student must be a video ViT; got cait"):
        VideoMAE(tiny("cait"), **SIZES)
    assert "student must be a video ViT; got deit" in refused(student=tiny("deit"), video_teacher=clip_net())
