"""A sweep: settings x seeds out of one file, resumed, judged by differences between seeds."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from colours import NETWORK, colours
from vitdistill.cli import main
from vitdistill.errors import UserError
from vitdistill.verbs import sweep as module
from vitdistill.verbs.parser import normalised, parse
from vitdistill.verbs.study import folder_name, read_study
from vitdistill.verbs.sweep import Task, plan, sweep
from vitdistill.verbs.workers import Outcome, Workers

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "student": "digits_vit_small",
    "student_args": {"depth": 1, "embed_dim": 12, "num_heads": 2},
    "data": "digits",
    "epochs": 1,
    "batch_size": 512,
    "augment": {"recipe": "none"},
    "optim": {"lr": 2e-3, "lr_batch": 0, "warmup_epochs": 0},
    "loggers": "csv",
}
STUDY: dict[str, Any] = {
    "title": "Fast and slow",
    "about": "Two learning rates.",
    "verb": "supervised",
    "base": BASE,
    "settings": {"slow": {}, "fast rate": {"optim.lr": 0.01}},
    "judge": {"knn": {"k": 5}},
    "seeds": 2,
    "claims": [{"claim": "Fast is better", "better": "fast rate", "worse": "slow"}],
}


def write(folder: Path, study: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)


class Here:
    """In place of worker processes: everything in this one."""

    def __init__(self, count: int, work: Any) -> None:
        self.work, self.outcomes = work, list[Outcome]()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def free(self) -> int:
        return 1 - len(self.outcomes)

    def submit(self, key: str, payload: Task, log: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                self.work(payload)
            except UserError as error:
                self.outcomes.append(Outcome(key, str(error)))
            else:
                self.outcomes.append(Outcome(key))

    def wait(self, timeout: float) -> list[Outcome]:
        found, self.outcomes = self.outcomes, []
        return found


def fake_runs(monkeypatch: pytest.MonkeyPatch, failing: str = "") -> list[str]:
    """Replace training and judges; a run's score says which it is. Returns what was run, as it is."""
    ran: list[str] = []

    def work(task: Task) -> None:
        if failing and failing in task.label:
            raise UserError("The student must learn", task.label)
        ran.append(task.label)
        task.folder.mkdir(parents=True)
        score = 90 + task.seed + len(task.label)
        (task.folder / "metrics.csv").write_text(f"epoch,val/top1,val/loss\n0,1,2\n1,{score},0.5\n")
        info = {"verb": task.kind, "status": "finished", "score": "top1", "metrics": {"top1": "top-1 %"}, "seconds": 2}
        info |= {"teacher": None, "student": {"params": 100}, "accuracy": {"top1": score}}
        (task.folder / "run.json").write_text(json.dumps(info))

    monkeypatch.setattr(module, "work", work)
    monkeypatch.setattr(module, "Workers", Here)
    return ran


# --- a sweep of real runs ----------------------------------------------------------------------------------------


def test_a_sweep_runs_and_judges_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Workers", Here)
    data = colours(tmp_path / "data", {"blue": "blue", "red": "red"})
    small = {"data": str(data), "student": "vit_tiny_patch16_224", "student_args": dict(NETWORK), "batch_size": 8}
    base = {**BASE, **small, "loader": {"workers": 0}}
    question = {"k": 5, "workers": 0}
    study = {**STUDY, "base": base, "judge": {"knn": question}}
    path, out = write(tmp_path, study), tmp_path / "out"
    whole = sweep(path, out=str(out), report=str(tmp_path / "results/study.md"))
    said = capsys.readouterr().out
    assert "4 runs to do" in said and "[4/4] fast rate, seed 1: val/top1" in said and "; 1 left" in said
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["seed"]) for row in rows] == [
        ("slow", "0"),
        ("slow", "1"),
        ("fast rate", "0"),
        ("fast rate", "1"),
    ]
    scores = [float(row["val/top1"]) for row in rows]
    assert whole["settings"]["slow"]["columns"]["val/top1"]["mean"] == pytest.approx(sum(scores[:2]) / 2)
    assert all(float(row["knn/top1"]) > 50 and float(row["seconds"]) > 0 for row in rows)
    metrics = (out / "fast_rate" / "seed-1" / "metrics.csv").read_text()
    assert rows[3]["val/top1"] in metrics and rows[3]["run"] == "fast_rate/seed-1"
    assert whole["findings"][0]["gain"] == pytest.approx((scores[2] + scores[3] - scores[0] - scores[1]) / 2)
    page = (out / "report.html").read_text()
    assert "Two learning rates." in page and "<svg" in page and 'href="fast_rate/seed-1/report.html"' in page
    text = (tmp_path / "results/study.md").read_text()
    assert "| fast rate | 2 |" in text and "Fast is better" in text and "![Fast and slow](study.svg)" in text
    for name in ("study.md", "study.json", "study.svg"):
        assert str(tmp_path) not in (tmp_path / "results" / name).read_text()
    assert (tmp_path / "results/study.svg").read_text().startswith("<svg xmlns=")

    before = {place: place.stat().st_mtime_ns for place in out.rglob("student.safetensors")}
    again = sweep(path, out=str(out))
    assert "0 runs to do, 1 at once; 4 finished before" in capsys.readouterr().out
    assert again["runs"] == whole["runs"]
    assert before == {place: place.stat().st_mtime_ns for place in out.rglob("student.safetensors")}

    # Another question is asked without a training; another option is another run.
    asked = {**study, "judge": {"knn": {**question, "k": 3}}, "seeds": 1, "settings": {"slow": {}}, "claims": []}
    sweep(write(tmp_path, asked), out=str(out))
    assert before == {place: place.stat().st_mtime_ns for place in out.rglob("student.safetensors")}
    assert json.loads((out / "slow/seed-0/judged.json").read_text())["knn"]["options"]["k"] == 3
    changed = {**study, "base": {**base, "drop_path": 0.2}}
    with pytest.raises(UserError, match=r"seed-0 is finished, but with other options.*changed drop_path"):
        sweep(write(tmp_path, changed), out=str(out))


# --- what is run, with runs that are made up ---------------------------------------------------------------------


def test_a_grid_is_all_combinations_and_seeds_are_outermost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_runs(monkeypatch)
    study = {"verb": "supervised", "base": BASE, "grid": {"optim.lr": [0.1, 0.2], "drop_path": [0.0, 0.1]}, "seeds": 2}
    found = sweep(write(tmp_path, study), out=str(tmp_path / "out"))
    names = [f"optim.lr={lr},drop_path={rate}" for lr in (0.1, 0.2) for rate in (0.0, 0.1)]
    assert list(found["settings"]) == names
    assert ran == [f"{name}, seed {seed}" for seed in (0, 1) for name in names]
    assert (tmp_path / "out" / names[0] / "seed-1" / "run.json").is_file()
    values = plan(read_study(write(tmp_path, study)), tmp_path)[5].values
    assert (values["optim"].lr, values["drop_path"], values["seed"]) == (0.1, 0.1, 1)


def test_runs_before_are_shared_and_made_where_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_runs(monkeypatch)
    teachers = {
        "one": {"verb": "supervised", "once": True, "options": {**BASE, "seed": 7}},
        "each": {"verb": "finetune", "options": {**BASE, "model": "{one}"}},
        "unused": {"verb": "supervised", "options": BASE},
    }
    for options in (teachers["each"]["options"],):
        del options["student"], options["student_args"]
    study = {
        "verb": "maskedkd",
        "base": BASE,
        "before": teachers,
        "settings": {"none": {"alpha": 0.0}, "one": {"teacher": "{one}"}, "each": {"teacher": "{each}"}},
        "seeds": 2,
    }
    path, out = write(tmp_path, study), tmp_path / "out"
    tasks = {task.label: task for task in plan(read_study(path), out)}
    assert tasks["each, seed 1"].values["teacher"] == str(out / "before/each/seed-1")
    assert tasks["before each, seed 1"].values["model"] == str(out / "before/one")
    assert tasks["one, seed 1"].values["teacher"] == str(out / "before/one") and tasks["before one"].values["seed"] == 7
    sweep(path, out=str(out), only=["none"])
    assert ran == ["none, seed 0", "none, seed 1"]
    ran.clear()
    monkeypatch.setattr(module, "state_of", lambda folder, *_: "finished" if folder.exists() else "new")
    sweep(path, out=str(out))
    assert ran == [
        *("before one", "before each, seed 0", "one, seed 0", "each, seed 0"),
        *("before each, seed 1", "one, seed 1", "each, seed 1"),
    ]


def test_steps_build_on_each_other_and_settings_change_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_runs(monkeypatch)
    rest = {key: value for key, value in BASE.items() if key not in ("student", "student_args")}
    pretrained = {"verb": "mae", "student": "digits_vit_small", "decoder_width": 24, **rest}
    study = {
        "steps": {"pretrained": pretrained, "tuned": {"verb": "finetune", "model": "{pretrained}", **rest}},
        "settings": {
            "both": {"steps.pretrained.mask_ratio": 0.5},
            "scratch": {"steps": {"pretrained": None, "tuned": {"model": "digits_vit_small"}}},
            "supervised": {"steps.pretrained": {"verb": "supervised", "without": ["optim.warmup_epochs"]}},
        },
        "score": "pretrained/val/loss",
        "seeds": 1,
    }
    path, out = write(tmp_path, study), tmp_path / "out"
    tasks = {task.label: task for task in plan(read_study(path), out)}
    assert list(tasks) == [
        *("both, pretrained, seed 0", "both, tuned, seed 0", "scratch, tuned, seed 0"),
        *("supervised, pretrained, seed 0", "supervised, tuned, seed 0"),
    ]
    assert tasks["both, pretrained, seed 0"].values["mask_ratio"] == 0.5
    assert tasks["both, tuned, seed 0"].values["model"] == str(out / "both/seed-0/pretrained")
    assert tasks["supervised, pretrained, seed 0"].values["optim"].warmup_epochs == 5  # the verb's own
    found = sweep(path, out=str(out), only=["both"])
    assert ran == ["both, pretrained, seed 0", "both, tuned, seed 0"]
    assert found["runs"][0]["pretrained/val/loss"] == 0.5 and found["runs"][0]["seconds"] == 4


def test_a_failed_run_stops_no_other_but_those_that_build_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = fake_runs(monkeypatch, failing="before big")
    study = {
        **STUDY,
        "before": {"big": {"verb": "supervised", "options": BASE}},
        "settings": {"slow": {}, "taught": {"verb": "maskedkd", "teacher": "{big}"}},
        "claims": [],
        "judge": {},
    }
    assert main(["sweep", write(tmp_path, study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert ran == ["slow, seed 0", "slow, seed 1"] and len(said.err.strip().splitlines()) == 1
    assert "4 of 6 runs failed" in said.err and "The student must learn" in said.err
    assert "taught, seed 1: not run, as before big, seed 1 failed" in said.err
    assert "Failed: before big, seed 0" in (tmp_path / "out" / "summary.md").read_text()


def test_a_score_that_no_run_has_ends_the_sweep_with_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_runs(monkeypatch)
    with pytest.raises(UserError, match=r"score must be a column of the runs; got 'val/entropy'. .*val/top1"):
        sweep(write(tmp_path, {**STUDY, "score": "val/entropy"}), out=str(tmp_path / "out"))
    assert len(ran) == 1


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"setings": {}}, "A study has no 'setings'. Did you mean 'settings'"),
        ({"verb": "supervisd"}, "Setting slow must name a verb: .*Did you mean 'supervised'"),
        ({"verb": "evaluate"}, "Setting slow must name a verb"),
        ({"settings": {"a": {"optim.lrr": 1}}}, "Setting a: .*lrr.*'--optim.lr'"),
        ({"settings": {"a": {"epocs": 1}}}, "Setting a: There is no option epocs.*epochs"),
        ({"settings": {"a": {"epochs": "many"}}}, "Setting a: .*epochs must be a whole number; got 'many'"),
        ({"settings": {"a": {"student": "deit_tinny_patch16_224"}}}, "Setting a: .*deit_tiny_patch16_224"),
        ({"settings": {"a": {"seed": 1}}}, "Setting a: a sweep gives each run its seed; got 1. Leave it out"),
        ({"settings": {"a": {"without": ["optm"]}}}, "`without` names options that the study gives; got 'optm'.*optim"),
        ({"settings": {"a b": {}, "A/b": {}}}, "names that differ as folders; got 'a b' and 'A/b'"),
        ({"settings": {"before": {}}}, "may not be named before"),
        ({"settings": {}}, "at least one setting"),
        ({"settings": {"a": {"model": "{big}", "verb": "finetune"}}}, r"only build on a run of `before`; got \{big\}"),
        ({"settings": {"a": {"steps": {"x": {"verb": "mae"}}, "epochs": 1}}}, "setting of steps, has no 'epochs'"),
        ({"grid": {"epochs": [1]}}, "either `settings` or a `grid`; got both"),
        ({"before": {"big": {"verb": "supervised", "epochs": 1}}}, "before big has no 'epochs'"),
        ({"before": {"big": {"verb": "supervised"}}}, "before big: --student and --data are required"),
        ({"judge": {"kn": {}}}, "must be a verb that takes one and returns numbers; got 'kn'. Did you mean 'knn'"),
        ({"judge": {"knn": {"kk": 1}}}, "judge knn: There is no option kk"),
        ({"judge": {"knn": {"of": "tuned"}}}, "judge knn is of a step; got 'tuned'"),
        ({"score": "val/topp1"}, "score must be a column of the runs; got 'val/topp1'. Did you mean 'val/top1'"),
        ({"score": "kn/top1"}, "score must be a column that .*got 'kn/top1'. Did you mean 'knn/top1'"),
        ({"plot": {"x": "teacher_gmac", "y": "val/top1"}}, "plot.x must be a column.*'teacher_gmacs'"),
        ({"plot": {"x": "seconds"}}, "`plot` names two columns, x and y"),
        (
            {"claims": [{"claim": "c", "better": "fst rate", "worse": "slow"}]},
            "got 'fst rate'. Did you mean 'fast rate'",
        ),
        (
            {"claims": [{"claim": "c", "better": "slow", "worse": "fast rate", "kind": "gian"}]},
            "gain or no_loss; got 'gian'",
        ),
        ({"claims": [{"better": "slow"}]}, "A claim is a mapping with claim, better and worse"),
        (
            {"claims": [{"claim": "c", "better": "slow", "worse": "slow"}]},
            "claim 'c' compares two settings; got 'slow'",
        ),
        (
            {"claims": [{"claim": "c", "better": "slow", "worse": "fast rate", "margin": float("nan")}]},
            "a number from 0",
        ),
        ({"before": {"..": {"verb": "mae"}}}, r"begins with no '\.'; got '\.\.'"),
        ({"base": {**BASE, "config": 5}}, "`config` is the path of a YAML file; got 5"),
        ({"judge": {"text-embeddings": {}}}, "must be a verb that takes one and returns numbers"),
        ({"judge": {"knn": {"model": "runs/other"}}}, "judge knn: .*model.*runs/other"),
        ({"seeds": 0}, "seeds must be a whole number from 1; got 0"),
        ({"base": {**BASE, "keep": 0.5}}, "There is no option keep"),
        (
            {"steps": {"x": {"epocs": 1}}, "settings": {"a": {"steps": {"x": {"verb": "supervised"}}}}},
            "Setting a, step x: There is no option epocs of any verb.*epochs",
        ),
    ],
)
def test_bad_studies_are_refused_in_one_line_before_anything_runs(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    claims = [] if "settings" in change else STUDY["claims"]
    path = write(tmp_path, {**STUDY, "claims": claims, **change})
    with pytest.raises(UserError, match=words) as error:
        sweep(path, out=str(tmp_path / "out"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ["fast"]}, "--only names settings of the study; got 'fast'. Did you mean 'fast rate'"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"seeds": 0}, "--seeds must be a whole number from 1"),
        ({"override": {"epocs": 1}}, "--override: There is no option epocs.*epochs"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sweep(write(tmp_path, STUDY), out=str(tmp_path / "out"), **options)


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("study.yaml", {}, "files can be written; got .*study.yaml, a file and no folder"),
        ("study.yaml/sub", {}, "a file and no folder"),
        ("", {}, "A path must name"),
        ("run", {}, "may not be a run itself; got .*run"),
        ("out", {"report": "summary.txt"}, "--report must be a markdown file; got summary.txt"),
        ("out", {"report": "/dev/null/summary.md"}, "--report must be a place .* /dev/null, a file and no folder"),
    ],
)
def test_bad_places_are_refused_before_anything_runs(
    tmp_path: Path, out: str, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: digits\n")
    path = write(tmp_path, STUDY)
    with pytest.raises(UserError, match=words):
        sweep(path, out=str(tmp_path / out) if out else "", **options)
    assert not (tmp_path / "out").exists()


def test_lists_of_words_follow_their_option() -> None:
    words = ["s.yaml", "--only", "a b", "c", "--out", "x"]
    assert normalised("sweep", words) == ["--only", '["a b", "c"]', "--out", "x", "--study", "s.yaml"]
    assert parse("sweep", words)["only"] == ["a b", "c"]


def test_names_become_folders() -> None:
    assert folder_name("teacher's attention 50%") == "teacher_s_attention_50%" and folder_name("../x") == "x"


# --- the studies of this repository ------------------------------------------------------------------------------

FILES = [ROOT / "recipes/digits/sweep.yaml", *sorted((ROOT / "benchmarks/studies").glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_studies_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = read_study(path)
    assert study.about and study.claims


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_options_of_studies_are_known(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fashion = {"data": "digits"} if "fashion" in path.stem else None
    assert plan(read_study(path, fashion), tmp_path)


# --- processes ---------------------------------------------------------------------------------------------------


def shell(words: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "vitdistill", "sweep", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def work_or_die(task: str) -> None:
    """For workers of the test below."""
    print("working on", task)
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "wrong":
        raise RuntimeError("no such luck")
    if task == "long":
        time.sleep(60)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2, work_or_die) as started:
        yield started


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_other_with_it(workers: Workers, tmp_path: Path) -> None:
    def outcomes(count: int) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        end = time.monotonic() + 60
        while len(found) < count and time.monotonic() < end:
            found |= {outcome.key: outcome for outcome in workers.wait(0.2)}
        return found

    workers.submit("a", "die", tmp_path / "a.log")
    workers.submit("b", "fine", tmp_path / "b.log")
    found = outcomes(2)
    assert "its process died (SIGKILL, perhaps for lack of memory)" in str(found["a"].problem)
    assert found["b"] == Outcome("b") and workers.free == 2
    workers.submit("c", "wrong", tmp_path / "c.log")
    workers.submit("d", "long", tmp_path / "d.log")
    assert outcomes(1)["c"].problem == "RuntimeError: no such luck"
    assert (tmp_path / "a.log").read_text() == "working on die\n" and "Traceback" in (tmp_path / "c.log").read_text()
    log, end = tmp_path / "d.log", time.monotonic() + 60
    while not (log.exists() and "working" in log.read_text()) and time.monotonic() < end:
        assert workers.wait(0.1) == []
    workers.stop()
    assert outcomes(1)["d"].stopped


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_exactly(tmp_path: Path) -> None:
    study = {**STUDY, "base": {**BASE, "epochs": 30, "batch_size": 64}, "seeds": 1}
    path, whole, pieced = write(tmp_path, study), tmp_path / "whole", tmp_path / "pieced"
    done = shell([path, "--out", str(whole), "--jobs", "2"])
    assert done.wait(400) == 0, done.stderr

    stopped = shell([path, "--out", str(pieced), "--jobs", "2"])
    places = [pieced / name / "seed-0" for name in ("slow", "fast_rate")]
    end = time.monotonic() + 200
    while not all((place / "checkpoints/last.ckpt").exists() for place in places) and time.monotonic() < end:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    out, errors = stopped.communicate(timeout=100)
    assert stopped.returncode == 130, (out, errors)
    assert "2 of 2 runs are left. The same command goes on with them" in errors
    assert [json.loads((place / "run.json").read_text())["status"] for place in places] == ["interrupted"] * 2

    resumed = shell([path, "--out", str(pieced), "--jobs", "2"])
    out, errors = resumed.communicate(timeout=400)
    assert resumed.returncode == 0 and "2 runs to do, 2 at once; 2 resumed" in out, (out, errors)
    for name in ("slow", "fast_rate"):
        for file in ("student.safetensors", "metrics.csv"):
            parts = [folder / name / "seed-0" / file for folder in (pieced, whole)]
            assert parts[0].read_bytes() == parts[1].read_bytes(), (name, file)
