"""Tables of relative positions come from the window on which they were trained, however long they are."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resize_rel_pos_bias_table

from vitdistill.models.build import build
from vitdistill.models.record import ModelRecord
from vitdistill.training.train import export_weights

TABLE = "blocks.0.attn.relative_position_bias_table"
BEIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 2}


def saved(folder: Path, name: str, args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A run directory of a network with random tables, and its tensors."""
    net = timm.create_model(name, **args)
    for each, parameter in net.named_parameters():
        if each.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    record = ModelRecord(name, args)
    record.write(folder)
    export_weights(net.state_dict(), folder / "student.safetensors", record)
    return dict(net.state_dict())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((8, 40), (8, 40)),  # as many offsets as a window of 2x2 has
        ((8, 40), (16, 16)),
        ((16, 32), (32, 16)),  # as many as the other way round
        ((16, 32), (32, 32)),
        ((32, 32), (16, 32)),
    ],
)
def test_the_table_of_beit_is_resized_from_the_window_of_its_run(
    tmp_path: Path, old: tuple[int, int], new: tuple[int, int]
) -> None:
    table = saved(tmp_path, "beit_base_patch16_224", {**BEIT, "img_size": list(old)})[TABLE]
    (height, width), (rows, columns) = old, new
    own = build(str(tmp_path), args={"img_size": list(new)}).net.state_dict()[TABLE]
    windows = (rows // 8, columns // 8), tuple(own.shape), (height // 8, width // 8)
    right = table if old == new else resize_rel_pos_bias_table(table, *windows)
    torch.testing.assert_close(own, right, rtol=0, atol=0)


def test_a_run_of_swin_on_wide_images_comes_back_as_it_was(tmp_path: Path) -> None:
    args = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_classes": 2, "img_size": (32, 160)}
    tensors = saved(tmp_path, "swin_tiny_patch4_window7_224", args)
    again = build(str(tmp_path)).net.state_dict()
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
