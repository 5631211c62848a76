"""Pictures of confused classes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitdistill.errors import UserError
from vitdistill.models.record import ModelRecord
from vitdistill.reporting.galleries.confusion import PAIRS, confusion_figure, summary
from vitdistill.reporting.pictures import galleries
from vitdistill.runs.read import read_run
from vitdistill.tasks.confusion import Confusion

COUNTS = torch.tensor([[8, 2, 0], [1, 1, 0], [0, 0, 0]])


def test_few_classes_are_a_matrix_and_many_are_their_mistakes() -> None:
    axes = confusion_figure(Confusion.of(COUNTS, ["cat", "$dog$", "owl"])).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$dog$", "owl"]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "2", "8"]
    matrix = torch.eye(40, dtype=torch.int64) * 9
    matrix[3, 5], matrix[7] = 4, 1
    axes = confusion_figure(Confusion.of(matrix, [f"c{number}" for number in range(40)])).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "c3 taken for c5" and len(axes.patches) == PAIRS
    assert confusion_figure(Confusion.of(torch.eye(40, dtype=torch.int64), list("x" * 40))).axes[0].get_xlabel() == (
        "no mistakes"
    )
    with pytest.raises(UserError, match="at least one prediction"):
        confusion_figure(Confusion.of(torch.zeros(3, 3, dtype=torch.int64), ["a", "b", "c"]))


def test_words_say_what_the_colours_do() -> None:
    assert summary(Confusion.of(COUNTS, ["cat", "dog", "owl"])) == (
        "Mean accuracy per class 65.0%; lowest: dog, 50.0% of 2, most often taken for cat. 1 of 3 classes have no "
        "sample."
    )


def test_a_report_shows_them_and_damaged_counts_cost_no_page(make_run: Callable[..., Path]) -> None:
    path = make_run("a")
    assert "Confusion" not in [gallery.heading for gallery in galleries([read_run(path)])]
    ModelRecord("vit_tiny_patch16_224", classes=["cat", "dog", "owl"]).write(path)
    (path / "confusion.csv").write_text(Confusion.of(COUNTS, ["cat", "dog", "owl"]).csv())
    gallery = {each.heading: each for each in galleries([read_run(path)])}["Confusion"]
    assert "lowest: dog" in gallery.pictures[0].caption and not gallery.notes
    (path / "confusion.csv").write_text("nonsense")
    gallery = {each.heading: each for each in galleries([read_run(path)])}["Confusion"]
    assert not gallery.pictures and "must not be empty" in gallery.notes[0]
