"""Bad input of the video verbs, as the command line shows it: one line, status 2, and nothing lost."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vitdistill.cli import main
from vitdistill.data.bundled.moving_digits import write_mp4
from vitdistill.errors import UserError
from vitdistill.methods.mvd import MVD as MVDMethod
from vitdistill.models.build import build
from vitdistill.runs.directory import RunDirectory

pytest.importorskip("av")

NET = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
VIDEO, IMAGE = "video_vit_small_patch16_224", "vit_tiny_patch16_224"
COMMON = "--batch_size 10 --epochs 1 --augment.recipe none --optim.warmup_epochs 0 --loader.workers 0"
STUDENT = f"--student {VIDEO} {{student}} {COMMON}"
VIDEOMAE = f"videomae {STUDENT} --decoder_width 16 --decoder_depth 1 --decoder_heads 2 --data {{data}} --out {{out}}"
MVD = f"mvd {STUDENT} --decoder.width 16 --decoder.depth 1 --decoder.heads 2 --data {{data}} --out {{out}}"
UNMASKED = f"mvd {STUDENT} --data {{data}} --out {{out}}"
FINETUNE = f"finetune {VIDEO}@{{video}} {{model}} {COMMON} --data {{data}} --out {{out}}"
EVALUATE = f"evaluate {VIDEO}@{{tuned}} {{model}} --data {{data}} --workers 0"


def options(role: str, **args: object) -> str:
    return " ".join(f"--{role}_args.{name} {value}" for name, value in {**NET, **args}.items() if name != "num_classes")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a video and an image network, videos of 16 frames, and images."""
    folder = tmp_path_factory.mktemp("errors")
    torch.manual_seed(0)
    for file, name, classes in (("video", VIDEO, 0), ("image", IMAGE, 0), ("tuned", VIDEO, 10)):
        net = timm.create_model(name, **{**NET, "num_classes": classes})
        save_file(net.state_dict(), folder / f"{file}.safetensors")
    write_mp4(folder / "videos", train=20, val=10, size=16)
    for split in ("train", "val"):
        for name in "ab":
            (folder / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "images" / split / name / "1.png")
    return folder


@pytest.fixture
def refused(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(command, data=...)` is the one line that a command prints before it ends with status 2."""

    def run(command: str, data: Path | str = "", *, begun: bool = False) -> str:
        places = {
            "student": options("student"),
            "model": options("model"),
            **{file: str(shared / f"{file}.safetensors") for file in ("video", "image", "tuned")},
            "out": str(tmp_path / "out"),
            "data": str(data or shared / "videos"),
        }
        capsys.readouterr()
        assert main([word.format(**places) for part in command.split() for word in part.format(**places).split()]) == 2
        lines = capsys.readouterr().err.splitlines()
        # A run that had begun has shown its progress before.
        assert [line.startswith("error: ") for line in (lines[-1:] if begun else lines)] == [True], lines
        return lines[-1]

    return run


@pytest.mark.parametrize(
    ("command", "words"),
    [
        # Frames and tubelets.
        (
            f"{VIDEOMAE} --frames 15",
            "error: The frames of a clip must be a multiple of the tubelet's 2; got 15. Use 14",
        ),
        (f"{MVD} --frames 1 --video_teacher {VIDEO}@{{video}}", "multiple of the tubelet's 2; got 1. Use 2"),
        (f"{FINETUNE} --model_args.frames 7", "multiple of the tubelet's 2; got 7. Use 6 or 8"),
        (f"{FINETUNE} --frames 7", "multiple of the tubelet's 2; got 7. Use 6 or 8"),
        (f"{FINETUNE} --frames 8 --model_args.frames 4", "--frames and --model_args.frames must agree; got 8 and 4"),
        (
            f"{VIDEOMAE} --frames 8 --student_args.frames 4",
            "--frames and --student_args.frames must agree; got 8 and 4",
        ),
        (f"{EVALUATE} --frames 8", "There is no option --frames. Frames belong to the network: give --model_args.fr"),
        (f"supervised {STUDENT} --frames 6 --student_args.frames 8 --data {{data}} --out {{out}}", "got 6 and 8"),
        (f"supervised --student {IMAGE} --frames 6 --data {{data}} --out {{out}}", f"over images; {IMAGE} is one"),
        # Clips longer than every video: 16 frames with the default stride of 4.
        (VIDEOMAE, "span 61 frames, and the longest video has 16. Choose fewer frames, a smaller stride or uniform"),
        (FINETUNE, "A clip must not be longer than every video"),
        (EVALUATE, "A clip must not be longer than every video"),
        (f"{EVALUATE} --stride 2 --clips 2 --crops 3", "16 frames with stride 2 span 31 frames"),
    ],
)
def test_clips_that_cannot_be(refused: Callable[..., str], tmp_path: Path, command: str, words: str) -> None:
    assert words in refused(command)
    assert not (tmp_path / "out" / "checkpoints" / "last.ckpt").exists()


VIDEO_TEACHER = f"--stride 1 --video_teacher {VIDEO}@{{video}} {options('video_teacher')}"
IMAGE_TEACHER = f"--stride 1 --image_teacher {IMAGE}@{{image}} {options('image_teacher')}"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{MVD} {VIDEO_TEACHER} --student_args.patch_size 8", "has 8x4x4 and the student 8x2x2"),
        (f"{MVD} {VIDEO_TEACHER} --student_args.patch_size 8", "--video_teacher_args.img_size 8; frames are"),
        (
            f"{MVD} {VIDEO_TEACHER} --frames 8",
            "the student 4x4x4. Give both the same frames in the same tubelets, e.g. --video_teacher_args.frames 8",
        ),
        (f"{MVD} {IMAGE_TEACHER} --student_args.img_size 32", "has 4x4 and the student 8x8x8. They match with "),
        (f"{MVD} {IMAGE_TEACHER} --student_args.img_size 32", "--image_teacher_args.img_size 32; frames are then"),
        (f"{MVD} {IMAGE_TEACHER} --student_args.patch_size 2", "--image_teacher_args.img_size 32"),
        (f"{MVD} --image_teacher digits-mae", "has 6x6 and the student 8x4x4. They match with --image_teacher_args"),
        (f"{MVD} --image_teacher digits-mae --image_teacher_args.img_size 9", "multiple of the patch size 2"),
        (f"{MVD} --image_teacher {VIDEO}@{{video}} {options('image_teacher')}", "sees clips. Give it as the video"),
        (f"{MVD} --video_teacher {IMAGE}@{{image}} {options('video_teacher')}", "sees images. Give it as the image"),
        (f"{UNMASKED} --per_token --video_teacher digits-mae", "must see videos; vit_tiny_patch16_224 sees images"),
    ],
)
def test_teachers_that_do_not_fit(refused: Callable[..., str], tmp_path: Path, command: str, words: str) -> None:
    assert words in refused(command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "teacher",
    [
        "--image_teacher digits-mae --image_teacher_args.img_size 8",
        f"--video_teacher {VIDEO}@{{video}} {options('video_teacher', frames=8)} --frames 8",
        f"--video_teacher {VIDEO}@{{video}} {options('video_teacher', img_size=32, patch_size=4)} --image_size 32",
    ],
)
def test_what_an_error_advises_works(shared: Path, tmp_path: Path, teacher: str) -> None:
    student = options("student", img_size=32) if "32" in teacher else options("student")
    places = {"video": str(shared / "video.safetensors"), "data": str(shared / "videos"), "out": str(tmp_path / "o")}
    command = f"{MVD} {teacher} --stride 1".format(student=student, **places)
    assert main(command.split()) == 0
    assert json.loads((tmp_path / "o" / "run.json").read_text())["status"] == "finished"


def test_grids_that_agree_by_chance_over_other_frames_are_told_apart() -> None:
    student = build(VIDEO, args=NET)
    teacher = build(VIDEO, args={**NET, "frames": 32, "tubelet": 4})
    assert teacher.grid == student.grid
    with pytest.raises(UserError, match="clips of 16 frames, and 32 for the teacher. Give both the same frames"):
        MVDMethod(student, video_teacher=teacher)


@pytest.mark.parametrize("command", [VIDEOMAE, f"{MVD} {VIDEO_TEACHER}", FINETUNE, EVALUATE])
def test_images_for_a_network_over_clips(
    refused: Callable[..., str], shared: Path, tmp_path: Path, command: str
) -> None:
    line = refused(command, shared / "images")
    assert "A network over clips needs videos; got single images. Give a folder of videos" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["mae", "tinymim --teacher digits-mae"])
def test_networks_over_clips_for_verbs_of_images(refused: Callable[..., str], verb: str) -> None:
    line = refused(f"{verb} {STUDENT} --data {{data}} --out {{out}}")
    assert line == (f"error: The student must see images; got {VIDEO}. Pre-train video ViTs with `videomae` or `mvd`")


@pytest.mark.parametrize("command", [VIDEOMAE, f"{MVD} {VIDEO_TEACHER}", FINETUNE, EVALUATE])
def test_without_pyav_the_extra_is_named(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert refused(command) == (
        "error: Reading video files needs PyAV; got no module 'av'. Install it with pip install 'vitdistill[video]'"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ("", None, "train.csv must name at least one video; got none. A line is 'path label'"),
        ("a.mp4 0\nb.mp4 1\nc.mp4 0\nd.mp4 1\ntrain/0/{0} 0\n", None, "4 of 5 missing: 'a.mp4', 'b.mp4', 'c.mp4', ..."),
        ("train/0/{0} 0\ntrain/0/{0} -1\n", None, "must run from 0 without gaps; got the label -1"),
        ("train/0/{0} 0\ntrain/0/{0} 999999999999\n", None, "got no label 1, 2, 3 and 999999999995 more below"),
        ("train/0/{0} 0\ntrain/0/{0} 1.5\n", None, "must name a video and its label; got line 2: 'train/0/"),
        ("train/0/{0} 0\ntrain/0/{0} nine\n", None, "nine'. A line is 'path label'"),
        ("train/0/{0} 0\ntrain/0/{0}\n", None, "with a whole number as label"),
        ("train/0/{0} 0\ntrain/0/{0} 99999999999999999999\n", None, "with a whole number as label"),
        (None, "train/0/{0} 10\n", "must be among the 0 to 9 of train.csv; got 10. Number the classes alike"),
    ],
)
def test_lists(refused: Callable[..., str], shared: Path, tmp_path: Path, train: str, val: str, words: str) -> None:
    shutil.copytree(shared / "videos", tmp_path / "data")
    name = next((tmp_path / "data" / "train" / "0").iterdir()).name
    for file, text in (("train.csv", train), ("val.csv", val)):
        if text is not None:
            (tmp_path / "data" / file).write_text(text.format(name))
    assert words in refused(FINETUNE, tmp_path / "data")
    assert not (tmp_path / "out").exists()


def test_an_empty_list_and_a_folder_without_splits(refused: Callable[..., str], shared: Path, tmp_path: Path) -> None:
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).touch()
    for data in (tmp_path, tmp_path / "train.csv", tmp_path / "val.csv"):
        for command in (VIDEOMAE, FINETUNE):
            line = refused(command, data)  # without a video in it, a file alone may be a table of images
            assert ".csv must " in line and "at least one" in line and "; got none" in line
    line = refused(FINETUNE, shared / "videos" / "train" / "0")
    assert "must hold a folder 'train', or lists; got no folder in it. Expected <data>/train/<class>/*.mp4" in line


@pytest.mark.parametrize("split", ["train", "val"])
def test_unreadable_videos_beyond_one_percent_stop(
    refused: Callable[..., str], shared: Path, tmp_path: Path, split: str
) -> None:
    shutil.copytree(shared / "videos", tmp_path / "data")
    for number in range(4):
        next((tmp_path / "data" / split / str(number)).iterdir()).write_bytes(b"")
    line = refused(f"{FINETUNE} --stride 1", tmp_path / "data", begun=True)
    assert (
        "At most 1% of the videos may be unreadable; got" in line and " of 30: " in line and "Repair or remove" in line
    )
    if split == "val":
        line = refused(f"{EVALUATE} --stride 1 --batch_size 10", tmp_path / "data", begun=True)
        assert "got 4 of 10: " in line and line.count(".mp4") == 3 and ", .... Repair" in line


def test_what_was_computed_before_is_kept(
    refused: Callable[..., str], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(shared / "videos", data)
    victim = next((data / "train" / "3").iterdir())
    whole, original = victim.read_bytes(), RunDirectory.add_row

    def damages_a_file_after_an_epoch(run: RunDirectory, row: dict[str, float]) -> None:
        original(run, row)
        victim.write_bytes(b"damaged")

    monkeypatch.setattr(RunDirectory, "add_row", damages_a_file_after_an_epoch)
    command = FINETUNE.replace("--epochs 1", "--epochs 2")
    assert "1 of 30: " in refused(f"{command} --stride 1 --loader.bad_share 0", data, begun=True)
    assert (out / "checkpoints" / "last.ckpt").is_file() and len((out / "metrics.csv").read_text().splitlines()) == 2
    monkeypatch.undo()
    victim.write_bytes(whole)
    assert main(["resume", str(out)]) == 0
    assert len((out / "metrics.csv").read_text().splitlines()) == 3
