"""A run says when its masked teacher no longer knows what the whole one knows."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from vitdistill.data.images.augment import Augment
from vitdistill.runs.read import read_run
from vitdistill.training.progress import teacher_words
from vitdistill.training.settings import Optim
from vitdistill.verbs.maskedkd import maskedkd


def trained(out: Path, **options: Any) -> dict[str, Any]:
    return maskedkd(
        student="digits_vit_small",
        teacher="digits-teacher",
        data="digits",
        out=str(out),
        epochs=4,
        batch_size=64,
        augment=Augment(recipe="none"),
        optim=Optim(lr=3e-3, lr_batch=64, warmup_epochs=1),
        **options,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("report")
def test_masks_that_do_harm_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        info = trained(tmp_path / "run", keep=2, criterion="student")
    said = [record.message for record in caplog.records if "may mislead its student" in record.message]
    assert len(said) == 1 and "2 of 36 patches" in said[0] and "--keep 0.75" in said[0]
    assert info["masked_teacher"]["warning"] == said[0]
    assert info["masked_teacher"]["agreement"] < 80 and info["masked_teacher"]["lowest_agreement"] <= 80
    assert all(0 <= share <= 100 for share in read_run(tmp_path / "run").metrics["teacher/agreement"] if share)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "may mislead its student" in page and "agrees with the whole" in page


@pytest.mark.slow
def test_masks_that_do_none_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        info = trained(tmp_path / "run", keep=34)
    assert not [record.message for record in caplog.records if "may mislead" in record.message]
    teacher = info["masked_teacher"]
    assert teacher["warning"] is None and teacher["agreement"] > 80 and teacher["criterion"] in ("student", "random")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["masked_teacher"] == teacher


def test_the_progress_line_has_the_teacher_beside_the_student() -> None:
    assert teacher_words({"train/loss": 1.0}) == ""
    assert teacher_words({"teacher/top1": 80.04}) == "  teacher 80.0%"
    masked = teacher_words({"teacher/top1": 64.31, "teacher/agreement": 71.0})
    assert masked == "  masked teacher 64.3%, agrees with the whole 71%"
