"""MAE against the authors' values: masks, latent, predictions, losses, gradients."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from golden_values import Golden
from vitdistill.methods.mae import GOAL, MAE
from vitdistill.methods.targets.pixels import patchify, unpatchify
from vitdistill.models.weights.read import decoder_part
from vitdistill.tokens.masking import Masking, split_by_noise, visible_count
from vitdistill.tokens.positions import sincos_2d
from vitdistill.types import TokenGrid


@pytest.fixture
def case(golden) -> Golden:
    return golden("mae_a")


def method_of(case: Golden, norm_pix: bool) -> MAE:
    hyper, weights = case.hyper, case.part("model")
    net = VisionTransformer(
        img_size=hyper["img_size"],
        patch_size=hyper["patch_size"],
        embed_dim=hyper["encoder"]["dim"],
        depth=hyper["encoder"]["depth"],
        num_heads=hyper["encoder"]["heads"],
        mlp_ratio=hyper["mlp_ratio"],
        num_classes=0,
    )
    decoder = hyper["decoder"]
    method = MAE(
        net,
        mask_ratio=hyper["mask_ratio"],
        norm_pix=norm_pix,
        decoder_width=decoder["dim"],
        decoder_depth=decoder["depth"],
        decoder_heads=decoder["heads"],
        decoder_mlp_ratio=hyper["mlp_ratio"],
    )
    net.load_state_dict({name: value for name, value in weights.items() if name not in decoder_part(weights)})
    method.decoder.load_official(decoder_part(weights))
    return method


def test_every_value_of_the_reference(case, monkeypatch):
    images, noise = case.inputs["image"], case.inputs["noise"]
    visible = visible_count(case.hyper["num_patches"], case.hyper["mask_ratio"])
    assert visible == case.hyper["len_keep"]
    kept, masked = split_by_noise(noise, visible)
    order = torch.cat((kept, masked), dim=1)
    case.check("mask", torch.ones_like(noise).scatter(1, kept, 0.0).to(case.expected["mask"].dtype))
    case.check("ids_restore", order.argsort(dim=1).to(case.expected["ids_restore"].dtype))
    grid = TokenGrid(1, 4, 4)
    case.check("patchified_image", patchify(images, grid))
    assert torch.equal(unpatchify(patchify(images, grid), grid, (8, 8)), images)

    monkeypatch.setattr(Masking, "draw", lambda *_args, **_options: (kept, masked))
    for norm_pix, name in ((False, "plain"), (True, "norm_pix")):
        method = method_of(case, norm_pix)
        if not norm_pix:
            tokens = method.student(images, keep=kept).final.all
            case.check("latent", tokens)
            predicted = method.decoder(tokens, kept, masked, at="patches")
            inverse = order.argsort(dim=1)[:, :, None].expand(-1, -1, predicted.shape[2])
            case.check("prediction", predicted.gather(1, inverse))
        step = method(images)
        case.check(f"loss_{name}", step.terms[GOAL])
        step.loss.backward()
        case.check(f"grad_norm_patch_embed_weight_{name}", method.student.net.patch_embed.proj.weight.grad.norm())
        case.check(f"grad_norm_mask_token_{name}", method.decoder.mask_token.grad.norm())
    assert case.checked == set(case.expected)


def test_the_position_tables_are_the_authors(case):
    weights, grid = case.part("model"), TokenGrid(1, 4, 4)
    for name in ("pos_embed", "decoder_pos_embed"):
        torch.testing.assert_close(sincos_2d(weights[name].shape[2], grid, 1), weights[name], rtol=0, atol=1e-6)
