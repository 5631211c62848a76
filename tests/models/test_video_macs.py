"""MACs of MVD's parts for B <- B at 16 frames of 224 pixels: the specification's 140, 178, 14 and 59 G."""

import pytest
import torch

from vitdistill.methods.mvd import _decoder
from vitdistill.methods.options import FeatureDecoder
from vitdistill.models.build import build
from vitdistill.models.families.video_vit import check_video
from vitdistill.models.macs import self_attention_macs
from vitdistill.types import Capture

LAST = Capture.at(-1, "output", head=False)


def test_teachers_student_and_decoders_cost_what_the_specification_says() -> None:
    image = build("vit_base_patch16_224", args={"num_classes": 0}, meta=True)
    video = check_video(build("video_vit_base_patch16_224", args={"num_classes": 0}, meta=True), "student")
    assert 8 * image.macs(capture=LAST, layernorm=False).total / 1e9 == pytest.approx(140, rel=0.03)
    assert video.macs(capture=LAST, layernorm=False).total / 1e9 == pytest.approx(178, rel=0.03)
    # The specification leaves out the embedding, which covers all 1568 tokens: the blocks see 160 of them.
    student = video.macs(160, capture=LAST, layernorm=False)
    assert student.blocks / 1e9 == pytest.approx(14, rel=0.03)
    with torch.device("meta"):
        decoder = _decoder(video, 768, FeatureDecoder(width=768, heads=12))
    blocks = sum(self_attention_macs(block, 1568, layernorm=False).total for block in decoder.blocks)
    assert 2 * blocks / 1e9 == pytest.approx(59, rel=0.03)
