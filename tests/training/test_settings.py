"""Settings that cannot train, or that change nothing, are refused."""

import subprocess
import sys

import pytest

from vitdistill.errors import UserError
from vitdistill.training.settings import Optim, Settings, check_trainer_arguments


def settings(optim: Optim, **options: object) -> Settings:
    return Settings(epochs=10, batch_size=1, optim=optim, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"decay_epochs": 3.0},
            "--optim.decay_epochs has no effect unless --optim.schedule is step or multistep or wsd",
        ),
        ({"decay_rate": 0.5}, "--optim.decay_rate has no effect unless --optim.schedule is step or multistep"),
        ({"power": 2.0}, "--optim.power has no effect unless --optim.schedule is poly"),
        (
            {"schedule": "constant", "min_lr": 1e-3},
            "--optim.min_lr has no effect unless --optim.schedule is cosine or poly or wsd",
        ),
        (
            {"weight_decay": 0.0, "weight_decay_end": 0.4},
            "--optim.weight_decay_end has no effect unless --optim.weight_decay is above 0",
        ),
        ({"name": "sgd", "betas": (0.9, 0.95)}, "--optim.betas has no effect on sgd, which has none; leave it out"),
        ({"name": "adan", "betas": (0.9, 0.95)}, r"of adan must be 3 numbers in \[0, 1\) or null, not \[0.9, 0.95\]"),
        ({"betas": (0.9, 1.0)}, r"of adamw must be 2 numbers in \[0, 1\)"),
        ({"name": "adamv"}, "must be one of timm's optimizers, not 'adamv'. Did you mean 'adam"),
        ({"clip": 0.0}, "--optim.clip must be positive, or null for none, not 0.0"),
        ({"clip": -1.0}, "--optim.clip must be positive, or null for none, not -1.0"),
        ({"clip_each": 0.0}, "--optim.clip_each must be positive, or null for none, not 0.0"),
        ({"schedule": "step"}, "of the schedule step must be one number of epochs above 0, not None"),
        ({"schedule": "step", "decay_epochs": (1, 2)}, "must be one number of epochs above 0"),
        ({"schedule": "multistep", "decay_epochs": (3, 2)}, r"must be epochs above 0 in ascending order \(\[10,20\]\)"),
        ({"schedule": "multistep"}, "must be epochs above 0 in ascending order"),
        ({"schedule": "wsd", "decay_epochs": 8.0}, "must be at most the 5 epochs behind the warm-up, or null, not 8.0"),
        ({"weight_decay": float("nan")}, "optim.weight_decay must be 0 or more, not nan"),
        ({"name": "adahessian"}, "adahessian needs second derivatives"),
        ({"name": "sgd", "betas": (0.5, 0.6)}, "betas has no effect on sgd"),
        ({"name": "rmsprop", "betas": (0.5, 0.6)}, "betas has no effect on rmsprop"),
        ({"warmup_epochs": -1}, "optim.warmup_epochs must be 0 or more, not -1"),
    ],
)
def test_options_that_the_schedule_or_optimizer_does_not_take_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        settings(Optim(**options)).check()
    assert "\n" not in str(error.value)


def test_a_schedule_that_timm_has_not_is_refused() -> None:
    optim = Optim()
    object.__setattr__(optim, "schedule", "linear")  # as where types are not checked
    with pytest.raises(UserError, match="must be one of cosine, constant, step, multistep, poly, wsd, not 'linear'"):
        settings(optim).check()


def test_what_a_verb_takes_by_default_is_not_refused() -> None:
    """`mae --optim.schedule constant`: nobody gave the verb's own min_lr and betas."""
    default = Optim(betas=(0.9, 0.95), min_lr=0.0)
    settings(Optim(betas=(0.9, 0.95), min_lr=0.0, schedule="constant", name="sgd"), optim_default=default).check()
    settings(Optim(schedule="constant", name="sgd"), optim_default=default).check()
    with pytest.raises(UserError, match=r"optim.min_lr has no effect.*optim.betas has no effect on sgd"):
        settings(Optim(betas=(0.9, 0.8), min_lr=1e-7, schedule="constant", name="sgd"), optim_default=default).check()


def test_options_need_neither_torch_nor_timm() -> None:
    """The command line's help lists them."""
    code = """
import sys
import vitdistill.training.settings, vitdistill.data.images.augment
from vitdistill.data.images.augment import Augment
Augment(recipe="deit", mixup=0.5).resolved()
print(*[name for name in ("torch", "timm", "torchvision", "numpy", "lightning") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_settings_report_every_broken_rule_together() -> None:
    settings = Settings(epochs=0, batch_size=0, optim=Optim(lr=-1.0, ema=2.0))
    with pytest.raises(UserError) as error:
        settings.check()
    for word in ("epochs", "batch_size", "optim.lr", "optim.ema"):
        assert word in str(error.value)


def test_trainer_arguments_are_checked_against_lightning() -> None:
    check_trainer_arguments({"devices": 8, "num_nodes": 4, "strategy": "fsdp"})
    with pytest.raises(UserError, match="'strategy'"):
        check_trainer_arguments({"stratgy": "ddp"})
    with pytest.raises(UserError, match="--epochs"):
        check_trainer_arguments({"max_epochs": 3})
