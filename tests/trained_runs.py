"""A training run small enough to repeat in every test: 5 steps an epoch, well under a second each."""

from pathlib import Path
from typing import Any

import pytest

from vitdistill.data.images.augment import Augment
from vitdistill.training.settings import Optim

TINY = {"embed_dim": 12, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `supervised` to be a teacher."""
    from vitdistill.verbs.supervised import supervised

    out = tmp_path_factory.mktemp("teacher") / "run"
    supervised(
        student="digits_vit_small",
        data="digits",
        out=str(out),
        epochs=1,
        batch_size=256,
        student_args={"embed_dim": 24, "depth": 2, "num_heads": 2},
        augment=Augment(recipe="none"),
        optim=Optim(lr=3e-3, lr_batch=0, warmup_epochs=0),
    )
    return out


@pytest.fixture
def arguments(teacher_run: Path, few_digits: None) -> dict[str, Any]:
    """Arguments of `maskedkd` that use every source of randomness and every schedule: 5 steps an epoch."""
    return {
        "student": "digits_vit_small",
        "student_args": dict(TINY),
        "teacher": str(teacher_run),
        "data": "digits",
        "keep": "0.8->0.4",
        "criterion": "student+random",
        "epochs": 3,
        "batch_size": 48,
        "drop_path": 0.2,
        "augment": Augment(recipe="none", scale=0.7, mixup=0.5, erasing=0.3),
        "optim": Optim(lr=1e-3, lr_batch=0, warmup_epochs=1, weight_decay_end=0.2, ema=0.8, accumulate=2),
        "seed": 7,
    }
