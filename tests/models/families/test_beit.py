"""BEiT: what is its own beside the contract of all backbones."""

import pytest
import timm
import torch
from torch import Tensor

from tiny import SMALL, tiny
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.backbone import with_tokens
from vitdistill.models.families import as_network, beit
from vitdistill.models.surgery.attention_heads import set_heads

KEEP = torch.tensor([[0, 3, 8], [1, 2, 15], [4, 5, 6]])


@pytest.mark.parametrize(
    "positions",
    [
        {"use_abs_pos_emb": True, "use_rel_pos_bias": False},
        {"use_rel_pos_bias": True},
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ],
)
def test_positions_of_each_kind(positions: dict[str, bool], images: Tensor) -> None:
    """Patches that are left out change nothing, whatever they show; those that are kept are known by their places."""
    torch.manual_seed(0)
    net = timm.create_model("beit_base_patch16_224", **{**SMALL, **positions})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * parameter + 0.2 * torch.randn_like(parameter))
    backbone = as_network(net.eval())
    with torch.no_grad():
        assert torch.equal(backbone(images).prediction, net(images))
        every = backbone(images, keep=torch.arange(16).expand(3, -1)).prediction
        torch.testing.assert_close(every, net(images), rtol=1e-5, atol=1e-5)
        expected = backbone(images, keep=KEEP).prediction
        shuffled = backbone(images, keep=KEEP.flip(1)).prediction
        torch.testing.assert_close(shuffled, expected, rtol=1e-5, atol=1e-5)
        moved = images.clone()
        moved[..., 16:24, 16:24] = 5.0  # patch 10, which nobody keeps
        assert torch.equal(backbone(moved, keep=KEEP).prediction, expected)


def test_too_many_biases_are_refused(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beit, "MOST", 3 * 3 * 4**2)
    backbone = as_network(tiny("beit"))
    assert backbone(images, keep=KEEP).prediction.shape == (3, 10)
    with pytest.raises(UserError, match="3 images, 3 heads, 5 tokens. Use a smaller batch") as error:
        backbone(images, keep=torch.arange(4).expand(3, -1))
    assert "\n" not in str(error.value) and backbone(images).prediction.shape == (3, 10)


def test_attention_cannot_be_compared_and_heads_cannot_be_split() -> None:
    with pytest.raises(UserError, match="to which the network adds relative positions; got beit"):
        MaskedKD(tiny("deit", seed=1), tiny("beit", seed=2), distill="attention")
    with pytest.raises(UserError, match="relative positions, .* fix their width; got 4 heads"):
        set_heads(with_tokens(as_network(tiny("beit"))), {-1: 4})
