"""Position embeddings on another grid come from the grid on which they were trained, however the file says it."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.methods.mae import MAE
from vitdistill.models.build import build
from vitdistill.models.record import METADATA, ModelRecord
from vitdistill.models.weights.positions import grid_of, resample
from vitdistill.tokens.positions import sincos_2d, sincos_3d
from vitdistill.types import TokenGrid

VIT = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
PAIRS = [((16, 64), (32, 32)), ((32, 32), (16, 64)), ((16, 64), (64, 16)), ((32, 64), (64, 128)), ((32, 32), (64, 64))]


def right(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int, patch: int = 8) -> torch.Tensor:
    """The recorded grid interpolated, written out."""
    grid, wanted = [side // patch for side in old], [side // patch for side in new]
    image = table[:, prefix:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=wanted, mode="bicubic", antialias=True)
    return torch.cat((table[:, :prefix], image.permute(0, 2, 3, 1).reshape(1, wanted[0] * wanted[1], -1)), 1)


def saved(folder: Path, name: str, args: dict[str, Any], old: tuple[int, int]) -> torch.nn.Module:
    """A network trained at `old`, as a run directory holds it."""
    net = timm.create_model(name, num_classes=10, **args, img_size=old)
    torch.nn.init.normal_(net.pos_embed)
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, folder / "student.safetensors")
    ModelRecord(name, {**args, "img_size": list(old), "num_classes": 10}, [0.5] * 3, [0.5] * 3).write(folder)
    return net


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize(
    ("name", "prefix", "more"),
    [
        (VIT, 1, {}),
        ("deit_tiny_distilled_patch16_224", 2, {}),
        ("deit3_small_patch16_224", 0, {}),
        ("vit_small_patch14_reg4_dinov2", 0, {}),
        ("cait_xxs24_224", 0, {}),
        ("vit_small_patch16_rope_ape_224", 0, {}),
    ],
)
def test_a_run_at_another_size(tmp_path, name, prefix, more, old, new):
    net = saved(tmp_path / "run", name, {**SMALL, **more}, old)
    again = build(str(tmp_path / "run"), args={"img_size": list(new)}).net.pos_embed
    prefix = net.pos_embed.shape[1] - old[0] * old[1] // 64
    torch.testing.assert_close(again, right(net.pos_embed, old, new, prefix), atol=0, rtol=0)


@pytest.mark.parametrize(("old", "new"), PAIRS[:2])
def test_the_record_in_a_file_counts_as_well(tmp_path, old, new):
    net = saved(tmp_path / "run", VIT, SMALL, old)
    record = ModelRecord.read(tmp_path / "run")
    save_file(dict(net.state_dict()), tmp_path / "w.safetensors", metadata=record.metadata())
    assert METADATA in record.metadata()
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")  # under a wrong suffix, too
    again = build(f"{VIT}@{tmp_path / 'w.bin'}", args={"img_size": list(new)}).net.pos_embed
    torch.testing.assert_close(again, right(net.pos_embed, old, new, 1), atol=0, rtol=0)


def test_the_record_beside_a_file_counts_as_well(tmp_path):
    net = saved(tmp_path / "run", VIT, SMALL, (16, 64))
    for place in (tmp_path / "run", tmp_path / "run" / "student.safetensors"):
        again = build(f"{VIT}@{place}", args={"img_size": [32, 32]}).net.pos_embed
        torch.testing.assert_close(again, right(net.pos_embed, (16, 64), (32, 32), 1), atol=0, rtol=0)


def test_a_file_that_does_not_say_its_grid(tmp_path):
    net = saved(tmp_path / "run", VIT, SMALL, (16, 64))
    (tmp_path / "run" / "student.json").unlink()
    spec = f"{VIT}@{tmp_path / 'run' / 'student.safetensors'}"
    square = build(spec, args=SMALL, image_size=32).net.pos_embed  # as of 4x4 patches: nothing says otherwise
    torch.testing.assert_close(square, net.pos_embed, atol=0, rtol=0)
    for new in ((16, 64), (64, 16)):
        with pytest.raises(UserError, match=r"16 positions, 4x4 or \dx\d patches\. Set file_img_size"):
            build(spec, args={**SMALL, "img_size": new})
    for new in ((16, 64), (32, 32), (64, 16), (64, 128)):
        table = build(spec, args={**SMALL, "img_size": new, "file_img_size": [16, 64]}).net.pos_embed
        torch.testing.assert_close(table, right(net.pos_embed, (16, 64), new, 1), atol=0, rtol=0)
    with pytest.raises(UserError, match="file_img_size must be the image size.*got 16x32, which is 2x4 patches"):
        build(spec, args={**SMALL, "img_size": 32, "file_img_size": [16, 32]})
    with pytest.raises(UserError, match="file_img_size belongs to a weights file"):
        build(VIT, args={**SMALL, "file_img_size": [16, 64]})


def test_an_oblong_file_without_a_record(tmp_path):
    net = saved(tmp_path / "run", VIT, SMALL, (32, 64))
    (tmp_path / "run" / "student.json").unlink()
    spec = f"{VIT}@{tmp_path / 'run' / 'student.safetensors'}"
    assert torch.equal(build(spec, args={**SMALL, "img_size": (32, 64)}).net.pos_embed, net.pos_embed)
    with pytest.raises(UserError, match="32 positions, which is no square"):
        build(spec, args={**SMALL, "img_size": 64})


def test_patches_and_grid_may_change_together(tmp_path):
    net = saved(tmp_path / "run", VIT, SMALL, (16, 64))
    again = build(str(tmp_path / "run"), args={"img_size": [32, 32], "patch_size": 4}).net
    assert again.patch_embed.proj.weight.shape[-2:] == (4, 4)
    expected = resample(net.pos_embed, (2, 8), (8, 8), 1)
    torch.testing.assert_close(again.pos_embed, expected, atol=0, rtol=0)


def test_timm_resampling_what_it_takes_for_a_square_is_refused(tmp_path):
    name = "tnt_s_legacy_patch16_224"
    net = timm.create_model(
        name, num_classes=2, img_size=(32, 128), embed_dim=24, inner_dim=4, depth=1, num_heads_outer=2
    )
    args = {"img_size": [32, 128], "embed_dim": 24, "inner_dim": 4, "depth": 1, "num_heads_outer": 2, "num_classes": 2}
    save_file(dict(net.state_dict()), tmp_path / "student.safetensors")
    ModelRecord(name, args, [0.5] * 3, [0.5] * 3).write(tmp_path)
    assert build(str(tmp_path)).num_classes == 2
    with pytest.raises(UserError, match="between square images only; got 32x128 to 64x64"):
        build(str(tmp_path), args={"img_size": [64, 64]})


def test_rotary_networks_have_no_positions_to_resample(tmp_path):
    args = {**SMALL, "patch_size": 8}
    net = timm.create_model("vit_small_patch16_dinov3", num_classes=3, img_size=(16, 64), **args)
    save_file(dict(net.state_dict()), tmp_path / "student.safetensors")
    ModelRecord("vit_small_patch16_dinov3", {**args, "img_size": [16, 64], "num_classes": 3}).write(tmp_path)
    again = build(str(tmp_path), args={"img_size": [32, 32]}).net
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())


def test_positions_over_space_and_time_are_those_of_the_new_grid(tmp_path):
    name, args = "video_vit_small_patch16_224", {**SMALL, "embed_dim": 48, "frames": 4}
    net = build(name, args={**args, "img_size": [16, 64]}, num_classes=2).net
    save_file(dict(net.state_dict()), tmp_path / "student.safetensors")
    ModelRecord(name, {**args, "img_size": [16, 64], "num_classes": 2}).write(tmp_path)
    again = build(str(tmp_path), args={"img_size": [32, 32]}).net
    assert torch.equal(again.pos_embed, sincos_3d(48, TokenGrid(2, 4, 4)))
    again = build(str(tmp_path), args={"img_size": [32, 32], "frames": 8}).net
    assert torch.equal(again.pos_embed, sincos_3d(48, TokenGrid(4, 4, 4)))
    assert torch.equal(build(str(tmp_path)).net.pos_embed, net.pos_embed)


def test_the_decoder_of_a_full_file_gets_the_table_of_its_own_grid(tmp_path):
    def method(size: tuple[int, int]) -> MAE:
        student = build(VIT, args={**SMALL, "img_size": size, "num_classes": 0})
        return MAE(student, decoder_width=16, decoder_depth=1, decoder_heads=2)

    trained = method((16, 64))
    torch.nn.init.normal_(trained.student.net.pos_embed)
    state = trained.artifacts(dict(trained.state_dict()))["mae.safetensors"]
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "mae.safetensors")
    ModelRecord(VIT, {**SMALL, "img_size": [16, 64], "num_classes": 0}).write(tmp_path)
    for new in ((32, 32), (64, 64)):
        begun = method(new)
        begun.load_full(tmp_path / "mae.safetensors")
        fixed = sincos_2d(16, TokenGrid(1, new[0] // 8, new[1] // 8), 1)
        torch.testing.assert_close(begun.decoder.pos_embed, fixed)
        table = right(trained.student.net.pos_embed, (16, 64), new, 1)
        torch.testing.assert_close(begun.student.net.pos_embed, table, atol=0, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_known_size_always_gives_its_grid(old, new):
    assert grid_of(old[0] * old[1], new, (4, 4), (old[0] * 4 + 3, old[1] * 4)) == old  # timm's patches round down
    table = torch.arange(float(old[0] * old[1] + 2)).reshape(1, -1, 1)
    moved = resample(table, old, new, 2)
    assert moved.shape == (1, new[0] * new[1] + 2, 1) and torch.equal(moved[:, :2], table[:, :2])


def test_tiny_networks_keep_theirs():
    net = tiny("vit")
    assert resample(net.pos_embed, (4, 4), (4, 4), 1) is net.pos_embed
