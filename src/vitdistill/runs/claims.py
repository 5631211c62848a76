"""Whether runs over seeds bear out a claim: differences paired by seed, with their t interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

Kind = Literal["gain", "no_loss"]
Verdict = Literal["holds", "does not hold", "not resolved"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "not resolved")
LEVEL = 0.95
MARGIN = 1.0  # points that a claim of no loss allows


@dataclass(frozen=True)
class Claim:
    """A claim about two settings.

    Attributes:
        text: in words.
        better, worse: names of settings.
        kind: gain says that `better` is better; no_loss that it is not worse, by more than the margin.
        margin: in units of the column; by default 0 for a gain and 1 for no loss.
        column: which is compared; None is the study's score.
        lower: whether lower is better; None goes by the column's name.
    """

    text: str
    better: str
    worse: str
    kind: Kind = "gain"
    margin: float | None = None
    column: str | None = None
    lower: bool | None = None


@dataclass(frozen=True)
class Finding:
    """What runs say of a claim.

    Attributes:
        claim: the claim.
        column: which was compared.
        gain: mean of the differences in favour of `better`; NaN where no seed has both.
        half_width: of the 95% interval; infinite for a single seed.
        seeds: with both settings.
        verdict: what follows from the interval.
        corrected: what follows from an interval that is widened for the number of claims (Bonferroni).
    """

    claim: Claim
    column: str
    gain: float
    half_width: float
    seeds: int
    verdict: Verdict
    corrected: Verdict


def judged(
    claims: Sequence[Claim], score: str, scores: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> list[Finding]:
    """Each claim against the differences between seeds.

    Args:
        claims: to judge; those with a setting that was not run are left out.
        score: the column of claims that name none.
        scores: setting -> column -> seed -> value.
    """
    pairs = []
    for claim in claims:
        if claim.better in scores and claim.worse in scores:
            column = claim.column or score
            sides = [scores[name].get(column, {}) for name in (claim.better, claim.worse)]
            lower = lower_is_better(column) if claim.lower is None else claim.lower
            sign = -1.0 if lower else 1.0
            seeds = sorted(sides[0].keys() & sides[1].keys())
            pairs.append((claim, column, [sign * (sides[0][seed] - sides[1][seed]) for seed in seeds]))
    strict = 1 - (1 - LEVEL) / max(1, len(pairs))
    findings = []
    for claim, column, differences in pairs:
        gain = mean(differences) if differences else math.nan
        half = half_width(differences)
        verdicts = [verdict(claim, gain, half), verdict(claim, gain, half_width(differences, strict))]
        findings.append(Finding(claim, column, gain, half, len(differences), *verdicts))
    return findings


def verdict(claim: Claim, gain: float, half: float) -> Verdict:
    """What an interval says of a claim.

    A gain holds if the interval lies above the margin, and does not if it lies below. No loss holds if the interval
    lies above minus the margin; where it lies below zero a loss is certain, however small, and the claim does not hold.
    """
    low, high = gain - half, gain + half
    if claim.kind == "gain":
        margin = claim.margin or 0.0
        return "holds" if low > margin else "does not hold" if high < margin else "not resolved"
    margin = MARGIN if claim.margin is None else claim.margin
    return "does not hold" if high < 0 else "holds" if low > -margin else "not resolved"


def lower_is_better(column: str) -> bool:
    """Whether a column is a loss or a cost.

    Example:
        >>> lower_is_better("val/loss"), lower_is_better("knn/top1")
        (True, False)
    """
    last = column.rpartition("/")[2]
    return any(word in last for word in ("loss", "seconds", "gmacs", "memory")) or last.endswith("_ms")


def half_width(values: Sequence[float], level: float = LEVEL) -> float:
    """Half of the t interval of a mean; infinite for fewer than two values."""
    if len(values) < 2:
        return math.inf
    return t_quantile((1 + level) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_quantile(share: float, freedom: int) -> float:
    """The value below which this share of Student's t distribution lies, by bisection; above a half.

    By hand, since scipy is no dependency of this package.

    Example:
        >>> round(t_quantile(0.975, 4), 4)
        2.7764
    """
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
        if middle in (low, high) and math.nextafter(low, math.inf) >= high:
            break
    return (low + high) / 2


def _t_share(t: float, freedom: int) -> float:
    """The share of Student's t distribution below t > 0 (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    total, term = 0.0, cosine if freedom % 2 else 1.0
    for power in range(2 + freedom % 2, freedom + 1, 2):  # sum of products of odd over even numbers, or the reverse
        total += term
        term *= cosine**2 * (power - 1) / power
    if freedom % 2:
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2
