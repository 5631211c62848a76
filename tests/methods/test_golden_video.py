"""VideoMAE and MVD against the authors' values: encoders, targets, predictions, losses, gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from golden_values import Golden
from vitdistill.methods.masked_modelling import MaskedModelling
from vitdistill.methods.mvd import MVD
from vitdistill.methods.options import FeatureDecoder
from vitdistill.methods.videomae import VideoMAE
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import video_vit
from vitdistill.models.teacher import Teacher
from vitdistill.models.weights.videomae import from_foreign
from vitdistill.tokens.gather import take
from vitdistill.tokens.masking import Masking


def net_of(hyper: dict[str, Any], role: str, positions: str) -> torch.nn.Module:
    sizes = hyper[role]
    return video_vit(
        img_size=hyper["input_size"],
        patch_size=hyper["patch_size"],
        frames=hyper["frames"],
        tubelet=hyper["tubelet_size"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=hyper["mlp_ratio"],
        num_classes=0,
        positions=positions,
    )


def load(net: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    ours = from_foreign(weights)
    ours["pos_embed"] = net.pos_embed.detach()
    net.load_state_dict(ours)


def kept_and_masked(mask: Tensor) -> tuple[Tensor, Tensor]:
    order = mask.argsort(dim=1, stable=True)
    visible = int((mask[0] == 0).sum())
    return order[:, :visible], order[:, visible:]


def decoder_weights(weights: dict[str, Tensor], embed: str, blocks: str, token: str) -> dict[str, Tensor]:
    """A decoder of the authors under the names of ours."""
    decoder = {n.removeprefix(f"{blocks}."): v for n, v in weights.items() if n.startswith(f"{blocks}.")}
    ours = from_foreign(decoder)
    ours = {n.replace("head.", "pred."): v for n, v in ours.items()}
    ours |= {n.replace(embed, "embed", 1): v for n, v in weights.items() if n.startswith(f"{embed}.")}
    return ours | {"mask_token": weights[token]}


def load_decoder(method: MaskedModelling, goal: str, weights: dict[str, Tensor]) -> None:
    decoder = method.decoders[goal]
    decoder.load_state_dict({**weights, "pos_embed": decoder.pos_embed})


def mvd_of(case: Golden, **options: Any) -> MVD:
    hyper = case.hyper
    student = net_of(hyper, "student", "sincos_3d")
    weights = case.part("student")
    torch.testing.assert_close(student.pos_embed.detach(), weights["pos_embed"], rtol=0, atol=1e-6)
    load(student, weights)
    image = hyper["image_teacher"]
    image_teacher = build(
        "vit_tiny_patch16_224",
        args={
            "img_size": image["input_size"],
            "patch_size": image["patch_size"],
            "embed_dim": image["dim"],
            "depth": image["depth"],
            "num_heads": image["heads"],
            "mlp_ratio": hyper["mlp_ratio"],
            "num_classes": 0,
        },
    )
    case.load(image_teacher.net, "image_teacher")
    video_teacher = net_of(hyper, "video_teacher", "sinusoid_1d")
    table = case.part("video_teacher")["encoder.pos_embed"]
    torch.testing.assert_close(video_teacher.pos_embed.detach(), table, rtol=0, atol=1e-6)
    load(video_teacher, case.part("video_teacher"))
    decoder = hyper["decoder"]
    method = MVD(
        student,
        image_teacher=Teacher(image_teacher),  # the reference gives both teachers the clip as it is
        video_teacher=Teacher(build(video_teacher)),
        mask_ratio=hyper["mask_ratio"],
        decoder=FeatureDecoder(decoder["dim"], decoder["depth"], decoder["heads"], hyper["mlp_ratio"], drop_path=0.0),
        **options,
    )
    for goal, short in (("image", "img"), ("video", "vid")):
        ours = decoder_weights(weights, f"down_{short}", f"decoder_{short}", f"mask_token_{short}")
        load_decoder(method, goal, ours)
        table = method.decoders[goal].pos_embed
        torch.testing.assert_close(table, weights[f"pos_embed_{short}"], rtol=0, atol=1e-6)
    return method


def test_mvd(golden, monkeypatch) -> None:
    case: Golden = golden("mvd_a")
    clips = case.inputs["videos"]
    kept, masked = kept_and_masked(case.inputs["mask"])
    monkeypatch.setattr(Masking, "draw", lambda *_args, **_options: (kept, masked))
    method = mvd_of(case)
    assert method.masking.visible(method.student.grid) == case.hyper["visible_tokens"]
    tokens = method.student(clips, keep=kept).final.all
    case.check("student_encoder_visible", tokens)
    for name in ("image", "video"):
        case.check(f"prediction_{name}", method.decoders[name](tokens, kept, masked))
        case.check(f"target_{name}", take(method.targets[name].values(clips, kept, masked), masked))
    step = method(clips)
    for name, term in step.terms.items():
        case.check(f"loss_{name}", term)
    case.check("loss_total", step.loss)
    step.loss.backward()
    case.check("grad_norm_patch_embed_weight", method.student.net.patch_embed.proj.weight.grad.norm())
    case.check("grad_norm_last_qkv_weight", method.student.blocks[-1].attn.qkv.weight.grad.norm())

    normed = mvd_of(case, normalise=True)(clips)
    for name, term in normed.terms.items():
        case.check(f"loss_{name}_norm_feature", term)
    case.check("loss_total_norm_feature", normed.loss)
    for loss in ("l1", "l2"):
        case.check(f"loss_total_{loss}", mvd_of(case, loss=loss)(clips).loss)
    assert case.checked == set(case.expected)


def test_videomae(golden, monkeypatch) -> None:
    case: Golden = golden("videomae_a")
    clips, hyper, weights = case.inputs["videos"], case.hyper, case.part("model")
    kept, masked = kept_and_masked(case.inputs["mask"])
    monkeypatch.setattr(Masking, "draw", lambda *_args, **_options: (kept, masked))
    for norm_pix, name in ((True, "normalised"), (False, "plain")):
        encoder = net_of(hyper, "encoder", "sinusoid_1d")
        load(encoder, weights)
        decoder = hyper["decoder"]
        method = VideoMAE(
            encoder,
            mask_ratio=0.7,
            norm_pix=norm_pix,
            decoder_width=decoder["dim"],
            decoder_depth=decoder["depth"],
            decoder_heads=decoder["heads"],
            decoder_mlp_ratio=hyper["mlp_ratio"],
        )
        load_decoder(method, "pixels", decoder_weights(weights, "encoder_to_decoder", "decoder", "mask_token"))
        if norm_pix:
            tokens = method.student(clips, keep=kept).final.all
            case.check("encoder_visible", tokens)
            case.check("prediction", method.decoders["pixels"](tokens, kept, masked))
        case.check(f"target_{name}", take(method.targets["pixels"].values(clips, kept, masked), masked))
        step = method(clips)
        case.check(f"loss_{name}", step.loss)
        if norm_pix:
            step.loss.backward()
            case.check("grad_norm_encoder_patch_embed_weight", method.student.net.patch_embed.proj.weight.grad.norm())
    assert case.checked == set(case.expected)


@pytest.mark.parametrize("masks", [2, 4])
def test_several_masks_of_a_clip_share_one_pass_of_each_teacher(golden, masks) -> None:
    case: Golden = golden("mvd_a")
    clips = case.inputs["videos"]
    shared, repeated = mvd_of(case, masks_per_clip=masks).eval(), mvd_of(case).eval()
    torch.manual_seed(0)
    together = shared(clips)
    torch.manual_seed(0)
    apart = repeated(clips.repeat_interleave(masks, dim=0))
    torch.testing.assert_close(together.loss, apart.loss)
    seen = []
    for teacher in shared.teachers:
        teacher.network.net.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape[0]))
    shared(clips)
    assert seen == [2 * 8, 2]  # eight frames of two clips, and two clips


def test_a_mask_is_the_same_in_every_time_step_and_counts_are_the_specs() -> None:
    from vitdistill.tokens.masking import frame_mask, tube_mask
    from vitdistill.types import TokenGrid

    grid = TokenGrid(8, 14, 14)
    assert Masking(0.9, "tube").visible(grid) == 160 and grid.count - 160 == 1408
    kept, masked = tube_mask(3, grid, 20)
    assert kept.shape == (3, 160) and masked.shape == (3, 1408)
    assert bool((kept.view(3, 8, 20) % 196 == kept.view(3, 8, 20)[:, :1] % 196).all())
    whole = torch.cat((kept, masked), dim=1).sort(dim=1).values
    assert torch.equal(whole, torch.arange(1568).expand(3, -1))
    kept, masked = frame_mask(3, grid, 2)
    assert kept.shape == (3, 392) and masked.shape == (3, 1176)
    assert all(len(set((row // 196).tolist())) == 2 for row in kept)
