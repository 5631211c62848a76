"""VideoMAE's cubes: cutting, joining and reconstruction are inverse to each other."""

import pytest
import torch

from vitdistill.methods.targets.cubes import cut, join
from vitdistill.methods.videomae import VideoMAE
from vitdistill.models.build import build

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "frames": 4, "num_classes": 0}


def test_joined_cubes_are_the_clip() -> None:
    clips = torch.randn(2, 3, 4, 16, 16)
    grid = build("video_vit_small_patch16_224", args=SMALL).grid
    assert torch.equal(join(cut(clips, grid).flatten(2), grid, clips.shape), clips)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_reconstruction_keeps_what_was_seen_and_a_perfect_prediction_gives_the_clip(norm_pix: bool) -> None:
    torch.manual_seed(0)
    student = build("video_vit_small_patch16_224", args=SMALL)
    sizes = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    method = VideoMAE(student, mask_ratio=0.5, norm_pix=norm_pix, **sizes).eval()
    clips = torch.randn(2, 3, 4, 16, 16)
    kept, masked = method.masking.draw(2, student.grid, device=clips.device)
    with torch.no_grad():
        guessed = method.reconstruct(clips, kept, masked)
        values = method.targets["pixels"].values(clips, kept, masked)
    same = (cut(guessed - clips, student.grid).abs().flatten(2).amax(2) < 1e-5).nonzero()
    assert same[:, 1].tolist() == kept.sort(dim=1).values.flatten().tolist()

    class Oracle(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, kept: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
            return values.gather(1, masked[..., None].expand(-1, -1, values.shape[2]))

    method.decoders["pixels"] = Oracle()
    with torch.no_grad():
        torch.testing.assert_close(method.reconstruct(clips, kept, masked), clips, atol=1e-4, rtol=0)
