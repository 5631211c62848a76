"""Claims against differences between seeds, beside what scipy says of them."""

import math

import pytest
from scipy import stats

from vitdistill.runs.claims import Claim, half_width, judged, lower_is_better, t_quantile, verdict

GAIN = Claim("Half is better", "half", "whole")
NO_LOSS = Claim("Half loses nothing", "half", "whole", "no_loss")


def test_quantiles_are_those_of_scipy() -> None:
    for freedom in (1, 2, 3, 4, 5, 9, 30, 101):
        for share in (0.9, 0.975, 0.995, 0.9999):
            assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)


def test_intervals_are_those_of_scipy() -> None:
    values = [0.4, 1.1, -0.3, 0.9, 0.2]
    low, high = stats.t.interval(0.95, 4, loc=stats.tmean(values), scale=stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-9)
    assert half_width([1.0]) == half_width([]) == math.inf and half_width([2.0, 2.0]) == 0


@pytest.mark.parametrize(
    ("claim", "gain", "half", "expected"),
    [
        (GAIN, 1.0, 0.9, "holds"),
        (GAIN, 1.0, 1.1, "not resolved"),
        (GAIN, -1.0, 0.9, "does not hold"),
        (GAIN, 1.0, math.inf, "not resolved"),
        (GAIN, math.nan, math.inf, "not resolved"),
        (Claim("by two points", "half", "whole", "gain", 2.0), 3.0, 1.5, "not resolved"),
        (Claim("by two points", "half", "whole", "gain", 2.0), 1.0, 0.5, "does not hold"),
        (NO_LOSS, 0.0, 0.9, "holds"),
        (NO_LOSS, 0.0, 1.1, "not resolved"),
        (NO_LOSS, -0.5, 0.4, "does not hold"),  # within the margin, but certain
        (NO_LOSS, 5.0, 4.0, "holds"),
        (Claim("nearly", "half", "whole", "no_loss", 3.0), -1.0, 1.5, "holds"),
    ],
)
def test_verdicts(claim: Claim, gain: float, half: float, expected: str) -> None:
    assert verdict(claim, gain, half) == expected


def test_differences_are_paired_by_seed() -> None:
    """Of the runs that both settings have, whatever their order: the spread between seeds cancels."""
    scores = {
        "half": {"val/top1": {0: 91.0, 1: 81.5, 2: 71.3, 4: 5.0}, "val/loss": {0: 1.0, 1: 2.0}},
        "whole": {"val/top1": {2: 70.0, 1: 80.0, 0: 90.0, 3: 1.0}, "val/loss": {0: 1.5, 1: 2.4}},
    }
    loss = Claim("Its loss is lower", "half", "whole", column="val/loss")
    absent = Claim("Nothing", "half", "none")
    first, second = judged([GAIN, loss, absent], "val/top1", scores)
    assert first.gain == pytest.approx((1 + 1.5 + 1.3) / 3) and first.seeds == 3
    assert first.half_width == pytest.approx(half_width([1, 1.5, 1.3])) and first.verdict == "holds"
    assert second.gain == pytest.approx(0.45) and second.verdict == "not resolved" and second.column == "val/loss"


def test_many_claims_need_wider_intervals() -> None:
    differences = {seed: float(value) for seed, value in enumerate((1.0, 2.0, 3.0, 2.5, 0.4))}
    scores = {"half": {"s": differences}, "whole": {"s": dict.fromkeys(differences, 0.0)}}
    one = judged([GAIN], "s", scores)
    many = judged([GAIN] * 20, "s", scores)
    assert one[0].verdict == one[0].corrected == many[0].verdict == "holds"
    assert many[0].corrected == "not resolved"
    p = stats.ttest_1samp(list(differences.values()), 0).pvalue
    assert 0.05 / 20 < p < 0.05


def test_of_losses_and_costs_lower_is_better() -> None:
    assert all(map(lower_is_better, ("val/loss", "seconds", "teacher_gmacs", "step_ms", "distilled/val/loss")))
    assert not any(map(lower_is_better, ("val/top1", "knn/top1", "images_per_s", "teacher/agreement")))
