"""The generic stage of G2SD against the authors' values: masks, hidden tokens, predictions, losses, gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from golden_values import Golden
from vitdistill.methods.g2sd import G2SD, GOAL
from vitdistill.models.autoencoder import MaskedAutoencoder
from vitdistill.models.decoder import Decoder
from vitdistill.models.families import as_network
from vitdistill.models.weights.read import decoder_part
from vitdistill.tokens.masking import Masking, split_by_noise, visible_count
from vitdistill.types import Capture, TokenGrid

GRID = TokenGrid(1, 4, 4)


@pytest.fixture
def case(golden) -> Golden:
    return golden("g2sd_generic_a")


def encoder(case: Golden, role: str) -> VisionTransformer:
    sizes, weights = case.hyper[role], case.part(role)
    net = VisionTransformer(
        img_size=case.hyper["img_size"],
        patch_size=case.hyper["patch_size"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=case.hyper["mlp_ratio"],
        num_classes=0,
    )
    net.load_state_dict({name: value for name, value in weights.items() if name in net.state_dict()})
    return net


def teacher(case: Golden) -> MaskedAutoencoder:
    sizes, weights = case.hyper["teacher"], decoder_part(case.part("teacher"))
    width = sizes["dec_dim"]
    decoder = Decoder(
        GRID, 1, sizes["dim"], 3, width=width, depth=sizes["dec_depth"], heads=sizes["dec_heads"], mlp_ratio=2
    )
    unused = {name: value for name, value in decoder.official().items() if "_norm" in name or "_pred" in name}
    decoder.load_official({**unused, **weights})
    return MaskedAutoencoder(encoder(case, "teacher"), decoder)


def method_of(case: Golden, **options: Any) -> G2SD:
    sizes, weights = case.hyper["student"], case.part("student")
    method = G2SD(
        encoder(case, "student"),
        teacher(case),
        teacher_block=case.hyper["teacher_suplayer"],
        mask_ratio=case.hyper["mask_ratio"],
        decoder_width=sizes["dec_dim"],
        decoder_depth=sizes["dec_depth"],
        decoder_heads=sizes["dec_heads"],
        decoder_mlp_ratio=case.hyper["mlp_ratio"],
        **options,
    )
    renamed = {name.replace("decoderfeature_", "decoder_"): value for name, value in decoder_part(weights).items()}
    own = {name: value for name, value in renamed.items() if not name.startswith("encoderfeature")}
    method.decoders[GOAL].load_official(own)
    return method


def unshuffled(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens [cls, kept, masked] in the order of the grid."""
    index = torch.cat((torch.zeros_like(order[:, :1]), 1 + order.argsort(dim=1)), dim=1)
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def test_every_value_of_the_reference(case, monkeypatch):
    images, noise = case.inputs["image"], case.inputs["noise"]
    visible = visible_count(case.hyper["num_patches"], case.hyper["mask_ratio"])
    assert visible == case.hyper["len_keep"]
    kept, masked = split_by_noise(noise, visible)
    order = torch.cat((kept, masked), dim=1)
    case.check("mask", torch.ones_like(noise).scatter(1, kept, 0.0).to(case.expected["mask"].dtype))
    monkeypatch.setattr(Masking, "draw", lambda *_args, **_options: (kept, masked))

    method = method_of(case)
    network, block = method.teachers[0].network, case.hyper["teacher_suplayer"] - 1
    with torch.no_grad():
        hidden = network(images, keep=kept, capture=Capture.at(block, "output", head=False)).tokens(block)
    case.check("teacher_decoder_hidden", hidden.all)
    latent = method.student(images, keep=kept).final.all
    predicted = method.decoders[GOAL](latent, kept, masked, "all")
    case.check("student_decoder_prediction", unshuffled(predicted, order))
    step = method(images)
    case.check("loss_supervise_all", step.terms[GOAL])
    step.loss.backward()
    case.check("grad_norm_patch_embed_weight", method.student.net.patch_embed.proj.weight.grad.norm())
    case.check("grad_norm_mask_token", method.decoders[GOAL].mask_token.grad.norm())
    case.check("loss_masked_only", method_of(case, supervise="masked")(images).loss)

    # The encoder's term has weight 0 in the authors' code, so it is no part of the method; that it is the same shows
    # that both encoders are.
    inside = network.encoder(images, keep=kept, capture=Capture.at(-1, "output", head=False)).tokens(-1).all
    case.check("teacher_encoder_prenorm", inside)
    mlp, prefix = Mlp(latent.shape[2], inside.shape[2], inside.shape[2]), "encoderfeature_pred."
    weights = case.part("student").items()
    mlp.load_state_dict({name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)})
    case.check("student_encoder_prediction", mlp(latent))
    target = F.layer_norm(inside, inside.shape[2:], eps=1e-6)
    case.check("encoder_term_logged_weight_zero", F.smooth_l1_loss(mlp(latent), target, beta=2.0))
    assert case.checked == set(case.expected)


def test_a_file_of_the_authors_loads_as_an_encoder(case, tmp_path):
    from vitdistill.models.build import build

    path = tmp_path / "g2sd.pth"
    torch.save({"model": case.part("student")}, path)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
    network = build(f"vit_tiny_patch16_224@{path}", args=sizes)
    expected = as_network(encoder(case, "student"))(case.inputs["image"]).final.all
    assert network.num_classes == 0 and torch.equal(network(case.inputs["image"]).final.all, expected)
