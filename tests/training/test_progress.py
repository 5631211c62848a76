"""What a method is told of the progress of its training, and what the cost report makes of it."""

import csv
from pathlib import Path
from typing import Any

import pytest

from tiny import SMALL, tiny
from vitdistill.data.images.augment import Augment
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.build import build
from vitdistill.training.settings import Optim
from vitdistill.training.summary import cost_of
from vitdistill.verbs.cost import cost
from vitdistill.verbs.maskedkd import maskedkd


def test_progress_goes_by_the_step_from_0_to_1(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen, after = MaskedKD.forward, [], []

    def recording(self: MaskedKD, images: Any, targets: Any, progress: float = 0.0) -> Any:
        step = forward(self, images, targets, progress)
        seen.append((progress, step.kept.shape[1]))
        return step

    monkeypatch.setattr(MaskedKD, "forward", recording)
    monkeypatch.setattr(MaskedKD, "after_step", lambda self, progress: after.append(progress))
    optim = Optim(lr=1e-3, lr_batch=0, warmup_epochs=0, accumulate=2)
    run = tmp_path / "run"
    info = maskedkd(
        **{**arguments, "keep": "32->14", "epochs": 2, "augment": Augment(recipe="none"), "optim": optim}, out=str(run)
    )
    # 2 epochs of 5 batches; every second batch, and the last of an epoch, ends an optimizer step.
    assert [progress for progress, _ in seen] == pytest.approx([step / 9 for step in range(10)])
    assert [kept for _, kept in seen] == [32, 30, 28, 26, 24, 22, 20, 18, 16, 14]
    assert after == pytest.approx([step / 9 for step in (1, 3, 4, 6, 8, 9)])
    with open(run / "metrics.csv", newline="") as file:
        assert [row["keep"] for row in csv.DictReader(file)] == ["24", "14"]  # of the last step of each epoch
    assert info["tokens"]["kept"] == 14


@pytest.mark.parametrize("keep", ["0:1.0,0.1:0.25", "1.0->0.25", "4", "1.0"])
def test_training_and_the_cost_verb_count_a_schedule_alike(keep: str) -> None:
    name = "vit_tiny_patch16_224"
    teacher = build(name, args=dict(SMALL))
    method = MaskedKD(tiny("vit"), teacher, keep=keep)
    trained = cost_of(method, epochs=5, steps_per_epoch=1000, images_per_epoch=50, epochs_done=5)["cost"]
    asked = cost(teacher=name, teacher_args=dict(SMALL), keep=keep, epochs=5, images=50, json=True)
    assert trained["saved_fraction"] == pytest.approx(asked["saved_fraction"], abs=1e-6)
    assert trained["teacher_gmacs_total"] == pytest.approx(asked["teacher_pflops"] * 1e6)
    full = trained["teacher_gmacs_full_per_image"] * 50 * 5
    assert trained["teacher_gmacs_total"] == pytest.approx(full * (1 - trained["saved_fraction"]), rel=1e-4)


def test_a_step_in_the_schedule_counts_by_its_share_of_the_training() -> None:
    """A tenth whole, nine tenths at a quarter, however few the epochs."""
    method = MaskedKD(tiny("vit"), build("vit_tiny_patch16_224", args=dict(SMALL)), keep="0:1.0,0.1:0.25")
    for epochs in (1, 5):
        found = cost_of(method, epochs=epochs, steps_per_epoch=1000, images_per_epoch=1, epochs_done=epochs)["cost"]
        whole, quarter = found["teacher_gmacs_full_per_image"], found["teacher_gmacs_per_image"]
        assert found["teacher_gmacs_total"] / epochs == pytest.approx(0.1 * whole + 0.9 * quarter, rel=1e-3)
        before = cost_of(method, epochs=epochs, steps_per_epoch=1000, images_per_epoch=1, epochs_done=0)["cost"]
        assert before["teacher_gmacs_total"] == 0 and before["saved_fraction"] == found["saved_fraction"]
