"""Learning rates and weight decay over a training."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch

from vitdistill.methods.supervised import Supervised
from vitdistill.training.optim import make_optimizer, make_schedules, plan_groups, warn_about_rates
from vitdistill.training.settings import Optim

# Learning rates before every step and after the last, as this package's own schedule gave them before timm's factory.
EARLIER = json.loads((Path(__file__).parents[1] / "golden" / "learning_rates.json").read_text())


@pytest.fixture
def method() -> Supervised:
    return Supervised(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4
        )
    )


def optimizer_for(method: Supervised, optim: Optim, global_batch: int) -> torch.optim.Optimizer:
    return make_optimizer(method, plan_groups(method, optim), optim, global_batch)


def rates_of(optim: Optim, epochs: int, steps_per_epoch: int) -> list[list[float]]:
    """Learning rates of two groups, the second with lr_scale 0.3, before each step and after the last."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr_scale": 0.3}], lr=optim.lr)
    (schedule,) = make_schedules(optimizer, optim, epochs, steps_per_epoch)
    seen = [[group["lr"] for group in optimizer.param_groups]]
    for step in range(1, epochs * steps_per_epoch + 1):
        schedule.step_update(step)
        seen.append([group["lr"] for group in optimizer.param_groups])
    return [list(rates) for rates in zip(*seen, strict=True)]


@pytest.mark.parametrize("name", EARLIER)
def test_cosine_and_constant_are_those_of_earlier_runs_bit_for_bit(name: str) -> None:
    case = EARLIER[name]
    assert rates_of(Optim(**case["optim"]), case["epochs"], case["steps_per_epoch"]) == case["rates"]


def flat(**options: object) -> Optim:
    """Without warm-up, at a peak of 1."""
    return Optim(**{"lr": 1.0, "lr_batch": 0, "warmup_epochs": 0, "min_lr": 1e-5, **options})  # type: ignore[arg-type]


def test_step_decays_every_so_many_epochs() -> None:
    rates, scaled = rates_of(flat(schedule="step", decay_epochs=0.5, decay_rate=0.5), 2, 4)
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625]
    assert scaled == pytest.approx([0.3 * rate for rate in rates])


def test_multistep_decays_after_the_epochs_that_it_is_told() -> None:
    rates, _ = rates_of(flat(schedule="multistep", decay_epochs=(1, 2.5), decay_rate=0.1), 3, 4)
    assert rates == pytest.approx([1] * 4 + [0.1] * 6 + [0.01] * 3)


def test_poly_is_segmenters() -> None:
    """Strudel et al., 2021: (lr - min_lr) * (1 - step / steps)^0.9 + min_lr."""
    rates, _ = rates_of(flat(schedule="poly", power=0.9, min_lr=0.01), 2, 5)
    assert rates == pytest.approx([0.01 + 0.99 * (1 - step / 10) ** 0.9 for step in range(11)])


def test_wsd_falls_in_its_last_epochs_only() -> None:
    rates, _ = rates_of(flat(schedule="wsd", decay_epochs=1, min_lr=0.0), 3, 4)
    assert rates == pytest.approx([1] * 9 + [1 - math.sqrt(step / 4) for step in range(1, 5)])
    assert rates_of(flat(schedule="wsd", min_lr=0.0), 5, 4)[0][15:18] == pytest.approx([1, 1, 0.5])  # the last fifth
    assert rates_of(flat(schedule="wsd", min_lr=0.0), 1, 1)[0] == [1, 0]


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "multistep", "poly", "wsd"])
def test_every_schedule_warms_up_over_a_fraction_of_an_epoch(schedule: str) -> None:
    decay = {"step": 1, "multistep": (1,)}.get(schedule)
    optim = flat(schedule=schedule, warmup_epochs=0.5, warmup_lr=0.2, decay_epochs=decay)
    rates, _ = rates_of(optim, 2, 8)
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and rates[4] > 0.7
    assert all(a >= b for a, b in pairwise(rates[4:]))


@pytest.mark.parametrize("schedule", ["cosine", "poly", "wsd"])
def test_the_rate_never_rises_above_its_peak(schedule: str) -> None:
    """A small batch scales the peak below `min_lr` and `warmup_lr`, which the batch does not scale."""
    rates, _ = rates_of(flat(schedule=schedule, lr=1e-6, warmup_epochs=1, warmup_lr=1e-3), 3, 4)
    assert rates == pytest.approx([1e-6] * 13)


def test_weight_decay_goes_along_a_cosine_and_leaves_out_what_does_not_decay(method: Supervised) -> None:
    optim = flat(weight_decay=0.04, weight_decay_end=0.4, layer_decay=0.5)
    optimizer = optimizer_for(method, optim, 1)
    rate, decay = make_schedules(optimizer, optim, epochs=5, steps_per_epoch=2)
    for step in range(11):
        rate.step_update(step), decay.step_update(step)
        # DINO's cosine_scheduler(0.04, 0.4): step 0 has 0.04; the end is one step behind the last.
        expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 10))
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        assert len(decays) == 2 and sorted(decays) == pytest.approx([0.0, expected])
    assert max(decays) == pytest.approx(0.4)
    head = {id(p): group for group in optimizer.param_groups for p in group["params"]}[id(method.student.net.head.bias)]
    assert head["weight_decay"] == 0.0


def test_weight_decay_stays_without_a_schedule(method: Supervised) -> None:
    assert len(make_schedules(optimizer_for(method, Optim(), 1), Optim(), epochs=2, steps_per_epoch=3)) == 1


def test_warm_up_then_cosine_to_the_minimum(method: Supervised) -> None:
    optim = Optim(lr=1.0, lr_batch=0, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01)
    optimizer = optimizer_for(method, optim, 1)
    (schedule,) = make_schedules(optimizer, optim, epochs=10, steps_per_epoch=10)
    seen = []
    for step in range(101):
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen[0] == pytest.approx(0.1) and seen[10] == pytest.approx(0.55)
    assert seen[50] == pytest.approx(0.01 + 0.5 * 0.99 * (1 + math.cos(math.pi * 0.5)))
    assert seen[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(seen[20:]))


def test_constant_schedule_stays(method: Supervised) -> None:
    optim = Optim(lr=0.3, lr_batch=0, warmup_epochs=1, warmup_lr=0.0, schedule="constant")
    optimizer = optimizer_for(method, optim, 1)
    (schedule,) = make_schedules(optimizer, optim, epochs=5, steps_per_epoch=4)
    schedule.step_update(17)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


def test_rates_that_cannot_be_as_asked_are_said_in_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """The peak takes its place (see `test_the_rate_never_rises_above_its_peak`)."""
    warn_about_rates(Optim(lr=5e-4, lr_batch=512, min_lr=1e-5), 10, global_batch=8)
    warn_about_rates(Optim(lr=5e-4, lr_batch=512, min_lr=1e-5, schedule="constant"), 10, global_batch=8)
    warn_about_rates(Optim(lr=5e-4, lr_batch=512, min_lr=1e-5), 10, global_batch=512)
    warn_about_rates(Optim(warmup_epochs=10), 10, global_batch=512, batches=1)
    warn_about_rates(Optim(warmup_epochs=0, schedule="step", decay_epochs=30), 10, global_batch=512)
    warn_about_rates(Optim(warmup_epochs=0, schedule="multistep", decay_epochs=(5, 20)), 10, global_batch=512)
    warn_about_rates(Optim(warmup_epochs=0, accumulate=8), 10, global_batch=512, batches=5)
    assert [record.getMessage() for record in caplog.records] == [
        "--optim.min_lr 1e-05 is above the peak learning rate of 7.8125e-06 (for a global batch of 8), which replaces "
        "it; lower --optim.min_lr, or raise --optim.lr",
        "The warm-up of 10 epochs takes all of the 10, so the learning rate never gets to its peak; set "
        "--optim.warmup_epochs",
        *(
            f"--optim.decay_epochs {late} is not before the end of the training after 10 epochs, so the learning rate "
            "does not fall there; set --optim.decay_epochs"
            for late in (30, 20)
        ),
        "--optim.accumulate 8 is above the 5 batches of an epoch, at whose end the optimizer steps in any case: the "
        "learning rate is scaled for larger steps than there are; lower --optim.accumulate",
    ]


def test_rates_of_the_published_segmentation_recipes() -> None:
    """Segmenter: (1e-3 - 1e-5) * (1 - it / max)^0.9 + 1e-5 from step 0; UperNet: linear to 0 behind a warm-up."""
    rates, _ = rates_of(flat(lr=1e-3, schedule="poly", power=0.9, min_lr=1e-5), 4, 25)
    assert rates == pytest.approx([(1e-3 - 1e-5) * (1 - step / 100) ** 0.9 + 1e-5 for step in range(101)])
    assert (rates[0], rates[-1]) == (1e-3, 1e-5)
    upernet = flat(lr=1e-4, schedule="poly", power=1.0, min_lr=0.0, warmup_epochs=0.4, warmup_lr=1e-10)
    rates, _ = rates_of(upernet, 4, 25)
    assert rates[:10] == pytest.approx([1e-10 + (1e-4 - 1e-10) * step / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([1e-4 * (1 - step / 100) for step in range(10, 101)], abs=1e-12)
