"""What a page must not pretend: masks of the right kind, means of finished runs, lines that can be told apart."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.reporting.galleries import masks as drawing
from vitdistill.reporting.galleries.masks import masks_of, run_columns, some_images, unmasked_because
from vitdistill.reporting.page import _duration, macs, write_report
from vitdistill.runs.read import read_run
from vitdistill.tokens.select import bottom_k

Make = Callable[..., Path]


def test_curves_have_a_legend(make_run: Make, tmp_path: Path) -> None:
    paths = [make_run(f"half-s{seed}", config={"seed": seed}) for seed in (0, 1)]
    paths.append(make_run("quarter", config={"keep": 0.25}))
    html = write_report(paths, tmp_path / "r.html", masks=False).read_text(encoding="utf-8")
    legend = html.partition('<ul class="legend">')[2].partition("</ul>")[0]
    assert "half (2 seeds)" in legend and "quarter" in legend and legend.count("<li>") == 2


def test_unfinished_seeds_are_not_averaged(make_run: Make, tmp_path: Path) -> None:
    for seed, status in enumerate(("finished", "finished", "interrupted")):
        make_run(f"r{seed}", config={"seed": seed}, info={"status": status, "accuracy": {"top1": 90.0 - 20 * seed}})
    paths = sorted((tmp_path / "runs").iterdir())
    html = write_report(paths, tmp_path / "r.html", masks=False).read_text(encoding="utf-8")
    assert "80.00 ± 14.14" in html


@pytest.mark.parametrize(
    ("config", "info", "reason"),
    [
        ({}, {}, None),
        ({}, {"teacher": None}, "no teacher"),
        ({"alpha": 0.0}, {}, "no teacher"),
        ({"alpha": 0.0, "distill": "logits+manifold"}, {}, None),
        ({"criterion": "random"}, {}, "random"),
        ({"criterion": "student+random"}, {}, "student\\+random"),
        ({}, {"tokens": {"kept": 64, "of": 64}}, "every patch"),
        ({"criterion": None}, {}, "does not say"),
    ],
)
def test_why_a_run_has_no_masks(
    make_run: Make, config: dict[str, Any], info: dict[str, Any], reason: str | None
) -> None:
    found = unmasked_because(read_run(make_run("run", config=config, info=info)))
    assert found is None if reason is None else re.search(reason, found or "")


def test_masks_of_a_run_are_on_the_teachers_grid(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student has 4x4 patches, the teacher 8x8: half of 64 are kept, not half of 16."""
    student = build(tiny("deit"))
    monkeypatch.setattr("vitdistill.models.build.build", lambda spec: student)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    column, *_ = run_columns(read_run(make_run("run")), images)
    assert str(column.grid) == "8x8" and column.kept.shape == (2, 32) and "teacher sees 32 of 64" in column.title
    column, *_ = run_columns(read_run(make_run("student", config={"mask": "student"})), images)
    assert str(column.grid) == "4x4" and "student sees 8 of 16" in column.title


def test_bottom_masks_keep_the_lowest(images: torch.Tensor) -> None:
    student = build(tiny("deit")).eval()
    scores = student.saliency(student(images, capture=student.saliency_capture()))
    assert torch.equal(masks_of(student, images, 5, order="bottom"), bottom_k(scores, 5))


def test_batches_do_not_matter(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    student = build(tiny("deit"))
    whole = masks_of(student, images, 5)
    monkeypatch.setattr(drawing, "BATCH", 2)
    assert torch.equal(masks_of(student, images, 5), whole)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    with pytest.raises(UserError, match=r"bad\.jpg"):
        some_images(None, [bad], (16, 16), 1)


def test_one_run_without_a_student_does_not_cost_the_others_their_masks(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_run("good"), make_run("lost", config={"keep": 0.25})]

    def load(spec: str) -> Any:
        if spec.endswith("lost"):
            raise UserError("student.safetensors <is> gone")
        return build(tiny("deit"))

    monkeypatch.setattr("vitdistill.models.build.build", load)
    html = write_report(paths, tmp_path / "r.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 2  # the masks and the heat map of the other run
    assert "lost: no masks, since student.safetensors &lt;is&gt; gone" in html


def test_units_read_well() -> None:
    found = [macs(value).replace("\u00a0", " ") for value in (0.0, 0.0068, 4.6, 5750.0, 1770e6)]
    assert found == ["0", "6.8 M", "4.6 G", "5.75 T", "1.77 E"]
    assert [_duration(seconds) for seconds in (41.2, 61, 7322)] == ["41s", "1m 01s", "2h 02m"]
