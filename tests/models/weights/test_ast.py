"""Files of AST: transformers' own forward pass, the authors' names, clips of another length, and DeiT's."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.record import ModelRecord, has_new_head, record_of
from vitdistill.models.weights.read import load_into
from vitdistill.models.weights.spectrograms import fitted, positions_on

TINY: dict[str, Any] = {"img_size": [48, 64], "embed_dim": 24, "depth": 2, "num_heads": 3}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}


def theirs(frames: int = 64, **config: Any) -> Any:
    """A random model of transformers over 48 mel bins; every parameter random."""
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(1)
        given = {**SIZES, "num_mel_bins": 48, "max_length": frames, **NAMES, **config}
        model = transformers.ASTForAudioClassification(transformers.ASTConfig(**given)).eval()
        for parameter in model.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return model


def scores(model: Any, spectrograms: Tensor) -> Tensor:
    with torch.no_grad():
        return model(spectrograms[:, 0].transpose(1, 2)).logits  # they have time first


def ours(network: nn.Module, spectrograms: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(spectrograms).prediction


@pytest.fixture
def spectrograms() -> Tensor:
    return torch.randn(2, 1, 48, 64, generator=torch.Generator().manual_seed(5))


def test_the_forward_pass_is_theirs_at_the_authors_epsilons(tmp_path, spectrograms) -> None:
    """config.json has 1e-12 for all norms; the weights were trained with 1e-6, and in the classifier with 1e-5."""
    model = theirs(layer_norm_eps=1e-6)
    model.classifier.layernorm.eps = 1e-5
    model.save_pretrained(tmp_path)
    network = build(str(tmp_path))
    torch.testing.assert_close(ours(network, spectrograms), scores(model, spectrograms), atol=1e-6, rtol=0)
    model.classifier.layernorm.eps = 1e-6  # as transformers has it
    torch.testing.assert_close(ours(network, spectrograms), scores(model, spectrograms), atol=1e-4, rtol=0)
    assert record_of(network.net).classes == ["cat", "dog", "cow"]
    # Without preprocessor_config.json the statistics are AudioSet's, as in transformers.
    assert network.input.mean == (-4.2677393,) and network.input.std == (2 * 4.5689974,)


@pytest.mark.parametrize("old", [14, 24])
def test_frequencies_that_are_cut_are_those_that_transformers_sees(old: int, spectrograms) -> None:
    """Their model takes an adapted table as it is: 14 or 24 frequencies cut to the 4 of these spectrograms."""
    deit = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        **{"img_size": 16 * old, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0},
    )
    with torch.no_grad():
        for parameter in deit.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    network = build("ast_tiny", args={**TINY, "num_classes": 0})
    load_into(network.net, fitted(deit.state_dict(), network.net, {}), "DeiT")
    model = theirs(layer_norm_eps=1e-6).audio_spectrogram_transformer
    state = {name.removeprefix("embeddings."): value for name, value in model.state_dict().items()}
    with torch.no_grad():
        table = deit.pos_embed[:, 2:].reshape(1, old, old, 24).permute(0, 3, 1, 2)
        middle = slice(old // 2 - 2, old // 2 + 2), slice(old // 2 - 2, old // 2 + 3)
        cut = table[:, :, middle[0], middle[1]].flatten(2).transpose(1, 2)
        embed = model.embeddings
        embed.position_embeddings.copy_(torch.cat((deit.pos_embed[:, :2], cut), dim=1))
        embed.cls_token.copy_(deit.cls_token)
        embed.distillation_token.copy_(deit.dist_token)
        embed.patch_embeddings.projection.weight.copy_(deit.patch_embed.proj.weight.sum(dim=1, keepdim=True))
        embed.patch_embeddings.projection.bias.copy_(deit.patch_embed.proj.bias)
        got = network.net._pos_embed(network.net.patch_embed(spectrograms))
        torch.testing.assert_close(got, embed(spectrograms[:, 0].transpose(1, 2)), atol=1e-5, rtol=0)
    assert "position_embeddings" in state


def test_clips_of_another_length(tmp_path, spectrograms) -> None:
    """From 112 frames to 64: the middle of the table is cut out, as for AudioSet's weights on ESC-50."""
    model = theirs(frames=112)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"mean": -3.0, "std": 2.0, "do_normalize": True}))
    whole = build(str(tmp_path))
    assert whole.input.shape == (1, 48, 112) and whole.input.mean == (-3.0,) and whole.input.std == (4.0,)
    assert whole.num_classes == 3
    cut = build(str(tmp_path), args={"img_size": [48, 64], "statistics": "esc50"})
    assert cut.input.shape == (1, 48, 64) and cut.input.mean == (-6.6268077,)
    expected = positions_on(whole.net.pos_embed.detach(), (4, 10), (4, 5))
    assert torch.equal(cut.net.pos_embed, expected) and torch.equal(cut.net.head.weight, whole.net.head.weight)
    other = build(f"ast_base384@{tmp_path}", args={**TINY}, num_classes=7)
    assert torch.equal(other.net.pos_embed, expected) and has_new_head(other.net) and other.num_classes == 7


@pytest.mark.parametrize("names", ["authors", "bare_authors", "disk", "memory", "wrapped"])
def test_files_under_all_names(names: str, tmp_path, caplog) -> None:
    model = theirs(frames=112)
    model.save_pretrained(tmp_path / "disk")
    reference = build(str(tmp_path / "disk")).net.state_dict()
    if names == "disk":
        file = tmp_path / "disk" / "model.safetensors"
    else:
        state = model.state_dict()
        if names == "wrapped":
            state = {"state_dict": {f"model.{name}": value for name, value in state.items()}}
        elif "authors" in names:
            heads = {"v.head.weight": torch.zeros(9, 24), "v.head_dist.bias": torch.zeros(9)}
            theirs_of = {"head_norm": "mlp_head.0", "head": "mlp_head.1"}
            renamed = {
                f"{theirs_of[part]}.{name}" if (part := key.rpartition(".")[0]) in theirs_of else f"v.{key}": value
                for key, value in reference.items()
                for name in [key.rpartition(".")[2]]
            }
            start = "module." if names == "authors" else ""
            state = {start + name: value for name, value in {**renamed, **heads}.items()}
        file = tmp_path / "file.pth"
        torch.save(state, file)
    net = build(f"ast_base384@{file}", args=TINY).net
    assert net.num_classes == 3 and not caplog.records
    for name, value in net.state_dict().items():
        expected = reference[name] if name != "pos_embed" else positions_on(reference[name], (4, 10), (4, 5))
        assert torch.equal(value, expected), name
    body = build(f"ast_base384@{file}", args=TINY, num_classes=0).net
    assert body.num_classes == 0 and not any(name.startswith("head") for name in body.state_dict())


def test_deits_file_gives_a_body(tmp_path, caplog) -> None:
    deit = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        **{"img_size": 224, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 6},
    )
    torch.save({"model": deit.state_dict()}, tmp_path / "deit.pth")
    body = build(f"ast_tiny@{tmp_path / 'deit.pth'}", args=TINY)
    assert body.num_classes == 0 and torch.equal(body.net.blocks[0].mlp.fc1.weight, deit.blocks[0].mlp.fc1.weight)
    assert torch.equal(body.net.pos_embed, positions_on(deit.pos_embed, (14, 14), (4, 5)))
    assert "mean" not in caplog.text


def test_a_run_is_built_for_other_clips_and_other_data(tmp_path) -> None:
    """Its record says on which spectrograms its positions were trained, also where the table could be a square."""
    from safetensors.torch import save_file

    network = build("ast_tiny", args={**TINY, "img_size": [48, 104], "stride": [16, 8]}, num_classes=4)  # 3 x 12 = 36
    record: ModelRecord = record_of(network.net)
    record.classes = ["a", "b", "c", "d"]
    record.write(tmp_path)
    tensors = {name: value.contiguous() for name, value in network.net.state_dict().items()}
    save_file(tensors, tmp_path / "student.safetensors")
    again = build(str(tmp_path))
    assert torch.equal(again.net.pos_embed, network.net.pos_embed) and again.num_classes == 4
    other = build(str(tmp_path), args={"img_size": [48, 64], "stride": [16, 8], "statistics": "audioset"})
    assert torch.equal(other.net.pos_embed, positions_on(network.net.pos_embed.detach(), (3, 12), (3, 7)))
    assert other.input.mean == (-4.2677393,) and record_of(other.net).mean == [-4.2677393]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path / "ast")
    vit = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3}
    with pytest.raises(UserError, match=r"a file that looks like AST \(an audio network\)"):
        build(f"vit_tiny_patch16_224@{tmp_path / 'ast' / 'model.safetensors'}", args=vit)
    bare = theirs().audio_spectrogram_transformer.state_dict()
    torch.save(bare, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="a file of AST, which hears spectrograms.*: ast_base@FILE"):
        build(f"vit_tiny_patch16_224@{tmp_path / 'bare.pth'}", args=vit)
    assert build(f"ast_tiny@{tmp_path / 'bare.pth'}", args=TINY).num_classes == 0
    plain = timm.create_model("vit_tiny_patch16_224", **vit)
    torch.save(plain.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match="tensors 1 missing .dist_token.*1 of another shape .pos_embed"):
        build(f"ast_tiny@{tmp_path / 'vit.pth'}", args=TINY)
    config = json.loads((tmp_path / "ast" / "config.json").read_text())
    (tmp_path / "ast" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    with pytest.raises(UserError, match="epsilon of LayerNorm"):
        build(str(tmp_path / "ast"))
