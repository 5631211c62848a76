"""Folders that transformers saves, compared with its own forward pass: in its names on disk and in memory."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.mae import MAE
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import VideoViT
from vitdistill.models.record import record_of

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
TEXT = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50},
    **{"bos_token_id": 1, "eos_token_id": 2},
}


class Case(NamedTuple):
    """A model of transformers, what it gives for a batch, and the same from timm's network."""

    model: Callable[[], Any]
    theirs: Callable[[Any, Tensor], Tensor]
    ours: Callable[[Any, Tensor], Tensor] = lambda net, x: net.forward_features(x)
    tolerance: float = 1e-6
    classes: tuple[str, ...] = ()


def tf(name: str) -> Any:
    return getattr(transformers, name)


def all_patches(encoder: Any, images: Tensor) -> Tensor:
    """ViTMAE without masking, in order."""
    encoder.config.mask_ratio = encoder.embeddings.config.mask_ratio = 0.0
    return encoder(images, noise=torch.arange(16.0).expand(len(images), -1)).last_hidden_state


def hidden(model: Any, x: Tensor) -> Tensor:
    return model(x).last_hidden_state


def logits(model: Any, x: Tensor) -> Tensor:
    return model(x).logits


def image_features(model: Any, x: Tensor) -> Tensor:
    out = model.get_image_features(x)
    return getattr(out, "pooler_output", out)


def score(net: Any, x: Tensor) -> Tensor:
    return net(x)


def clip(**more: Any) -> Any:
    return tf("CLIPConfig")(text_config=TEXT, vision_config=SIZES, projection_dim=12, **more)


CASES: dict[str, Case] = {
    # Their epsilon of LayerNorm is 1e-12 and timm's 1e-6, which tiny random networks show.
    "vit": Case(
        lambda: tf("ViTForImageClassification")(tf("ViTConfig")(**SIZES, **NAMES)),
        logits,
        score,
        1e-5,
        ("cat", "dog", "cow"),
    ),
    "vit_bare": Case(lambda: tf("ViTModel")(tf("ViTConfig")(**SIZES)), hidden, tolerance=1e-5),
    "vit_simmim": Case(
        lambda: tf("ViTForMaskedImageModeling")(tf("ViTConfig")(**SIZES)), lambda m, x: hidden(m.vit, x), tolerance=1e-5
    ),
    "vit_gelu_tanh": Case(
        lambda: tf("ViTModel")(tf("ViTConfig")(**SIZES, hidden_act="gelu_new", qkv_bias=False)), hidden, tolerance=1e-5
    ),
    "vit_grey": Case(
        lambda: tf("ViTModel")(tf("ViTConfig")(**SIZES, num_channels=1)),
        lambda m, x: hidden(m, x[:, :1]),
        lambda net, x: net.forward_features(x[:, :1]),
        1e-5,
    ),
    "deit_two_heads": Case(
        lambda: tf("DeiTForImageClassificationWithTeacher")(tf("DeiTConfig")(**SIZES, **NAMES)),
        logits,
        score,
        1e-5,
        ("cat", "dog", "cow"),
    ),
    "deit_one_head": Case(
        lambda: tf("DeiTForImageClassification")(tf("DeiTConfig")(**SIZES, **NAMES)),
        logits,
        score,
        1e-5,
        ("cat", "dog", "cow"),
    ),
    "deit_bare": Case(lambda: tf("DeiTModel")(tf("DeiTConfig")(**SIZES)), hidden, tolerance=1e-5),
    "dinov2": Case(lambda: tf("Dinov2Model")(tf("Dinov2Config")(**DINO)), hidden),
    "dinov2_giant": Case(lambda: tf("Dinov2Model")(tf("Dinov2Config")(**DINO, use_swiglu_ffn=True)), hidden),
    "dinov2_classifier": Case(
        lambda: tf("Dinov2ForImageClassification")(tf("Dinov2Config")(**DINO, **NAMES)),
        lambda m, x: hidden(m.dinov2, x),
    ),
    "dinov2_registers": Case(
        lambda: tf("Dinov2WithRegistersModel")(tf("Dinov2WithRegistersConfig")(**DINO, num_register_tokens=3)), hidden
    ),
    "dinov2_registers_giant": Case(
        lambda: tf("Dinov2WithRegistersForImageClassification")(
            tf("Dinov2WithRegistersConfig")(**DINO, use_swiglu_ffn=True)
        ),
        lambda m, x: hidden(m.dinov2_with_registers, x),
    ),
    "dinov3": Case(lambda: tf("DINOv3ViTModel")(tf("DINOv3ViTConfig")(**SIZES, num_register_tokens=4)), hidden),
    "dinov3_plus": Case(
        lambda: tf("DINOv3ViTModel")(
            tf("DINOv3ViTConfig")(**SIZES, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu")
        ),
        hidden,
    ),
    "mae": Case(
        lambda: tf("ViTMAEForPreTraining")(tf("ViTMAEConfig")(**SIZES, **DECODER)),
        lambda m, x: all_patches(m.vit, x),
        tolerance=1e-5,
    ),
    "mae_bare": Case(lambda: tf("ViTMAEModel")(tf("ViTMAEConfig")(**SIZES)), all_patches, tolerance=1e-5),
    "clip": Case(lambda: tf("CLIPModel")(clip()), image_features, score),
    "clip_gelu": Case(
        lambda: tf("CLIPVisionModelWithProjection")(
            tf("CLIPVisionConfig")(**SIZES, hidden_act="gelu", projection_dim=9)
        ),
        lambda m, x: m(x).image_embeds,
        score,
    ),
    "clip_bare": Case(
        lambda: tf("CLIPVisionModel")(tf("CLIPVisionConfig")(**SIZES)),
        lambda m, x: m(x).pooler_output,
        lambda net, x: net.forward_features(x)[:, 0],
    ),
    "clip_classifier": Case(
        lambda: tf("CLIPForImageClassification")(clip(**NAMES)), logits, score, classes=("cat", "dog", "cow")
    ),
    # They leave the epsilon of fc_norm at 1e-5, where VideoMAE has 1e-6.
    "videomae": Case(
        lambda: tf("VideoMAEForVideoClassification")(tf("VideoMAEConfig")(**SIZES, num_frames=4, **NAMES)),
        lambda m, x: m(clips(x)).logits,
        lambda net, x: net(clips(x).transpose(1, 2)),
        5e-5,
        ("cat", "dog", "cow"),
    ),
    "videomae_pretrained": Case(
        lambda: tf("VideoMAEForPreTraining")(
            tf("VideoMAEConfig")(**SIZES, **DECODER, num_frames=4, use_mean_pooling=False)
        ),
        lambda m, x: m.videomae(clips(x)).last_hidden_state,
        lambda net, x: net.forward_features(clips(x).transpose(1, 2)),
        1e-5,
    ),
    "videomae_without_norm": Case(
        lambda: tf("VideoMAEModel")(tf("VideoMAEConfig")(**SIZES, num_frames=4)),
        lambda m, x: m(clips(x)).last_hidden_state,
        lambda net, x: net.forward_features(clips(x).transpose(1, 2)),
        1e-5,
    ),
}


def clips(images: Tensor) -> Tensor:
    """Four frames of each image, as transformers takes them: (b, t, 3, h, w)."""
    return torch.stack([images, images.flip(-1), 2 * images, images.roll(3, -2)], dim=1)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def random_model(case: Case) -> Any:
    """Every parameter random, so that nothing hides behind 0 or 1."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(1)
        model = case.model().eval()
        for parameter in model.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return model


def in_memory(model: nn.Module, saved: Path, folder: Path) -> Path:
    """The names of the live model, as `torch.save(model.state_dict())` leaves them."""
    folder.mkdir()
    (folder / "config.json").write_text((saved / "config.json").read_text())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_forward_pass_is_theirs(name, tmp_path, images):
    case = CASES[name]
    model = random_model(case)
    model.save_pretrained(tmp_path / "disk")
    with torch.no_grad():
        theirs = case.theirs(model, images)
    for folder in (tmp_path / "disk", in_memory(model, tmp_path / "disk", tmp_path / "memory")):
        network = build(str(folder)).eval()
        with torch.no_grad():
            ours = case.ours(network.net, images)
        torch.testing.assert_close(ours, theirs, atol=case.tolerance, rtol=0)
        record = record_of(network.net)
        assert tuple(record.classes) == case.classes and network.num_classes == record.args["num_classes"]
        if isinstance(network, Backbone):
            assert network.input.size == (32, 32)


def test_costs_are_counted_without_weights(tmp_path):
    random_model(CASES["vit"]).save_pretrained(tmp_path / "disk")
    memory = in_memory(random_model(CASES["vit"]), tmp_path / "disk", tmp_path / "memory")
    for folder in (tmp_path / "disk", memory):
        network = build(str(folder), meta=True)
        assert {p.device.type for p in network.parameters()} == {"meta"} and network.num_classes == 3


def test_transformers_own_wrapper_of_timm(tmp_path, images):
    config = tf("TimmWrapperConfig")(architecture="vit_tiny_patch16_224", model_args={**arguments()}, **NAMES)
    model = tf("TimmWrapperForImageClassification")(config).eval()
    model.save_pretrained(tmp_path)
    network = build(str(tmp_path), args=arguments()).eval()
    with torch.no_grad():
        assert torch.equal(network.net(images), model(images).logits)


def test_shards_and_an_architecture_by_name(tmp_path, images):
    case = CASES["vit"]
    model = random_model(case)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    for spec in (str(tmp_path / "a"), f"vit_base_patch16_224@{tmp_path / 'a'}"):
        net = build(spec, args=args).net.eval()
        with torch.no_grad():
            torch.testing.assert_close(net(images), model(images).logits, atol=1e-5, rtol=0)


def test_a_file_in_a_training_checkpoint(tmp_path, images):
    """A Lightning module that holds a model of transformers."""
    model = random_model(CASES["dinov2"])
    state = {f"model.backbone.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    net = build(f"vit_small_patch14_dinov2@{tmp_path / 'w.ckpt'}", args=args).net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net.forward_features(images), model(images).last_hidden_state, atol=1e-6, rtol=0)


def test_statistics_and_size_are_those_of_the_preparation(tmp_path):
    model = tf("Dinov2Model")(tf("Dinov2Config")(**DINO))
    model.save_pretrained(tmp_path)
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "crop_size": {"height": 24, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images | {"size": {"shortest_edge": 40}}))
    network = build(str(tmp_path))
    assert network.input.mean == (0.1, 0.2, 0.3) and network.input.std == (0.4, 0.5, 0.6)
    assert network.input.size == (24, 16) and network.net.pos_embed.shape == (1, 7, 24)
    assert build(str(tmp_path), image_size=48).input.size == (48, 48)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 30}}))
    assert build(str(tmp_path)).input.size == (32, 32)  # 30 is no multiple of 8


def test_oblong_images_of_a_config(tmp_path, images):
    model = tf("ViTModel")(tf("ViTConfig")(**{**SIZES, "image_size": [16, 64]}))
    model.save_pretrained(tmp_path)
    assert build(str(tmp_path)).input.size == (16, 64)
    moved = build(str(tmp_path), image_size=32).net.pos_embed
    table = model.embeddings.position_embeddings
    grid = table[:, 1:].reshape(1, 2, 8, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(moved[:, 1:], grid.permute(0, 2, 3, 1).flatten(1, 2), atol=0, rtol=0)


def test_the_classifier_of_dinov2_is_left_out_and_said_so(tmp_path, caplog):
    random_model(CASES["dinov2_classifier"]).save_pretrained(tmp_path)
    assert build(str(tmp_path)).num_classes == 0
    assert "which no network of timm does: left out" in caplog.text


@pytest.mark.parametrize("memory", ["disk", "memory", "hub"])
def test_mae_begins_with_a_folder_of_transformers(tmp_path, memory, images):
    """Encoder and decoder, under the decoder's three spellings."""
    model = random_model(CASES["mae"])
    model.save_pretrained(tmp_path / "disk")
    folder = tmp_path / "disk"
    if memory == "memory":
        folder = in_memory(model, folder, tmp_path / "memory")
    if memory == "hub":
        state = load_file(folder / "model.safetensors")
        renamed = {name.replace("decoder_encoder.layer", "decoder_layers"): value for name, value in state.items()}
        save_file(renamed, folder / "model.safetensors")
    student = build("vit_base_patch16_224.mae", args=arguments(), num_classes=0)
    method = MAE(student, decoder_width=16, decoder_depth=1, decoder_heads=2, norm_pix=False)
    method.load_full(folder)
    kept, masked = torch.arange(0, 16, 2).expand(2, -1), torch.arange(1, 16, 2).expand(2, -1)
    noise = torch.arange(16.0).roll(0) + 100 * (torch.arange(16) % 2)
    model.config.mask_ratio = model.vit.embeddings.config.mask_ratio = 0.5
    with torch.no_grad():
        theirs = model(images, noise=noise.expand(2, -1)).logits[:, 1::2]
        ours = method.decoder(method.student(images, keep=kept).final.all, kept, masked)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def arguments() -> dict[str, Any]:
    return {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def test_a_video_folder_is_a_video_network(tmp_path):
    random_model(CASES["videomae"]).save_pretrained(tmp_path)
    network = build(str(tmp_path))
    assert isinstance(network, VideoViT) and network.input.shape == (3, 4, 32, 32)
    assert record_of(network.net).args["positions"] == "sinusoid_1d"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "owlvit"}, "must be one of clip, .*; got 'owlvit'"),
        ({"model_type": "bert"}, "got 'bert'"),
        ({"layer_norm_eps": 1e-3}, "epsilon of LayerNorm"),
        ({"num_hidden_layers": 3}, "12 missing"),
        ({"hidden_size": 48}, "of another shape"),
        ({"hidden_size": None}, "must describe a network"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, change, message):
    tf("ViTModel")(tf("ViTConfig")(**SIZES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        build(str(tmp_path))


def test_damaged_folders(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="must hold model.safetensors or pytorch_model.bin"):
        build(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="must be JSON"):
        build(str(tmp_path))


def test_a_folder_that_timm_saves(tmp_path, images):
    import timm
    from timm.models import save_for_hf

    args = {**arguments(), "num_classes": 3}
    net = timm.create_model("vit_tiny_patch16_224", **args).eval()
    config = {
        "label_names": ["a", "b", "c"],
        "model_args": args,
        "pretrained_cfg": {"mean": [0.3] * 3, "std": [0.2] * 3},
    }
    save_for_hf(net, tmp_path, model_config=config)
    network = build(str(tmp_path)).eval()
    assert torch.equal(network.net(images), net(images)) and network.input.mean == (0.3,) * 3
    assert record_of(network.net).classes == ["a", "b", "c"]


def test_timms_dynamic_sizes_get_a_fixed_one(tmp_path, images):
    import timm
    from timm.models import save_for_hf

    args = {**arguments(), "num_classes": 3, "dynamic_img_size": True}
    net = timm.create_model("vit_tiny_patch16_224", **args).eval()
    save_for_hf(net, tmp_path, model_config={"model_args": args, "pretrained_cfg": {"input_size": [3, 32, 32]}})
    network = build(str(tmp_path)).eval()
    assert isinstance(network, Backbone) and network.grid.count == 16 and torch.equal(network.net(images), net(images))
    assert build(str(tmp_path), image_size=48).grid.count == 36  # type: ignore[attr-defined]


def test_a_repository_in_the_local_cache(tmp_path, images, monkeypatch):
    import huggingface_hub
    import huggingface_hub.constants

    model = random_model(CASES["vit"])
    repository = tmp_path / "models--owner--vit"
    snapshot = repository / "snapshots" / "abc"
    model.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    known = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: known(*a, cache_dir=tmp_path, **k))
    network = build("hf-hub:owner/vit", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(network.net(images), model(images).logits, atol=1e-5, rtol=0)
    fresh = build("hf-hub:owner/vit", num_classes=7)  # a student begins with random weights, as of timm's own
    assert fresh.num_classes == 7 and fresh.name == network.name
    assert not torch.equal(fresh.net.patch_embed.proj.weight, network.net.patch_embed.proj.weight)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="hf download owner/vit"):
        build("hf-hub:owner/vit")


def test_quiet_where_all_is_known(tmp_path, caplog):
    random_model(CASES["vit"]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    with caplog.at_level(logging.WARNING):
        build(str(tmp_path))
    assert not [record for record in caplog.records if record.name.startswith("vitdistill")]


@pytest.mark.parametrize("own_file", [True, False])
@pytest.mark.parametrize(
    "images",
    [
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
        {"image_mean": 0.5, "image_std": 0.25},
        {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "do_normalize": False},
        {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "rescale_factor": 1 / 127.5},
    ],
)
def test_images_are_normalised_as_transformers_does(tmp_path: Path, images: dict[str, Any], own_file: bool) -> None:
    """Whether its settings lie in a file of their own or in that of a processor."""
    tf("ViTModel")(tf("ViTConfig")(**SIZES)).save_pretrained(tmp_path)
    file, content = (
        ("preprocessor_config.json", images) if own_file else ("processor_config.json", {"image_processor": images})
    )
    (tmp_path / file).write_text(json.dumps(content))
    seen = build(str(tmp_path)).input
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    theirs = tf("ViTImageProcessor")(size={"height": 32, "width": 32}, **images)(
        pixels, return_tensors="pt"
    ).pixel_values
    mean, std = (torch.tensor(side).view(-1, 1, 1) for side in (seen.mean, seen.std))
    torch.testing.assert_close((pixels / 255 - mean) / std, theirs[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("labels", "classes"), [(["x", "y", "z"], ["x", "y", "z"]), ({"x": 0, "y": 1, "z": 2}, []), (None, [])]
)
def test_labels_in_other_forms(tmp_path: Path, labels: Any, classes: list[str]) -> None:
    tf("ViTForImageClassification")(tf("ViTConfig")(**SIZES, **NAMES)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": labels}))
    assert record_of(build(str(tmp_path)).net).classes == classes
