"""Similarity of frames: what is compared, that all networks see the same, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny import tiny
from vitdistill.data.bundled.moving_digits import moving_digits
from vitdistill.data.clips.samples import VideoSamples
from vitdistill.data.clips.video import Video
from vitdistill.data.open import open_source
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.evaluation.similarity import (
    Compared,
    Comparison,
    Steps,
    Wanted,
    common_steps,
    compare,
    distinct,
    frame_similarity,
    step_features,
    teachers_of,
)
from vitdistill.methods.targets.features import TeacherFeatures, matched_teacher
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.masking import Masking

STEPS = Steps(frames=8, count=4)


def video_vit(seed: int = 0, **args: Any) -> Backbone:
    """32 pixels, 8 frames in 4 steps, 4 x 4 patches."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    torch.manual_seed(seed)
    return build("video_vit_small_patch16_224", args={**sizes, "frames": 8, **args}).eval()


def clips(b: int = 2) -> Tensor:
    return torch.randn(b, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))


def similarity_of(backbone: Backbone, seen: Tensor, block: int = -1) -> Tensor:
    return frame_similarity(step_features(Teacher(backbone), seen, STEPS, block))


@pytest.mark.parametrize("family", ["vit", "registers", "no_class_token", "cait"])
def test_every_frame_of_a_still_clip_is_the_same_to_an_image_network(family: str) -> None:
    still = clips()[:, :, :1].expand(-1, -1, 8, -1, -1)
    torch.testing.assert_close(similarity_of(build(tiny(family)), still), torch.ones(2, 4, 4))
    moving = similarity_of(build(tiny(family)), clips())
    assert float(moving[:, 0, 1:].max()) < 0.99999


def test_a_video_network_tells_the_moments_of_a_still_clip_apart() -> None:
    still = clips()[:, :, :1].expand(-1, -1, 8, -1, -1)
    assert float(similarity_of(video_vit(), still)[:, 0, 3].max()) < 0.9999  # by their positions


@pytest.mark.parametrize("backbone", [build(tiny("vit")), video_vit()], ids=["image", "video"])
def test_matrices_are_symmetric_with_a_unit_diagonal(backbone: Backbone) -> None:
    found = similarity_of(backbone, clips())
    assert found.shape == (2, 4, 4)
    torch.testing.assert_close(found, found.mT)
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(2, 4))
    assert float(found.abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["image", "video"])
def test_it_is_what_a_plain_loop_gives(kind: str) -> None:
    backbone = build(tiny("registers")) if kind == "image" else video_vit()
    net, seen = backbone.net, clips()
    blocks: dict[int, Tensor] = {}
    for index, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _m, _i, out, index=index: blocks.__setitem__(index, out))
    expected = torch.empty(2, 4, 4)
    with torch.no_grad():
        for number, clip in enumerate(seen):
            features = []
            for step in range(4):
                net(clip[None, :, 2 * step] if kind == "image" else clip[None])
                tokens = blocks[1][0]  # the second block, whatever stands behind it
                own = tokens[5:] if kind == "image" else tokens[16 * step : 16 * (step + 1)]
                features.append(own.mean(dim=0))
            for i in range(4):
                for j in range(4):
                    expected[number, i, j] = F.cosine_similarity(features[i], features[j], dim=0)
    torch.testing.assert_close(similarity_of(backbone, seen, block=1), expected)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_features_are_those_that_mvd_takes_as_targets(kind: str) -> None:
    student = video_vit()
    backbone = build(tiny("vit")) if kind == "image" else video_vit(seed=1)
    teacher = Teacher(backbone, mean=student.input.mean, std=student.input.std)
    kept, masked = Masking(0.5, "tube").draw(2, student.grid)
    target = TeacherFeatures(matched_teacher(kind, teacher, student)).values(clips(), kept, masked)
    expected = target.unflatten(1, (4, 16)).mean(dim=2)
    torch.testing.assert_close(step_features(teacher, clips(), STEPS), expected)


# --- over a set of videos --------------------


class Squares(VideoSamples):
    """Videos whose frames all have their own brightness; some may be broken."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[Video, int]:  # type: ignore[override]
        if index in self.broken:
            raise OSError
        return Square(index), 0

    def path(self, index: int) -> str:
        return f"square {index}"

    @property
    def labels(self) -> list[int]:
        return [0] * self.count


class Square(Video):
    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def length(self) -> int:
        return 20

    def read(self, frames: Any, short_side: int | None = None) -> np.ndarray:
        side = short_side or 32
        ramp = np.linspace(0, 1, side)[None, :, None, None] * np.ones((1, 1, side, 3))
        levels = np.array([(37 * self.number + 12 * frame) % 256 for frame in frames])[:, None, None, None]
        return (ramp * levels).astype(np.uint8)


def squares(count: int, broken: tuple[int, ...] = ()) -> DataSource:
    return DataSource("squares", Squares(1), Squares(count, broken), ["a"])


def both() -> list[Compared]:
    return [Compared("image", build(tiny("vit")), "image teacher"), Compared("video", video_vit())]


def seen_by_hand(numbers: list[int], backbone: Backbone) -> Tensor:
    """The middle clips of these videos, with stride 2, normalised for a network."""
    frames = torch.stack([torch.from_numpy(Square(n).read(range(2, 18, 2), 32)) for n in numbers])
    mean, std = torch.tensor(backbone.input.mean), torch.tensor(backbone.input.std)
    return ((frames.float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)


def test_matrices_are_means_over_the_same_evenly_spread_clips() -> None:
    found = compare(both(), squares(9), clips=3, stride=2, batch_size=2, device="cpu", workers=0)
    assert (found.clips, found.steps, found.unreadable) == (3, STEPS, ())
    assert found.steps.first_frames == [0, 2, 4, 6]
    assert [(one.name, one.role, one.block) for one in found.plain] == [
        ("image", "image teacher", 2),
        ("video", "model", 1),
    ]
    for network, one in zip(both(), found.plain, strict=True):  # each network with its own statistics
        expected = similarity_of(network.backbone, seen_by_hand([0, 4, 8], network.backbone)).mean(dim=0)
        torch.testing.assert_close(one.matrix, expected, rtol=1e-4, atol=1e-5)
    image = found.plain[0]
    assert image.apart(1) == pytest.approx(float(image.matrix.diagonal(1).mean()))
    assert image.apart(3) == pytest.approx(float(image.matrix[0, 3]))


def test_centred_matrices_leave_out_what_all_frames_share() -> None:
    network = both()[0]
    found = compare([*both()], squares(9), clips=3, stride=2, device="cpu", workers=0)
    features = step_features(Teacher(network.backbone), seen_by_hand([0, 4, 8], network.backbone), STEPS)
    expected = frame_similarity(features - features.mean(dim=(0, 1))).mean(dim=0)
    torch.testing.assert_close(found.centred[0].matrix, expected, rtol=1e-3, atol=1e-3)


def test_the_batch_size_and_the_other_networks_do_not_matter() -> None:
    options: dict[str, Any] = {"clips": 5, "stride": 1, "device": "cpu", "workers": 0}
    whole = compare(both(), squares(5), batch_size=5, **options)
    alone = compare(both()[1:], squares(5), batch_size=2, **options)
    torch.testing.assert_close(alone.plain[0].matrix, whole.plain[1].matrix)


def test_networks_of_other_sizes_see_resized_clips() -> None:
    larger = Compared("larger", build(tiny("vit", img_size=64)))
    found = compare([*both(), larger], squares(2), clips=2, stride=1, device="cpu", workers=0)
    assert {one.matrix.shape for one in found.plain} == {(4, 4)}


def test_unreadable_clips_are_left_out_and_named() -> None:
    found = compare(both(), squares(4, broken=(1,)), clips=4, stride=1, device="cpu", workers=0)
    assert found.clips == 3 and found.unreadable == ("square 1",)
    with pytest.raises(UserError, match="At least one clip must be readable; got none of 2"):
        compare(both(), squares(2, broken=(0, 1)), clips=2, stride=1, device="cpu", workers=0)


def test_bundled_clips_are_taken_whole() -> None:
    source = moving_digits()
    assert common_steps([Compared("image", build(tiny("vit")))], source) == Steps(16, 8)
    found = compare([Compared("image", build(tiny("vit")))], source, clips=2, device="cpu")
    assert isinstance(found, Comparison) and found.plain[0].matrix.shape == (8, 8) and found.steps.half == 4


# --- bad input --------------------


def test_a_source_without_videos_is_refused() -> None:
    with pytest.raises(UserError, match="compared in videos; got digits, which holds images. Give --data"):
        compare(both(), open_source("digits"), device="cpu")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: Compared("cnn", build("resnet10t")), "resnet10t hands out logits only"),
        (lambda: Compared("net", build(tiny("vit")), block=3), "has blocks 0 to 2; got 3"),
        (lambda: Compared("net", build(tiny("swin"))), "does not hand out block outputs"),
        (lambda: Compared("other", video_vit(frames=4)), "video sees 8 frames in 4 steps; other sees 4 frames in 2 st"),
        (lambda: Compared("one", video_vit(frames=2)), "video sees 8"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(network: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        compare([*both(), network()], squares(2), clips=2, stride=1, device="cpu", workers=0)
    assert "\n" not in str(error.value)


def test_a_single_step_no_clip_and_broken_features_are_refused() -> None:
    options: dict[str, Any] = {"stride": 1, "device": "cpu", "workers": 0}
    with pytest.raises(UserError, match="from two time steps on; got 2 frames in 1 step"):
        compare([Compared("one", video_vit(frames=2))], squares(2), **options)
    with pytest.raises(UserError, match="at least one clip"):
        compare(both(), squares(2), clips=0, **options)
    broken = both()
    with torch.no_grad():
        next(broken[1].backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="features of video must be finite; got nan or inf"):
        compare(broken, squares(2), **options)


# --- which networks --------------------


def test_teachers_are_those_of_the_configuration() -> None:
    config = {"image_teacher": "a", "image_teacher_args": {"img_size": 32}, "video_teacher": None}
    assert teachers_of(config) == [Wanted("a", "image teacher", {"img_size": 32})]
    assert teachers_of({"teacher": "a"}) == []
    both_ = teachers_of({"image_teacher": "a", "video_teacher": "b"})
    assert [(one.spec, one.role) for one in both_] == [("a", "image teacher"), ("b", "video teacher")]


def test_a_network_is_taken_once_however_its_path_is_written(tmp_path: Any) -> None:
    (tmp_path / "run").mkdir()
    first, again = Wanted(str(tmp_path / "run"), "video teacher"), Wanted(f"{tmp_path}/x/../run/")
    (tmp_path / "x").mkdir()
    other = Wanted(str(tmp_path / "run"), "image teacher", {"img_size": 32})
    assert distinct([first, again, other, first]) == [first, other]
    assert again.name == "run" and Wanted("vit_tiny_patch16_224").name == "vit_tiny_patch16_224"
