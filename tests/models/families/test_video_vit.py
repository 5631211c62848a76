"""The video ViT: grids, positions, biases, and weights of VideoMAE, MVD and Hugging Face."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitdistill.errors import UserError
from vitdistill.methods.mvd import MVD, per_token_distillation
from vitdistill.methods.options import FeatureDecoder
from vitdistill.methods.videomae import VideoMAE
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import VideoViT
from vitdistill.tokens.positions import sincos_3d, sinusoid_1d
from vitdistill.types import Capture, TokenGrid

NAME = "video_vit_small_patch16_224"
SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "frames": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def randomised(backbone: VideoViT, seed: int = 0) -> VideoViT:
    """Random biases and norms as well, but fixed positions stay."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.net.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return backbone


def test_the_sizes_are_the_papers() -> None:
    for size, params in (("small", 22e6), ("base", 86e6), ("large", 304e6), ("huge", 632e6)):
        backbone = build(f"video_vit_{size}_patch16_224", args={"num_classes": 0}, meta=True)
        assert isinstance(backbone, VideoViT) and backbone.grid == TokenGrid(8, 14, 14) and backbone.input.frames == 16
        trained = sum(p.numel() for n, p in backbone.net.named_parameters() if n != "pos_embed")
        assert trained == pytest.approx(params, rel=0.02)


def test_timm_builds_it_by_name(clips: torch.Tensor) -> None:
    net = timm.create_model(NAME, **SMALL, num_classes=5)
    assert net(clips).shape == (2, 5)


def test_tokens_are_cubes_frame_by_frame(clips: torch.Tensor) -> None:
    backbone = build(NAME, args={**SMALL, "num_classes": 0})
    with torch.no_grad():
        backbone.net.pos_embed.zero_()
    tokens = backbone.embed(clips)
    weight = backbone.net.patch_embed.proj.weight.flatten(1)
    cube = clips[:, :, 2:4, 0:8, 8:16].flatten(1)  # second time step, first row, second column
    torch.testing.assert_close(tokens[:, 4 + 1], cube @ weight.T + backbone.net.patch_embed.proj.bias)


def test_keys_have_no_bias_and_never_learn_one(clips: torch.Tensor) -> None:
    backbone = randomised(build(NAME, args={**SMALL, "num_classes": 5}))
    expected = backbone(clips).prediction
    for block in backbone.blocks:
        assert block.attn.qkv.bias.shape == (144,)
    expected.sum().backward()
    for block in backbone.blocks:
        gradient = block.attn.qkv.bias.grad
        assert not gradient[48:96].any() and gradient[:48].any() and gradient[96:].any()
        with torch.no_grad():
            block.attn.qkv.bias[48:96] = 7.0
    assert torch.equal(backbone(clips).prediction, expected)


def test_position_tables() -> None:
    grid = TokenGrid(2, 3, 4)
    table = sincos_3d(32, grid)[0].view(2, 3, 4, 32)
    assert torch.equal(table[0, 0, 0, :8], table[0, 2, 3, :8]) and not torch.equal(
        table[0, 0, 0, :8], table[1, 0, 0, :8]
    )
    assert torch.equal(table[0, 1, 2, 8:], table[1, 1, 2, 8:])
    row = sinusoid_1d(6, grid)[0]
    torch.testing.assert_close(
        row[5, 2:4].double(),
        torch.tensor([5 / 10000 ** (2 / 6)])
        .double()
        .sin()
        .repeat(2)
        .put_(torch.tensor([1]), torch.tensor([5 / 10000 ** (2 / 6)]).double().cos()),
    )
    with pytest.raises(UserError, match="multiple of 16; got 24"):
        sincos_3d(24, grid)


@pytest.mark.parametrize(("frames", "remedy"), [(5, "Use 4 or 6"), (1, "Use 2"), (0, "Use 2")])
def test_frames_must_fill_tubelets(frames: int, remedy: str) -> None:
    with pytest.raises(UserError, match=f"multiple of the tubelet's 2; got {frames}. {remedy}"):
        build(NAME, args={**SMALL, "frames": frames})


# --- weights --------------------


def split_biases(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights under the names of VideoMAE's release."""
    official = {}
    for name, value in state.items():
        if name.endswith("qkv.bias"):
            third = len(value) // 3
            official[name.replace("qkv.bias", "q_bias")] = value[:third]
            official[name.replace("qkv.bias", "v_bias")] = value[2 * third :]
        elif name != "pos_embed":
            official[name] = value
    return official


@pytest.mark.parametrize("prefix", ["encoder.", ""])
def test_videomae_s_files_bring_their_own_positions(prefix: str, clips: torch.Tensor, tmp_path: Path) -> None:
    original = randomised(build(NAME, args={**SMALL, "num_classes": 0, "positions": "sinusoid_1d"}))
    official = {f"{prefix}{name}": value for name, value in split_biases(original.net.state_dict()).items()}
    extra = {
        "mask_token": torch.zeros(1, 1, 4),
        "decoder.norm.weight": torch.ones(4),
        "encoder_to_decoder.weight": torch.ones(4, 4),
    }
    torch.save({"model": {**official, **(extra if prefix else {})}}, tmp_path / "videomae.pth")
    loaded = build(f"{NAME}@{tmp_path / 'videomae.pth'}", args=SMALL)
    assert loaded.num_classes == 0 and torch.equal(loaded(clips).final.all, original(clips).final.all)
    with pytest.raises(UserError, match="trained with the positions sinusoid_1d; got sincos_3d"):
        build(f"{NAME}@{tmp_path / 'videomae.pth'}", args={**SMALL, "positions": "sincos_3d"})


@pytest.mark.parametrize("positions", ["sincos_3d", "sinusoid_1d"])
def test_fine_tuned_files_must_be_told_apart(positions: str, clips: torch.Tensor, tmp_path: Path) -> None:
    """The authors' fine-tuning code keeps its table out of the file, whichever it is."""
    original = randomised(build(NAME, args={**SMALL, "num_classes": 4, "positions": positions}))
    official = {k: v for k, v in split_biases(original.net.state_dict()).items() if k != "pos_embed"}
    torch.save({"module": official}, tmp_path / "tuned.pth")
    file = f"{NAME}@{tmp_path / 'tuned.pth'}"
    with pytest.raises(UserError, match="does not say which positions.*sincos_3d for MVD's"):
        build(file, args=SMALL)
    loaded = build(file, args={**SMALL, "positions": positions})
    assert torch.equal(loaded(clips).prediction, original(clips).prediction)


def test_mvd_s_files_hold_their_table(clips: torch.Tensor, tmp_path: Path) -> None:
    original = randomised(build(NAME, args={**SMALL, "num_classes": 0}))
    state = original.net.state_dict()
    official = {
        **split_biases(state),
        "pos_embed": state["pos_embed"],
        "down_img.weight": torch.ones(2, 2),
        "mask_token_vid": torch.ones(1),
    }
    save_file(official, tmp_path / "mvd.safetensors")
    loaded = build(f"{NAME}@{tmp_path / 'mvd.safetensors'}", args=SMALL)
    assert torch.equal(loaded(clips).final.all, original(clips).final.all)


@pytest.mark.parametrize("kind", ["pretraining", "classification", "encoder"])
def test_hugging_face_s_weights_give_hugging_face_s_features(kind: str, clips: torch.Tensor, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        decoder_hidden_size=24,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=48,
        num_labels=5,
        use_mean_pooling=kind == "classification",
    )
    torch.manual_seed(0)
    kinds = {
        "pretraining": transformers.VideoMAEForPreTraining,
        "classification": transformers.VideoMAEForVideoClassification,
        "encoder": transformers.VideoMAEModel,
    }
    theirs = kinds[kind](config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "position_embeddings" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in theirs.named_parameters():
            if name.endswith("key.bias"):
                parameter.zero_()  # the published models have none
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "hf.safetensors")
    classifies = kind == "classification"
    ours = build(f"{NAME}@{tmp_path / 'hf.safetensors'}", args=SMALL).eval()
    frames = clips.transpose(1, 2)
    with torch.no_grad():
        if classifies:
            torch.testing.assert_close(ours(clips).prediction, theirs(frames).logits, rtol=1e-4, atol=1e-4)
        else:
            body = theirs.videomae if kind == "pretraining" else theirs
            hidden = ours(clips, capture=Capture.at(-1, "output")).tokens(-1).all
            expected = body(frames, output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((2, 4, 3, 16, 16), r"Swap frames and channels: clips\.transpose\(1, 2\)"),
        ((2, 3, 4, 32, 32), "Build the network with the frames and img_size of the clips, or resize these"),
        ((2, 3, 8, 8, 16), "Build the network"),
        ((2, 3, 16, 16), "Build the network"),
    ],
)
def test_clips_of_another_shape_are_refused_by_every_method(shape: tuple[int, ...], remedy: str) -> None:
    student = build(NAME, args={**SMALL, "num_classes": 2})
    image = build("vit_tiny_patch16_224", args={key: SMALL[key] for key in SMALL if key != "frames"})
    small = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    mvd = MVD(student, image_teacher=image, decoder=FeatureDecoder(width=16, depth=1, heads=2))
    for method in (student, mvd, VideoMAE(student, **small), per_token_distillation(student, image_teacher=image)):
        with pytest.raises(UserError, match=rf"here \(b, 3, 4, 16, 16\); got .*{shape[-1]}\)\. {remedy}"):
            method(torch.zeros(shape))
