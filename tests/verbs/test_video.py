"""Video from end to end: teachers, a distilled student, fine-tuning, evaluation, export; from memory and from mp4."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from killed_runs import kill
from run_reports import reports
from vitdistill.data.bundled.moving_digits import write_mp4
from vitdistill.data.images.augment import Augment
from vitdistill.data.open import open_source
from vitdistill.errors import UserError
from vitdistill.evaluation.classifier import averaged
from vitdistill.methods.options import FeatureDecoder
from vitdistill.models.build import build
from vitdistill.training.settings import Optim
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.job import Job
from vitdistill.verbs.knn import knn
from vitdistill.verbs.mae import mae
from vitdistill.verbs.masks import masks
from vitdistill.verbs.mvd import mvd
from vitdistill.verbs.pretraining import make_video_student
from vitdistill.verbs.probe import probe
from vitdistill.verbs.resume import resume
from vitdistill.verbs.tuning import inherited_sampling
from vitdistill.verbs.videomae import videomae

pytestmark = pytest.mark.usefixtures("few_digits")

NET: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
IMAGES: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
COMMON: dict[str, Any] = {
    "batch_size": 40,
    "epochs": 1,
    "augment": Augment(recipe="none"),
    "optim": Optim(lr=2e-3, lr_batch=0, warmup_epochs=0, min_lr=0.0),
}
VIDEO: dict[str, Any] = {"student": "video_vit_small_patch16_224", "student_args": NET, **COMMON}
SMALL_DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
DECODER = FeatureDecoder(width=16, depth=1, heads=2, drop_path=0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video teacher and an image teacher."""
    folder = tmp_path_factory.mktemp("video")
    with reports():
        videomae(data="moving_digits", out=str(folder / "video"), **VIDEO, **SMALL_DECODER)
    image = {**COMMON, "student": "vit_tiny_patch16_224", "student_args": IMAGES, "image_size": 16}
    mae(data="digits", out=str(folder / "image"), **image, **SMALL_DECODER)
    return folder


@pytest.fixture(scope="module")
def student(runs: Path) -> Path:
    teachers = {"image_teacher": str(runs / "image"), "video_teacher": str(runs / "video")}
    mvd(data="moving_digits", out=str(runs / "mvd"), **VIDEO, **teachers, decoder=DECODER)
    return runs / "mvd"


def test_co_teaching_records_both_losses(student: Path) -> None:
    rows = (student / "metrics.csv").read_text().splitlines()
    assert {"train/image", "train/video", "val/loss"} <= set(rows[0].split(","))
    record = json.loads((student / "student.json").read_text())
    assert record["architecture"] == "video_vit_small_patch16_224" and record["args"]["num_classes"] == 0
    backbone = build(str(student))
    assert (backbone.grid.t, backbone.grid.h, backbone.grid.w) == (8, 4, 4)


def test_the_student_is_fine_tuned_evaluated_and_exported(student: Path, tmp_path: Path) -> None:
    info = finetune(str(student), data="moving_digits:motion", out=str(tmp_path / "tuned"), drop_path=0.0, **COMMON)
    again = evaluate(str(tmp_path / "tuned"))
    assert again["top1"] == pytest.approx(info["accuracy"]["top1"], abs=1e-3) and again["images"] == 60
    result = export(str(tmp_path / "tuned"), format="onnx")
    assert Path(result["path"]).is_file() and result["max_difference"] < 1e-4
    table = build(str(tmp_path / "tuned")).net.pos_embed
    assert torch.equal(table, build(str(student)).net.pos_embed)  # fixed positions stay as they are


def test_from_mp4_files_to_a_tuned_student(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    write_mp4(tmp_path / "data", "digit", train=40, val=20, size=32)
    small = {**COMMON, "batch_size": 20, "augment": Augment(recipe="pretrain")}
    options = {**VIDEO, **small, "stride": 1, "frames": 16}
    teachers = {"image_teacher": str(runs / "image"), "video_teacher": str(runs / "video")}
    with reports():
        mvd(data=str(tmp_path / "data"), out=str(tmp_path / "mvd"), **options, **teachers, decoder=DECODER)
    assert {"train/image", "train/video"} <= set(
        (tmp_path / "mvd" / "metrics.csv").read_text().split("\n")[0].split(",")
    )
    tune = {**COMMON, "batch_size": 20, "head_init": 1.0}  # the run's stride, 1, as 4 would be refused
    # Mixup, erasing, RandAugment and two differently augmented clips of each video.
    recipe = Augment(recipe="finetune", repeats=2)
    finetune(
        str(tmp_path / "mvd"), data=str(tmp_path / "data"), out=str(tmp_path / "tuned"), **{**tune, "augment": recipe}
    )
    plain = evaluate(str(tmp_path / "tuned"))
    assert (plain["images"], plain["views"]) == (20, 1)
    knn(str(tmp_path / "tuned"), k=[3])
    shown = capsys.readouterr().out
    assert shown.count("videos") >= 2 and "images" not in shown
    page = (tmp_path / "mvd" / "report.html").read_text()
    assert "teacher MACs / video" in page and "teacher MACs / image" not in page
    tested = evaluate(str(tmp_path / "tuned"), clips=2, crops=3, batch_size=7)
    assert (tested["images"], tested["views"]) == (20, 6)
    # The clips are whole and square: all views are the same one.
    assert tested["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    shorter = evaluate(str(tmp_path / "tuned"), clips=3, model_args={"frames": 8})
    assert shorter["views"] == 3 and shorter["loss"] != pytest.approx(plain["loss"], rel=1e-6)
    with pytest.raises(UserError, match="A clip must not be longer than every video"):
        evaluate(str(tmp_path / "tuned"), stride=2)
    uniform = evaluate(str(tmp_path / "tuned"), sampling="uniform")  # one frame of each of 16 parts of 16 frames
    assert uniform["loss"] == pytest.approx(plain["loss"], rel=1e-6)


@pytest.mark.usefixtures("all_digits")
def test_bundled_features_know_how_the_digit_moves() -> None:
    """A tenth is chance, and 67% what they reach: a loader that shuffles frames or mixes up clips stays far below."""
    whole = knn("moving-digits-videomae", data="moving_digits:motion", k=[5])
    assert whole["scores"][0]["top1"] > 55


@pytest.fixture
def wide(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Two classes of videos of 24 frames of 48x32 pixels, a folder of frames each, and arguments of a network."""
    lines = [f"{name} 24 {name[-1]}" for name in ("video0", "video1")]
    for number, line in enumerate(lines):
        folder = tmp_path / line.split()[0]
        folder.mkdir()
        for index, frame in enumerate(np.random.default_rng(number).integers(0, 256, (24, 32, 48, 3), dtype=np.uint8)):
            Image.fromarray(frame).save(folder / f"{index:02d}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    args = {**NET, "img_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    net = timm.create_model("video_vit_small_patch16_224", **args, num_classes=2)
    torch.nn.init.normal_(net.head.weight)  # so that views differ in what they say
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = f"video_vit_small_patch16_224@{tmp_path / 'net.pth'}"
    return model, {"data": str(tmp_path), "model_args": args, "stride": 1, "workers": 0}


def test_views_of_wide_videos_are_those_cut_by_hand(wide: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    model, options = wide
    tested = evaluate(model, clips=2, crops=3, batch_size=6, **options)
    network = build(model, args=options["model_args"], pretrained=True).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (network.input.mean, network.input.std))
    losses, single = [], []
    for label in (0, 1):
        files = sorted((tmp_path / f"video{label}").iterdir())
        video = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(3, 0, 1, 2) / 255
        views = [video[:, start : start + 16, :, left : left + 32] for start in (0, 8) for left in (0, 8, 16)]
        with torch.inference_mode():
            shares = network((torch.stack([*views, video[:, 4:20, :, 8:40]]) - mean) / std).prediction.softmax(1)[
                :, label
            ]
        losses.append(-shares[:6].mean().log().item())
        single.append(-shares[6].log().item())
    assert tested["views"] == 6 and tested["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    plain = evaluate(model, **options)["loss"]
    assert plain == pytest.approx(sum(single) / 2, rel=1e-4) and abs(plain - tested["loss"]) > 1e-3


@pytest.mark.parametrize("verb", [evaluate, knn, probe])
def test_evaluation_of_clips_refuses_the_share_of_the_crop(verb: Any, wide: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="--crop_pct has no effect on clips"):
        verb(wide[0], crop_pct=0.9, **wide[1])


@pytest.mark.parametrize(("verb", "extra"), [(knn, {"k": 1}), (probe, {"lr": 0.1, "epochs": 1})])
def test_features_are_of_the_clips_asked_for(
    verb: Any, extra: dict[str, Any], wide: tuple[str, dict[str, Any]]
) -> None:
    model, options = wide
    assert verb(model, **extra, **options)["images"] == 2
    with pytest.raises(UserError, match="span 46 frames"):
        verb(model, **extra, **{**options, "stride": 3})
    assert verb(model, **extra, **{**options, "stride": None}, sampling="uniform")["images"] == 2


def test_a_students_own_frames_win_over_the_data_s(student: Path) -> None:
    source = open_source("moving_digits")
    options: dict[str, Any] = {"image_size": None, "positions": "sincos_3d", "drop_path": 0.0}
    make = partial(make_video_student, source=source, **options)
    eight = build(str(student), args={"frames": 8})
    assert make(eight, args=None).input.frames == 8
    fresh = "moving_digits_vit_small"
    assert make(fresh, args=None).input.frames == 16
    assert make(fresh, args={"frames": 8}).input.frames == 8
    assert make(str(student), args={"frames": 8}).input.frames == 8


def test_frames_are_an_option_wherever_clips_are_trained_on(student: Path) -> None:
    job = Job("videomae", {"frames": 8})
    for spec in ("moving_digits_vit_small", str(student), "video_vit_small_patch16_224@x.pth"):
        assert job.with_frames(spec, None, "student_args") == {"frames": 8}
        assert job.with_frames(spec, {"frames": 8, "depth": 1}, "student_args") == {"frames": 8, "depth": 1}
        with pytest.raises(UserError, match=r"--frames and --student_args\.frames must agree; got 8 and 4"):
            job.with_frames(spec, {"frames": 4}, "student_args")
    with pytest.raises(UserError, match="--frames has no effect on a module object, which brings its own"):
        job.with_frames(build(str(student)), None, "student_args")
    assert Job("videomae", {"frames": None}).with_frames("x", {"depth": 1}, "student_args") == {"depth": 1}


def test_fine_tuning_takes_clips_as_the_run_before_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("stride: 2\nsampling: dense\n")

    def taken(model: str, stride: int | None = None, sampling: str | None = None) -> dict[str, Any]:
        return inherited_sampling({"model": model, "stride": stride, "sampling": sampling})

    run = str(tmp_path)
    assert taken(run) == {"stride": 2, "sampling": "dense"}
    assert taken(run, stride=3) == {"stride": 3, "sampling": "dense"}
    assert taken(run, sampling="uniform") == {"stride": None, "sampling": "uniform"}
    assert taken("moving_digits_vit_small") == {"stride": None, "sampling": "dense"}
    (tmp_path / "config.yaml").write_text("stride: null\nsampling: uniform\n")
    assert taken(run) == {"stride": None, "sampling": "uniform"}


def test_a_group_of_options_is_no_dict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decoder must be a vitdistill\.FeatureDecoder; got a dict"):
        mvd(student="moving_digits_vit_small", data="moving_digits", out=str(tmp_path), decoder={"width": 32})


def test_pictures_of_masks_are_of_images(student: Path) -> None:
    with pytest.raises(UserError, match="masks shows images; .* sees clips"):
        masks([str(student)])


def test_views_average_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 0.0]])
    expected = torch.stack([logits[:2].softmax(1).mean(0), logits[2:].softmax(1).mean(0)]).log()
    torch.testing.assert_close(averaged(logits, 2), expected)


def test_an_image_network_sees_single_frames_of_videos(runs: Path, tmp_path: Path) -> None:
    small = {"student": "vit_tiny_patch16_224", "student_args": IMAGES, **COMMON, **SMALL_DECODER}
    info = mae(data="moving_digits", out=str(tmp_path / "image"), **small)
    assert info["data"]["train_images"] == 240
    assert knn(str(tmp_path / "image"), data="moving_digits", k=[5])["images"] == 60
    with pytest.raises(UserError, match="--clips has no effect with a network over single images"):
        evaluate("digits-teacher", data="moving_digits", clips=2)
    for given in ({"stride": 2}, {"sampling": "uniform"}):
        with pytest.raises(UserError, match=rf"--{next(iter(given))} has no effect with a network over single images"):
            finetune("digits-mae", data="moving_digits", out=str(tmp_path / "tuned"), **COMMON, **given)


def test_images_are_distilled_by_masked_features_as_well(runs: Path, tmp_path: Path) -> None:
    small = {"student": "vit_tiny_patch16_224", "student_args": IMAGES, "image_size": 16, **COMMON}
    options = {"image_teacher": str(runs / "image"), "decoder": DECODER, "mask_ratio": 0.75}
    mvd(data="digits", out=str(tmp_path / "mfm"), **small, **options)
    rows = (tmp_path / "mfm" / "metrics.csv").read_text().splitlines()
    assert {"train/image", "val/loss"} <= set(rows[0].split(","))
    with pytest.raises(UserError, match="frames"):
        mvd(data="digits", out=str(tmp_path / "frames"), frames=4, **small, **options)


PER_TOKEN = {"video_teacher": "video", "per_token": True, "decoder": FeatureDecoder()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs an image teacher, a video teacher, or both"),
        ({"video_teacher": "image"}, "video teacher must see videos.*sees images. Give it as the image teacher"),
        ({"image_teacher": "video"}, "image teacher must see images.*sees clips. Give it as the video teacher"),
        ({"video_teacher": "video", "frames": 15}, "multiple of the tubelet's 2; got 15. Use 14 or 16"),
        ({"video_teacher": "video", "data": "digits"}, "A network over clips needs videos; got single images"),
        ({"video_teacher": "video", "masks_per_clip": 0}, "masks_per_clip must be at least 1"),
        ({"video_teacher": "video", "bootstrap": 0.9}, "no other may be given"),
        ({"bootstrap": 1.5}, r"must lie in \(0, 1\); got 1.5"),
        ({"video_teacher": "video", "mask_ratio": 1.0}, "at least one patch to see"),
        ({"video_teacher": "video", "student_args": {**NET, "patch_size": 8}}, r"has 8x4x4 and the student 8x2x2"),
        ({"video_teacher": "video", "mask_ratio": 0.05}, "got 0.05 of 16 patches of each time step"),
        (
            {"image_teacher": "image", "video_teacher_args": {"img_size": 16}},
            "--video_teacher_args has no effect unless --video_teacher is given",
        ),
        (
            {"video_teacher": "video", "image_teacher_args": {"img_size": 16}},
            "--image_teacher_args has no effect unless --image_teacher is given",
        ),
        (
            {"image_teacher": "image", "video_weight": 5.0},
            "--video_weight has no effect unless --video_teacher or --bootstrap is given",
        ),
        (
            {"video_teacher": "video", "image_weight": 5.0},
            "--image_weight has no effect unless --image_teacher is given",
        ),
        ({"video_teacher": "video", "per_token": True}, "--decoder has no effect unless --per_token is false"),
        (
            {**PER_TOKEN, "masks_per_clip": 2, "mask": "random", "mask_ratio": 0.5},
            "--mask_ratio, --mask and --masks_per_clip have no effect unless --per_token is false",
        ),
    ],
)
def test_bad_input_is_one_line(runs: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    options = {k: str(runs / v) if k.endswith("teacher") else v for k, v in options.items()}
    with pytest.raises(UserError, match=words) as error:
        mvd(**{"data": "moving_digits", **VIDEO, "decoder": DECODER, **options}, out=str(tmp_path / "out"))
    assert "\n" not in str(error.value)


COARSE = {**NET, "patch_size": 8}  # a quarter of the tokens


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"bootstrap": 0.9, "pixel_weight": 0.5, "masks_per_clip": 2, "student_args": COARSE},
            marks=pytest.mark.slow,
        ),
        pytest.param({"video_teacher": "video", "mask": "frame"}, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(runs: Path, tmp_path: Path, options: dict[str, Any]) -> None:

    options = {k: str(runs / v) if k.endswith("teacher") else v for k, v in options.items()}
    optim = Optim(lr=1e-3, lr_batch=0, warmup_epochs=1, ema=0.8, accumulate=2)
    arguments = {"data": "moving_digits", **VIDEO, "decoder": DECODER, "mask_ratio": 0.75, "drop_path": 0.1, **options}
    arguments |= {"epochs": 2, "optim": optim}
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    mvd(**arguments, out=str(whole))
    kill("mvd", {**arguments, "out": str(pieced)}, step=8)
    resume(str(pieced))
    for file in ("student.safetensors", "student_ema.safetensors", "metrics.csv", "student.json"):
        assert (whole / file).read_bytes() == (pieced / file).read_bytes(), file
