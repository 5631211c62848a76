"""Files as their authors publish them, made from random networks of timm: the names that timm converts by itself."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitdistill.models.build import build

ARGS: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def random_net(name: str, **more: Any) -> nn.Module:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(1)
        net = timm.create_model(name, **ARGS, **more).eval()
        for parameter in net.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    return net


def same(path: Path, content: dict[str, Any], name: str, net: nn.Module, **options: Any) -> None:
    torch.save(content, path)
    state = build(f"{name}@{path}", args=ARGS, **options).net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def dinov3(net: nn.Module) -> dict[str, Tensor]:
    """Meta's names: biases of q, k and v in one, with a mask over those of the keys."""
    state, names = {}, (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"))
    for name, value in net.state_dict().items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        if name.endswith("q_bias"):
            stem = name.removesuffix("q_bias")
            values = net.state_dict()[f"{stem}v_bias"]
            state[f"{stem}qkv.bias"] = torch.cat((value, torch.zeros_like(value), values))
            state[f"{stem}qkv.bias_mask"] = torch.ones(72)
        elif not name.endswith("v_bias"):
            state[name] = value
    return {**state, "mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(4)}


@pytest.mark.parametrize("prefix", [None, "backbone."])
def test_dinov3(tmp_path, prefix):
    name = "vit_small_patch16_dinov3_qkvb"
    net = random_net(name)
    state: dict[str, Any] = dinov3(net)
    if prefix:
        state = {"teacher": {prefix + key: value for key, value in state.items()}}
    same(tmp_path / "w.pth", state, name, net)


def openai_clip(net: nn.Module) -> dict[str, Tensor]:
    """OpenAI's names, with a text encoder beside."""
    state = {"text_projection": torch.ones(3, 3), "transformer.resblocks.0.ln_1.weight": torch.ones(3)}
    renames = (("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"), ("norm.", "ln_post."), ("norm", "ln_"))
    more = (("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("qkv.", "in_proj_"), ("attn.proj", "attn.out_proj"))
    for name, value in net.state_dict().items():
        for ours, theirs in (*renames, *more, ("patch_embed.proj", "conv1")):
            name = name.replace(ours, theirs)
        special = {"head.weight": "proj", "cls_token": "class_embedding", "pos_embed": "positional_embedding"}
        flat = value.T if name == "head.weight" else value.reshape(-1) if name == "cls_token" else value
        if name != "head.bias":
            state[f"visual.{special.get(name, name)}"] = (flat[0] if name == "pos_embed" else flat).clone()
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_openais_clip(tmp_path, prefix):
    name = "vit_base_patch16_clip_quickgelu_224"
    net = random_net(name, num_classes=12)
    nn.init.zeros_(net.head.bias)
    state = {prefix + key: value for key, value in openai_clip(net).items()}
    same(tmp_path / "w.pth", {"state_dict": state}, name, net)


def test_open_clip_over_timm(tmp_path):
    name = "vit_base_patch16_clip_quickgelu_224"
    net = random_net(name, num_classes=12)
    nn.init.zeros_(net.head.bias)
    state = {f"visual.trunk.{key}": value for key, value in net.state_dict().items() if not key.startswith("head")}
    state |= {"visual.head.proj.weight": net.head.weight.detach(), "text.token_embedding.weight": torch.ones(2)}
    same(tmp_path / "w.pth", state, name, net, num_classes=12)
