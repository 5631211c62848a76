"""The generic stage of G2SD: one mask, where the teacher stops, at which tokens it is compared; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.g2sd import G2SD, GOAL
from vitdistill.methods.mae import MAE
from vitdistill.methods.masked_modelling import Goal, MaskedModelling
from vitdistill.methods.targets.decoder_hidden import DecoderHidden
from vitdistill.models.autoencoder import MaskedAutoencoder, decoder_of
from vitdistill.models.build import build
from vitdistill.models.decoder import Decoder, tokens_at
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.masking import Masking, random_mask
from vitdistill.training.train import export_weights
from vitdistill.types import Capture

SIZES: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def autoencoder(depth: int = 4, name: str = "vit", **options: Any) -> MaskedAutoencoder:
    torch.manual_seed(4)
    method = MAE(tiny(name, seed=2, **options), decoder_width=20, decoder_depth=depth, decoder_heads=2)
    return MaskedAutoencoder(method.student, method.decoder)


def g2sd(**options: Any) -> G2SD:
    return G2SD(tiny("vit", seed=1), options.pop("teacher", None) or autoencoder(), **{**SIZES, **options})


def test_both_see_one_mask_and_the_loss_covers_every_token(images, monkeypatch):
    method, (kept, masked) = g2sd(), random_mask(3, 16, 4)
    monkeypatch.setattr(Masking, "draw", lambda *_args, **_options: (kept, masked))
    teacher = method.teachers[0].network
    with torch.no_grad():
        latent = teacher.encoder(images, keep=kept).final.all
        hidden = teacher.decoder.hidden(latent, kept, masked, 2)
    wanted = F.layer_norm(hidden, hidden.shape[2:], eps=1e-6)
    predicted = method.decoders[GOAL](method.student(images, keep=kept).final.all, kept, masked, "all")
    assert predicted.shape == wanted.shape == (3, 17, 20)
    torch.testing.assert_close(method(images).loss, F.smooth_l1_loss(predicted, wanted, beta=2.0))
    only = g2sd(supervise="masked")
    only.load_state_dict(method.state_dict())
    torch.testing.assert_close(only(images).loss, F.smooth_l1_loss(predicted[:, 5:], wanted[:, 5:], beta=2.0))


@pytest.mark.parametrize(("asked", "ran"), [(None, 2), (1, 1), (4, 4)], ids=["half", "first", "last"])
def test_the_teacher_stops_behind_the_block_that_is_compared(images, asked, ran):
    method, seen = g2sd(teacher_block=asked), []
    decoder = method.teachers[0].network.decoder
    for module in (*decoder.blocks, decoder.norm, decoder.pred):
        module.register_forward_hook(lambda *_: seen.append(1))
    method(images)
    assert len(seen) == ran


def test_the_whole_autoencoder_predicts_what_its_decoder_does(images):
    network, (kept, masked) = autoencoder(), random_mask(3, 16, 4)
    output = network(images, keep=kept, capture=Capture.at(-1, "output"))
    latent = network.encoder(images, keep=kept).final.all
    predicted = network.decoder(latent, kept, masked)
    assert output.prediction.shape == (3, 16, 192)
    picked = tokens_at(output.prediction, kept, masked, "masked")
    torch.testing.assert_close(picked, predicted)
    assert torch.equal(
        tokens_at(output.tokens(-1).all, kept, masked, "masked"),
        output.tokens(-1).patches.gather(1, masked[:, :, None].expand(-1, -1, 20)),
    )
    whole = network(images).prediction
    assert whole.shape == (3, 16, 192) and not torch.equal(whole, output.prediction)


def test_several_masks_of_an_input_have_a_teacher_pass_each(images):
    student = build(tiny("vit", seed=1))
    target = DecoderHidden(Teacher.of(autoencoder(), student))
    decoder = Decoder(student.grid, 1, student.width, target.channels, width=16, depth=1, heads=2, predictor="mlp")
    method = MaskedModelling(student, {GOAL: Goal(target, decoder)}, masks_per_clip=3)
    assert bool(method(images).loss.isfinite())
    assert [(one.role, one.times, one.embeds) for one in method.passes(0.0)] == [
        *(("student", 1, True), ("student", 2, False), ("teacher", 1, True), ("teacher", 2, False))
    ]


@pytest.mark.parametrize(("width", "sizes"), [(192, (128, 4)), (384, (256, 8))], ids=["Ti", "S"])
def test_the_students_decoder_is_the_papers(width, sizes):
    student = tiny("vit", seed=1, embed_dim=width, num_heads=3)
    decoder = G2SD(student, autoencoder()).decoders[GOAL]
    assert (decoder.width, decoder.blocks[0].attn.num_heads) == sizes and len(decoder.blocks) == 4
    assert decoder.pred.fc1.weight.shape == (20, decoder.width) and decoder.pred.fc2.weight.shape == (20, 20)


def test_a_decoder_of_another_image_size_gets_positions_of_its_own_grid(tmp_path: Path):
    torch.manual_seed(0)
    method = MAE(tiny("vit", seed=2), **SIZES)
    path = tmp_path / "mae.safetensors"
    export_weights(method.artifacts(method.state_dict())["mae.safetensors"], path, None)
    sizes = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "file_img_size": 32}
    encoder = build(f"vit_tiny_patch16_224@{path}", args={**sizes, "img_size": 48})
    decoder = decoder_of(path, encoder, heads=2)
    assert decoder.pos_embed.shape == (1, 37, 16) and len(decoder.blocks) == 1
    torch.testing.assert_close(decoder.pos_embed, Decoder(encoder.grid, 1, 24, 3, width=16, heads=2).pos_embed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": tiny("vit", seed=2)}, r"must come with its decoder, and .* is an encoder alone\. Give MAE's full"),
        ({"teacher_block": 5}, "teacher_block must lie between 1 and 4, the depth of the teacher's decoder; got 5"),
        ({"teacher": autoencoder(img_size=64)}, r"same patches; .* has 8x8 and .* 4x4.*--teacher_args\.img_size 32"),
        ({"teacher": autoencoder(name="registers")}, "as many special tokens; got 1 and 5.*--supervise masked"),
        ({"mask_ratio": 0.99}, "must leave at least one patch to see"),
        ({"decoder_heads": 3}, "multiple of its heads"),
    ],
    ids=["encoder", "block", "patches", "special tokens", "ratio", "heads"],
)
def test_bad_input_is_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as error:
        g2sd(**options)
    assert "\n" not in str(error.value)


def test_an_autoencoder_hands_out_outputs_of_its_decoder_alone(images):
    with pytest.raises(UserError, match="hands out the outputs of its blocks 0 to 3; got qkv of block 0"):
        autoencoder()(images, capture=Capture.at(0, "qkv"))
    method = MAE(tiny("vit", seed=2), **SIZES)
    with pytest.raises(UserError, match="must take the 17 tokens of 36 channels"):
        MaskedAutoencoder(tiny("vit", embed_dim=36), method.decoder)
