"""Proposition 1 of MaskedKD (App. K), checked by drawing random attention: near inputs get near scores.

    python benchmarks/proposition.py                 # half a minute on one core

The entries of the class token and of the d x d or k x d matrices W_Q and W_K are independent N(0, s^2), and
a(x) = x_cls^T W_Q^T W_K x is the class token's score of a token before the softmax. For any two inputs x, x'

    E|a(x) - a(x')|  <=  s^3 sqrt(k d) ||x - x'||  <=  4 s^3 d^(3/2) ||x - x'||        (k <= d)

so that patches that look alike are kept or dropped together already by an untrained student. The left bound follows
from Jensen's inequality: given W_K, x_cls and the difference of the inputs, a(x) - a(x') has mean 0, and its second
moment is k s^2 ||x - x'||^2 * s^2 * d s^2. For wide networks the mean tends to sqrt(2 / pi) = 0.798 of it.

Writes benchmarks/results/proposition.{md,json,svg}. Figures do not depend on the machine.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
CHUNK = 2**25  # numbers drawn at a time

# (d, k): width of the tokens, and of queries and keys of a head; the last three are those of DeiT-Ti, -S and -B.
SHAPES = ((8, 8), (32, 32), (64, 16), (128, 128), (192, 64), (384, 64), (768, 64))
SPREADS = (0.02, 0.1, 1.0)  # s; 0.02 is how ViTs are initialised
DISTANCES = (0.01, 1.0, 100.0)
LIMIT = math.sqrt(2 / math.pi)


def gaps(d: int, k: int, s: float, distance: float, draws: int, seed: int) -> Iterator[Tensor]:
    """|a(x) - a(x')| of independent networks, for one pair of inputs that far apart; some at a time."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(d, generator=generator)
    direction = torch.randn(d, generator=generator)
    other = x + distance * direction / direction.norm()
    at_once = max(1, CHUNK // (2 * d * k))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        cls = s * torch.randn(count, d, 1, generator=generator)
        to_query, to_key = (s * torch.randn(count, k, d, generator=generator) for _ in range(2))
        query = to_query @ cls
        # As the network computes it: both scores, then their difference; in double, so that near inputs differ.
        keys = to_key.double() @ torch.stack((x, other), dim=1).double()
        scores = (query.double().mT @ keys)[:, 0]
        yield (scores[:, 0] - scores[:, 1]).abs()


def check(d: int, k: int, s: float, distance: float, draws: int, seed: int) -> dict[str, Any]:
    """The mean gap with its standard error, as shares of both bounds."""
    found = torch.cat(list(gaps(d, k, s, distance, draws, seed)))
    mean, error = float(found.mean()), float(found.std() / math.sqrt(len(found)))
    sharp = s**3 * math.sqrt(k * d) * distance
    loose = 4 * s**3 * d**1.5 * distance
    return {
        "d": d,
        "k": k,
        "s": s,
        "distance": distance,
        "draws": len(found),
        "mean": mean,
        "error": error,
        "of_sharp": mean / sharp,
        "of_sharp_error": error / sharp,
        "of_paper": mean / loose,
        "holds": mean + 3 * error <= sharp <= loose,
    }


def rows_of(draws: int) -> list[dict[str, Any]]:
    """Every shape at one spread and distance, then every spread and distance at one shape."""
    settings = [(d, k, 0.02, 1.0) for d, k in SHAPES]
    settings += [(64, 16, s, distance) for s in SPREADS for distance in DISTANCES if (s, distance) != (0.02, 1.0)]
    return [check(*setting, draws, seed) for seed, setting in enumerate(settings)]  # other inputs in each


def markdown(rows: list[dict[str, Any]]) -> str:
    """The committed table."""
    worst = max(row["of_sharp"] + 3 * row["of_sharp_error"] for row in rows)
    held = sum(row["holds"] for row in rows)
    lines = [
        "# Proposition 1: near inputs get near scores from random attention",
        "",
        "`python benchmarks/proposition.py`. Mean of |a(x) - a(x')| over random class tokens, W_Q and W_K with entries "
        "N(0, s²), for one pair x, x'; ± is one standard error, and a bound holds "
        "where the mean lies three of them below it. The sharper bound is s³ sqrt(k d) ||x - x'||, the "
        "paper's form with C = 4 is 4 s³ d^1.5 ||x - x'||. For wide networks the mean tends to sqrt(2/π) = 0.798 of "
        "the sharper bound.",
        "",
        "| d | k | s | distance | draws | mean / sharper bound | mean / (4 s³ d^1.5 distance) | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['d']} | {row['k']} | {row['s']:g} | {row['distance']:g} | {row['draws']} "
            f"| {row['of_sharp']:.3f} ± {row['of_sharp_error']:.3f} | {row['of_paper']:.4f} "
            f"| {'yes' if row['holds'] else 'no'} |"
        )
    words = f"Both bounds hold in {held} of {len(rows)} settings; with three standard errors added the mean reaches "
    words += f"{worst:.2f} of the sharper bound at most, whatever the distance and s."
    return "\n".join([*lines, "", words]) + "\n"


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """The mean gap at distance 1 against the width, with both bounds."""
    from matplotlib.figure import Figure

    shown = sorted((row for row in rows if row["s"] == 0.02 and row["distance"] == 1.0), key=lambda row: row["d"])
    picture = Figure(figsize=(6, 3.6), layout="constrained")
    axes = picture.subplots()
    width = [row["d"] for row in shown]
    axes.loglog(width, [4 * 0.02**3 * d**1.5 for d in width], "--", color="#D55E00", label="4 s³ d^1.5 (paper, C = 4)")
    sharp = [row["mean"] / row["of_sharp"] for row in shown]
    axes.loglog(width, sharp, "_", color="#009E73", markersize=14, label="s³ sqrt(k d)")
    axes.errorbar(
        width, [r["mean"] for r in shown], [r["error"] for r in shown], fmt="o", color="#0072B2", label="measured mean"
    )
    axes.set_xticks(width, [f"{row['d']}\nk {row['k']}" for row in shown], fontsize=7)
    axes.minorticks_off()
    axes.set_xlabel("width d, and k of a head")
    axes.set_title("E|a(x) - a(x')| at ||x - x'|| = 1, s = 0.02", fontsize=9, loc="left")
    axes.legend(fontsize=8)
    picture.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="networks of each setting")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    rows = rows_of(options.draws)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "proposition.json").write_text(json.dumps({"draws": options.draws, "rows": rows}, indent=1) + "\n")
    (options.out / "proposition.md").write_text(markdown(rows))
    figure(rows, options.out / "proposition.svg")
    print(markdown(rows))


if __name__ == "__main__":
    main()
