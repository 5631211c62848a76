"""Masks over a training: against masks and accuracies that are computed one by one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tiny import tiny
from vitdistill.errors import UserError
from vitdistill.evaluation.masked import MaskedAccuracy
from vitdistill.evaluation.spread import EvenlySpread
from vitdistill.evaluation.trajectory import Trajectory, students_of
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.families import as_network
from vitdistill.models.teacher import Teacher
from vitdistill.reporting.galleries.masks import keep_heatmap, masks_of
from vitdistill.runs.read import read_run
from vitdistill.tokens.structure import MaskStructure, overlap


def network(seed: int) -> Backbone:
    torch.manual_seed(seed)
    found = with_tokens(as_network(tiny("vit").eval()))
    for parameter in found.net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, 32, 32, generator=generator), torch.randint(0, 4, (12,), generator=generator)


@pytest.fixture(scope="module")
def found(batch: tuple[Tensor, Tensor]) -> Trajectory:
    trajectory = Trajectory(
        {"untrained": network(3), 0: network(0), 5: network(1)},
        Teacher(network(2)),
        2,
        criteria=("student", "random", "teacher"),
    )
    for part in (slice(0, 5), slice(5, 12)):
        trajectory.update(batch[0][part], batch[1][part])
    return trajectory


def test_rows(found: Trajectory) -> None:
    rows = found.rows()
    assert [(row["criterion"], row["epoch"]) for row in rows] == [
        ("student (untrained)", None),
        ("student", 0),
        ("student", 5),
        ("random", None),
        ("teacher", None),
    ]
    assert rows[2]["overlap"] == 1 and rows[3]["student"] is None
    assert found.summary()["images"] == 12 and found.summary()["chance_overlap"] > 0


def test_masks_are_those_of_each_student(found: Trajectory, batch: tuple[Tensor, Tensor]) -> None:
    first, last = (masks_of(network(seed), batch[0], 2) for seed in (0, 1))
    row, grid = found.rows()[1], network(0).grid
    structure = MaskStructure(grid, 2)
    structure.add(first)
    assert row["joint"] == pytest.approx(structure.joint, abs=1e-5)
    assert row["rates"] == pytest.approx(keep_heatmap(first, grid).flatten().tolist(), abs=1e-4)
    assert row["overlap"] == pytest.approx(float(overlap(first, last, grid.count).mean()), abs=1e-5)
    student = network(0)(batch[0]).prediction
    assert row["student"] == pytest.approx(100 * float((student.argmax(1) == batch[1]).float().mean()), abs=1e-3)


def test_the_teacher_is_as_accurate_as_evaluation_says(found: Trajectory, batch: tuple[Tensor, Tensor]) -> None:
    names = ["student", "random", "teacher"]
    masked = MaskedAccuracy(Teacher(network(2)), keep=2, criterion=names, student=network(1))
    masked.update(*batch)
    for row, other in zip(found.rows()[2:], masked.compute(), strict=True):
        assert (row["teacher"], row["agreement"]) == pytest.approx((other["top1"], other["agreement"]), abs=1e-3)


def test_without_a_teacher_and_labels_there_are_masks_alone(batch: tuple[Tensor, Tensor]) -> None:
    trajectory = Trajectory({0: network(0), 1: network(1)}, None, 2)
    trajectory.update(batch[0], None)
    row = trajectory.rows()[0]
    assert row["joint"] is not None and row["teacher"] is None and trajectory.summary()["whole_teacher"] is None


def test_an_evenly_spread_part(colour_run: Path) -> None:
    whole = read_run(colour_run).source().val
    part = EvenlySpread(whole, 3)
    assert len(part) == 3 and part.labels == [0, 1, 2] and len(EvenlySpread(whole, 99)) == len(whole)


def test_a_run_without_snapshots_is_refused(colour_run: Path) -> None:
    with pytest.raises(UserError, match="The run must have left snapshots"):
        students_of(read_run(colour_run))
