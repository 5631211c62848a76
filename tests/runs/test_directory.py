"""The run directory: what it holds, and when it is refused."""

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdistill.errors import UserError
from vitdistill.runs.directory import RunDirectory, list_in_run
from vitdistill.training import checkpoints
from vitdistill.training.module import TrainingModule
from vitdistill.verbs.export import export
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.masks import masks
from vitdistill.verbs.report import report


@pytest.fixture
def short(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "epochs": 2}


@pytest.mark.usefixtures("report")
def test_a_run_holds_all_that_is_promised(short: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    info = maskedkd(**short, out=str(out))
    for name in ("config.yaml", "run.json", "metrics.csv", "student.safetensors", "student.json", "report.html"):
        assert (out / name).stat().st_size > 0, name
    assert (out / "checkpoints" / "last.ckpt").is_file() and (out / "checkpoints" / "best.ckpt").is_file()
    assert list((out / "tensorboard").glob("events.*"))
    assert info == json.loads((out / "run.json").read_text())
    assert info["status"] == "finished" and info["verb"] == "maskedkd"
    assert 0 <= info["accuracy"]["top1"] <= info["accuracy"]["top5"] <= 100
    # The schedule goes from 80% to 40% of 36 patches.
    assert info["tokens"] == {"kept": 14, "of": 36}
    assert 0 < info["cost"]["saved_fraction"] < 0.6
    assert info["speed"]["teacher_ms"] > 0
    assert info["speed"]["step_ms"] == pytest.approx(
        info["speed"]["data_ms"] + info["speed"]["student_ms"] + info["speed"]["teacher_ms"], abs=0.01
    )
    rows = RunDirectory(out).rows()
    assert [row["keep"] for row in rows] == ["22", "14"]  # in the last step of each epoch: 4/9 and all of the way
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())


def test_the_teacher_is_in_no_checkpoint(short: dict[str, Any], tmp_path: Path) -> None:
    maskedkd(**{**short, "epochs": 1}, out=str(tmp_path / "run"))
    content = checkpoints.read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    names = set(content["state_dict"])
    student = {name for name in names if name.startswith("method.student.net.")}
    assert student and names == student
    sizes = {tensor.shape[-1] for name, tensor in content["state_dict"].items() if "norm" in name}
    assert sizes == {12}  # the teacher is 24 wide


def test_an_occupied_directory_is_refused_and_overwritten_only_if_it_is_a_run(tmp_path: Path) -> None:
    def prepare(**options: bool) -> RunDirectory:
        run = RunDirectory.prepare(tmp_path / "run", "maskedkd", {}, **{"resume": False, "overwrite": False, **options})
        run.begin()
        return run

    RunDirectory.prepare(tmp_path / "run", "maskedkd", {}, resume=False, overwrite=False)
    assert not (tmp_path / "run").exists()  # a run that is refused before it begins leaves no trace
    prepare()
    prepare()  # a run that failed before its first checkpoint is no loss
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"--resume.*--overwrite"):
        prepare()
    prepare(overwrite=True)
    (tmp_path / "run" / "thesis.tex").write_text("dear diary")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        prepare(overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").is_file()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There must be a run to resume"):
        RunDirectory.prepare(tmp_path / "none", "maskedkd", {}, resume=True, overwrite=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingModule._note

    def poisoned(self: TrainingModule, loss: torch.Tensor, batch_idx: int) -> None:
        original(self, loss * math.nan if (self.current_epoch, batch_idx) == (1, 3) else loss, batch_idx)

    monkeypatch.setattr(TrainingModule, "_note", poisoned)
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"step 8 \(epoch 1, batch 3\)"):
        maskedkd(**short, out=str(out))
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    content = checkpoints.read_checkpoint(out / "checkpoints" / "last.ckpt")
    assert content["vitdistill"]["position"] == (1, 0)
    assert all(torch.isfinite(tensor).all() for tensor in content["state_dict"].values())


def test_a_full_disk_leaves_the_earlier_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = checkpoints.AtomicCheckpointIO()
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1, "weights": torch.ones(3)}, path)

    def full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left.*GiB free.*--resume"):
        io.save_checkpoint({"epoch": 2}, path)
    assert io.load_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match="The checkpoint must be whole"):
        checkpoints.read_checkpoint(path)
    with pytest.raises(UserError, match="There must be a checkpoint"):
        checkpoints.read_checkpoint(tmp_path / "none.ckpt")


# --- what a run wrote --------------------


def begun(path: Path, **options: bool) -> RunDirectory:
    run = RunDirectory.prepare(path, "maskedkd", {"keep": 0.5}, **{"resume": False, "overwrite": False, **options})
    run.begin()
    return run


@pytest.mark.usefixtures("report")
def test_whatever_our_verbs_write_into_a_run_may_be_replaced(short: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    maskedkd(**{**short, "epochs": 1}, out=str(out))
    report([str(out)], out=str(out / "page.html"))
    masks([str(out)], out=str(out / "pictures.png"), count=1)
    export(str(out))
    listed = set(json.loads((out / "run.json").read_text())["files"])
    assert {entry.name for entry in out.iterdir()} == listed
    assert {"student_ema.safetensors", "page.html", "pictures.png", "pictures-heatmap.png", "export"} <= listed
    begun(out, overwrite=True)
    assert {entry.name for entry in out.iterdir()} == {"config.yaml", "run.json", "checkpoints"}


def test_files_that_no_run_wrote_are_named(tmp_path: Path) -> None:
    (begun(tmp_path / "run").checkpoints / "last.ckpt").write_bytes(b"weights")
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", ".report.html.12.tmp"):  # the last is of a killed process
        (tmp_path / "run" / name).touch()
    with pytest.raises(UserError) as error:
        begun(tmp_path / "run", overwrite=True)
    assert str(error.value) == (
        f"{tmp_path / 'run'} contains files that no run wrote (a.txt, b.txt, c.txt and 1 more); refusing to "
        "--overwrite it. Choose another --out, or move them elsewhere"
    )


def test_a_folder_that_is_no_run_is_not_replaced(tmp_path: Path) -> None:
    """Whatever its files are called: the names of a run's files are no proof."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "report.html").touch()
    with pytest.raises(UserError, match=r"study contains files that no run wrote \(report.html\)"):
        begun(tmp_path / "study", overwrite=True)
    with pytest.raises(UserError, match=r"must be a directory; got the file .*report.html"):
        begun(tmp_path / "study" / "report.html", overwrite=True)


def test_a_run_of_before_files_were_listed_may_be_replaced(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.info.write_text(json.dumps({"verb": "detect", "status": "finished"}))
    for name in ("student.safetensors", "predictions.csv", "detection.json"):
        (run.path / name).touch()
    begun(run.path, overwrite=True)
    assert not (run.path / "predictions.csv").exists()


@pytest.mark.parametrize(("text", "words"), [('{"a":', "must be whole.*Expecting value"), ("[]", "must be a mapping")])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    run = begun(tmp_path / "run")
    (run.checkpoints / "last.ckpt").write_bytes(b"weights")
    run.info.write_text(text)
    with pytest.raises(UserError, match=rf"run.json {words}"):
        begun(run.path, overwrite=True)
    list_in_run(run.path / "page.html")  # a report of a damaged run is written all the same
    assert run.info.read_text() == text


def test_a_run_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, words in (
        ("", "--out must name a folder"),
        (str(tmp_path / "file"), "must be a directory.*Choose another"),
    ):
        for overwrite in (False, True):
            with pytest.raises(UserError, match=words):
                RunDirectory.prepare(out, "maskedkd", {}, resume=False, overwrite=overwrite)


def test_files_outside_of_runs_are_listed_nowhere(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    before = run.read_info()
    list_in_run(tmp_path / "picture.png", tmp_path / "other" / "student.onnx")
    assert run.read_info() == before
    list_in_run(run.path / "export" / "student.onnx", run.path / "export" / "student.safetensors")
    assert run.read_info()["files"] == [*before["files"], "export"]
