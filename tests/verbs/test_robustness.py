"""`vitdistill robustness` on tiny sets: tables, what is kept and gone on with, the report, bad input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colours import NETWORK
from kept_models import keep_run
from robustness_sets import FOUR, classes_with, corrupted, linked, validation
from vitdistill.cli import main
from vitdistill.errors import UserError
from vitdistill.evaluation import robustness as measuring
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.reporting.page import write_report
from vitdistill.training.train import export_weights
from vitdistill.verbs.report import report
from vitdistill.verbs.robustness import robustness

HERE = {"device": "cpu", "workers": 0}

pytestmark = pytest.mark.usefixtures("four_classes")


def answers(run: Path, number: int) -> None:
    """Let a run's network see one class in everything."""
    network = build(str(run))
    with torch.no_grad():
        network.net.head.weight.zero_()
        network.net.head.bias.copy_(100.0 * torch.eye(4)[number])
    export_weights(network.net.state_dict(), run / "student.safetensors", record_of(network.net))


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run whose network always sees a tench."""
    network = build("vit_tiny_patch16_224", args={**NETWORK, "num_classes": 4})
    folder = keep_run(network, tmp_path / "runs" / "small", FOUR)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "verb": "supervised", "teacher": None}))
    answers(folder, 0)
    return folder


@pytest.fixture
def trees(tmp_path: Path) -> dict[int, Path]:
    """Severities at which 0, 1, 2, 3 and 4 times as many images are of other classes as of the first."""
    return {
        severity: classes_with(tmp_path / "trees" / str(severity), {FOUR[0]: 6, **dict.fromkeys(FOUR[1:], severity)})
        for severity in (1, 2, 3, 4, 5)
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, part by part."""
    parts: list[str] = []
    scored: Callable[..., Any] = measuring._scored

    def noting(network: Any, reader: Any, samples: Any, part: Any, text: str) -> Any:
        parts.append(part.words)
        return scored(network, reader, samples, part, text)

    monkeypatch.setattr(measuring, "_scored", noting)
    return parts


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time."""
    monkeypatch.setattr(sys.modules[robustness.__module__], "_draw", lambda sets, folder: [])


def test_tables_files_and_report(run: Path, trees: dict[int, Path], tmp_path: Path, capsys) -> None:
    root = corrupted(tmp_path / "c", trees, ["fog", "snow", "spatter"])
    a = linked(tmp_path / "a", {name: trees[1] / name for name in FOUR[:3]})
    sets = f"imagenet-c:{root},imagenet-a:{a},clean:{trees[2]}"
    command = ["robustness", str(run), "--sets", sets, "--device", "cpu", "--workers", "0"]
    assert main(command) == 2
    assert "imagenet-c must be complete; got" in capsys.readouterr().err and not (run / "robustness.json").exists()
    assert main([*command, "--allow_partial"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("ImageNet-A", "75.00", "ImageNet-C (partial)", "33.33", "AlexNet", "there is no mCE"):
        assert words in printed, words
    assert "imagenet-c is partial: without gaussian_noise, shot_noise" in printed
    assert "wrote robustness.json, robustness.png, robustness.svg into" in printed
    found = json.loads((run / "robustness.json").read_text())["sets"]
    assert found["imagenet-a"]["clean_top1"] == 60 and found["imagenet-a"]["gap"] == -15
    assert found["imagenet-c"]["mce"] is None and set(found["imagenet-c"]["cells"]["fog"]) == set("12345")
    assert found["imagenet-c"]["corruptions"]["snow"]["ce"] is not None  # all of its severities are there
    assert {"robustness.json", "robustness.png", "robustness.svg"} <= set(
        json.loads((run / "run.json").read_text())["files"]
    )
    assert "(partial)" in (run / "robustness.svg").read_text()
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "<h2>Robustness</h2>" in page and "ImageNet-C (partial, so there is no mCE)" in page
    assert "-15.0 points below" in page and "severity" in page


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_command_goes_on(
    run: Path, trees, tmp_path: Path, asked: list[str], monkeypatch, capsys
) -> None:
    sets = f"imagenet-c:{corrupted(tmp_path / 'c', trees)},sketch:{trees[5]}"
    options = {"sets": sets, "corruptions": "fog,snow", "json": True, **HERE}
    noting, stop = measuring._scored, 4

    def stopping(*given: Any) -> Any:
        if len(asked) == stop:
            raise KeyboardInterrupt
        return noting(*given)

    monkeypatch.setattr(measuring, "_scored", stopping)
    with pytest.raises(KeyboardInterrupt):
        robustness(str(run), **options)
    kept = json.loads((run / "robustness.json").read_text())["sets"]
    assert list(kept["imagenet-c"]["cells"]) == ["snow"] and set(kept["imagenet-c"]["cells"]["snow"]) == set("1234")
    monkeypatch.setattr(measuring, "_scored", noting)
    result = robustness(str(run), **options)
    assert len(asked) == 11 == len(set(asked))  # nothing twice
    assert result["sets"]["imagenet-c"]["cells"]["snow"]["1"] == kept["imagenet-c"]["cells"]["snow"]["1"]
    assert json.loads(capsys.readouterr().out) == result
    assert robustness(str(run), **options, out=str(tmp_path / "again"))["sets"] == result["sets"]
    assert len(asked) == 22
    # Other images are measured anew.
    (trees[5] / FOUR[2] / "another.JPEG").write_bytes(
        (trees[5] / FOUR[2] / "ILSVRC2012_val_00000000.JPEG").read_bytes()
    )
    robustness(str(run), **options)
    assert asked[22:] == ["imagenet-c snow 5", "imagenet-c fog 5", "sketch"]


@pytest.mark.usefixtures("undrawn")
def test_results_of_other_weights_are_not_taken_over(
    run: Path, trees, asked: list[str], tmp_path: Path, caplog
) -> None:
    options = {"sets": f"sketch:{trees[1]},imagenet-c:{corrupted(tmp_path / 'c', trees, ['fog'])}", **HERE}
    robustness(str(run), **options, corruptions="fog", severities="1")
    first = json.loads((run / "robustness.json").read_text())
    answers(run, 1)
    result = robustness(str(run), sets=f"sketch:{trees[1]}", **HERE)
    assert asked == ["sketch", "imagenet-c fog 1", "sketch"]
    assert list(result["sets"]) == ["sketch"] and result["sets"]["sketch"]["top1"] == pytest.approx(100 / 9, abs=1e-3)
    assert json.loads((run / f"robustness-{first['network'][:8]}.json").read_text()) == first  # nothing is lost
    # Another crop is another measurement as well.
    robustness(str(run), sets=f"sketch:{trees[1]}", crop_pct=0.8, **HERE)
    assert len(asked) == 4


def test_a_few_images_are_partial(run: Path, trees: dict[int, Path]) -> None:
    found = robustness(str(run), sets=f"clean:{trees[1]}", images_per_set=8, **HERE)["sets"]["clean"]
    assert found["images"] == 8 and found["partial"] == ["all but the first 8 images"]
    assert not robustness(str(run), sets=f"clean:{trees[1]}", images_per_set=9, **HERE)["sets"]["clean"]["partial"]
    with pytest.raises(
        UserError, match="holds the whole of clean, which a part would replace; got all but the first 8"
    ):
        robustness(str(run), sets=f"clean:{trees[1]}", images_per_set=8, **HERE)


def test_a_model_that_is_no_run(run: Path, trees: dict[int, Path], tmp_path: Path) -> None:
    model = f"vit_tiny_patch16_224@{run / 'student.safetensors'}"
    with pytest.raises(UserError, match="Results of a model that is no run need a folder. Give --out"):
        robustness(model, sets=f"sketch:{trees[1]}", **HERE)
    out = tmp_path / "results"
    assert robustness(model, sets=f"sketch:{trees[1]}", out=str(out), **HERE)["sets"]["sketch"]["top1"] > 60
    assert (out / "robustness.json").is_file() and not (out / "robustness.png").exists()
    # Its page, alone and beside a run.
    result = report([str(out)])
    page = Path(result["report"]).read_text()
    assert result["report"] == str(out / "report.html") and [row["name"] for row in result["runs"]] == ["results"]
    assert "<h2>Robustness</h2>" in page and "results: ImageNet-Sketch 66.7%." in page
    assert "vit_tiny_patch16_224@" in page and "measured" in page
    assert 'class="warn"' not in page and "Configuration" not in page  # no file of a run is missed
    both = report([str(run), str(out)], out=str(tmp_path / "both.html"))
    assert [row["name"] for row in both["runs"]] == ["small", "results"]
    (out / "robustness.json").unlink()
    with pytest.raises(UserError, match="A run directory holds run.json or config.yaml; got .*results"):
        report([str(out)])


def test_real_labels_beside_the_others(run: Path, tmp_path: Path, asked: list[str], capsys) -> None:
    """The network always sees the first class, which the first and the fifth image show."""
    root = validation(tmp_path / "val", range(6))
    command = ["robustness", str(run), "--sets", f"real:{root}", "--device", "cpu", "--workers", "0"]
    assert main([*command, "--images_per_set", "3"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ImageNet-ReaL (partial)" in printed and "3 of 46,837" in printed and "33.33" in printed
    assert "real is partial: all but the first 3 images" in printed
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ImageNet-ReaL │ 4 of 46,837 │ 50.00" in printed and "partial" not in printed
    assert main([*command[:3], f"{command[3]},clean:{root}", *command[4:]]) == 0
    assert "measured before and taken over: real" in capsys.readouterr().out
    assert asked == ["real", "real", "clean"]
    found = json.loads((run / "robustness.json").read_text())["sets"]["real"]
    assert (found["top1"], found["images"], found["unlabelled"]) == (50, 4, 2)
    assert "ImageNet-ReaL 50.0%" in write_report([run], tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": "sketch:/nowhere"}, "folder of sketch must exist and be a folder; got '/nowhere'"),
        ({"sets": "imagenet-x:/tmp"}, "--sets must name sets"),
        ({"corruptions": "fog"}, "--corruptions has no effect unless --sets names imagenet-c"),
        ({"severities": 2, "corruptions": "fog"}, "--corruptions and --severities have no effect"),
        ({"images_per_set": 0}, "images_per_set must be at least 1"),
        ({"model_args": {"num_classes": 7}}, "num_classes would replace"),
        ({"out": "FILE"}, "out must be a folder"),
        ({"sets": "RENAMED"}, "images of real must have their names, .*got .*n01440764/ILSVRC2012_val_0{8}.JPEG"),
        ({"sets": "CUT"}, "sketch must be complete.*1 of 4 classes"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str, run: Path, trees: dict[int, Path], tmp_path: Path) -> None:
    cut = linked(tmp_path / "cut", {name: trees[1] / name for name in FOUR[1:]})
    (tmp_path / "file").write_text("")
    given = {"CUT": f"sketch:{cut}", "FILE": str(tmp_path / "file"), "RENAMED": f"real:{trees[1]}"}
    options = {key: given.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(UserError, match=message):
        robustness(str(run), **{"sets": f"sketch:{trees[1]}", **HERE, **options})
    assert not (run / "robustness.json").exists()


def test_damaged_results_and_runs_of_other_tasks(run: Path, trees: dict[int, Path]) -> None:
    (run / "robustness.json").write_text("{")
    with pytest.raises(UserError, match="robustness.json must be whole.*Remove it, or choose another --out"):
        robustness(str(run), sets=f"sketch:{trees[1]}", **HERE)
    with (run / "config.yaml").open("a") as file:
        file.write("task: actions\n")
    with pytest.raises(UserError, match="for classifiers of ImageNet's classes; got .*a run of the task actions"):
        robustness(str(run), sets=f"sketch:{trees[1]}", **HERE)
