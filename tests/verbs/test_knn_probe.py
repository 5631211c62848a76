"""knn and probe: on the bundled teacher, on a random network without a classifier, on a run; bad input."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.models.record import ModelRecord
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Optim
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.knn import knn
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.parser import parse
from vitdistill.verbs.probe import probe
from vitdistill.verbs.supervised import supervised

SMALL: dict[str, Any] = {"img_size": 12, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def random_network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments for a network with random weights and no classifier."""
    args = {**SMALL, "num_classes": 0}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = timm.create_model("vit_tiny_patch16_224", **args)
    path = tmp_path_factory.mktemp("random") / "net.pth"
    torch.save(net.state_dict(), path)
    return {"model": f"vit_tiny_patch16_224@{path}", "model_args": args, "data": "digits"}


def test_knn_of_the_bundled_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    result = knn("digits-teacher", json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert result["data"] == "digits" and result["pool"] == "cls"
    assert (result["images"], result["train_images"], result["unreadable"]) == (360, 1437, 0)
    assert [score["k"] for score in result["scores"]] == [10, 20]
    assert all(90 < score["top1"] <= score["top5"] for score in result["scores"])


def test_probe_of_the_bundled_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    result = probe("digits-teacher", epochs=20, json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert 90 < result["scores"]["top1"] <= result["scores"]["top5"]
    assert result["lr"] in [row["lr"] for row in result["tried"]]
    assert result["held_out_top1"] == max(row["held_out_top1"] for row in result["tried"])
    assert probe("digits-teacher", epochs=20) == result


def test_a_random_network_without_classifier_is_far_worse(random_network: dict[str, Any]) -> None:
    assert knn(**random_network, k=10)["scores"][0]["top1"] < 60
    assert probe(**random_network, epochs=5)["scores"]["top1"] < 60


def test_tables_show_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    result = knn("digits-teacher", k=5)
    assert f"{result['scores'][0]['top1']:.2f}" in capsys.readouterr().out
    result = probe("digits-teacher", lr=0.1, epochs=2)
    out = capsys.readouterr().out
    assert f"{result['scores']['top1']:.2f}" in out and "0.1" in out
    assert result["lr"] == 0.1 and result["held_out_top1"] is None


@pytest.mark.parametrize("classes", [5, 6])
def test_the_five_best_are_shown_where_there_are_more_classes(
    classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for split, name, index in itertools.product(("train", "val"), range(classes), range(4)):
        folder = tmp_path / split / str(name)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    args: dict[str, Any] = {"model": "digits-teacher", "data": str(tmp_path), "workers": 0}
    for run in (lambda: knn(**args, k=3), lambda: probe(**args, lr=0.1, epochs=1)):
        scores = run()["scores"]
        assert "top5" in (scores[0] if isinstance(scores, list) else scores)
        assert ("top-5" in capsys.readouterr().out) == (classes > 5)


def test_checkpoints_of_a_run(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    supervised(
        student="digits_vit_small",
        data="digits",
        out=run,
        epochs=1,
        batch_size=128,
        student_args={"embed_dim": 12, "depth": 1, "num_heads": 2},
        augment=Augment(recipe="none"),
        optim=Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
    )
    exported, last = knn(run, k=5), knn(run, k=5, checkpoint="last")
    assert exported["scores"] == last["scores"] and exported["data"] == "digits"
    assert knn(run, k=5, pool="avg")["scores"] != exported["scores"]
    (tmp_path / "run" / "student.safetensors").unlink()  # as if it had never finished
    for verb in (knn, probe):
        with pytest.raises(UserError, match=r"student\.safetensors"):
            verb(run)
    assert knn(run, k=5, checkpoint="last")["scores"] == exported["scores"]


@pytest.mark.parametrize("verb", [knn, probe])
def test_what_is_no_run_is_refused(verb: Any, tmp_path: Path, random_network: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"must hold student\.json"):
        verb(str(tmp_path))
    with pytest.raises(UserError, match="Data must be named"):
        verb(random_network["model"])
    with pytest.raises(UserError, match="The device must exist"):
        verb("digits-teacher", device="nonsense")


@pytest.mark.parametrize("verb", [knn, probe])
@pytest.mark.parametrize("given", [{"stride": 2}, {"sampling": "uniform"}])
def test_images_are_no_clips(verb: Any, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"--{next(iter(given))} has no effect with a network over single images"):
        verb("digits-teacher", **given)


def test_bad_options_are_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"k must be at most the number of training images; got k 1438 and 1437 images"):
        knn("digits-teacher", k=[10, 1438])
    with pytest.raises(UserError, match="A learning rate must be positive"):
        probe("nothing", lr=-1.0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["digits-teacher", "--k", "5"], 5),
        (["digits-teacher", "--k", "[5,7]"], [5, 7]),
        (["digits-teacher"], [10, 20]),
    ],
)
def test_the_command_line_takes_one_k_or_several(words: list[str], expected: Any) -> None:
    values = parse("knn", words)
    assert values["model"] == "digits-teacher"
    assert (values["k"] if isinstance(values["k"], int) else list(values["k"])) == expected


# --- what was fitted is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_a_kept_probe_is_a_model_with_the_accuracy_of_the_probe(
    pool: Any, random_network: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "teacher"
    result = probe(**random_network, pool=pool, epochs=5, out=str(out))
    tested = evaluate(str(out))  # on the recorded data
    assert (tested["top1"], tested["top5"]) == (result["scores"]["top1"], result["scores"]["top5"])
    record = ModelRecord.read(out)
    assert record.classes == [str(digit) for digit in range(10)] and record.args["num_classes"] == 10
    assert record.preprocessing["size"] == [12, 12] and record.preprocessing["crop_pct"] == 1.0
    found = read_run(out)
    assert found.status == "finished" and found.verb == "probe" and found.result == result["scores"]["top1"]
    with pytest.raises(UserError, match="which trains no network"):
        found.method()
    if pool == "cls":
        assert export(str(out), format="hub")["max_difference"] == 0
        probe(**random_network, pool=pool, lr=0.1, epochs=1, out=str(out), overwrite=True)
        with pytest.raises(UserError, match="must be new or empty"):
            probe(**random_network, lr=0.1, epochs=1, out=str(out))


def test_a_kept_probe_is_a_teacher(tmp_path: Path) -> None:
    teacher = str(tmp_path / "teacher")
    result = probe("digits-mae", pool="avg", lr=0.3, epochs=10, out=teacher)
    info = maskedkd(
        student="digits_vit_small",
        student_args={"embed_dim": 12, "depth": 1, "num_heads": 2},
        teacher=teacher,
        data="digits",
        keep=0.5,
        out=str(tmp_path / "student"),
        epochs=1,
        batch_size=256,
        augment=Augment(recipe="none"),
        optim=Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
    )
    assert info["status"] == "finished" and info["teacher"]["name"] == "vit_tiny_patch16_224"
    assert result["scores"]["top1"] > 80


def test_overwrite_needs_out() -> None:
    with pytest.raises(UserError, match="--overwrite has no effect without --out"):
        probe("digits-teacher", overwrite=True)
