"""What the studies on small data share: runs over seeds in parallel, paired differences, verdicts, summaries."""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
VERDICTS = ("reproduced", "contradicted", "not resolved")

# (claim of the paper, better, worse, strict): strict claims a gain, the others "no worse".
Finding = tuple[str, str, str, bool]
RunOne = Callable[[str, int, int, str], dict[str, Any]]  # name, seed, epochs, folder -> a row with name, seed, top1


def run_all(
    run_one: RunOne,
    names: list[str],
    seeds: int,
    jobs: int,
    epochs: int,
    shown: tuple[str, ...] = ("top1",),
    kept: Path | None = None,
) -> list[dict[str, Any]]:
    """All runs, `jobs` at a time, each on one thread.

    Args:
        run_one: one run.
        names: of the settings.
        seeds: how many, from 0.
        jobs: processes.
        epochs: what `run_one` is told; a study with others has nothing in common with this one.
        shown: scores to print of each run as it ends.
        kept: file of finished runs, a line each; those that it already has are not run again.

    Returns:
        A row per run.

    Raises:
        Exception: of the first run that failed, after all others have ended.
    """
    results = finished(kept, names, seeds, epochs)
    done = {(row["name"], row["seed"]) for row in results}
    # Seeds outermost: an interruption leaves whole comparisons.
    wanted = [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in done]
    total = len(done) + len(wanted)
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            runs = [pool.submit(run_one, name, seed, epochs, folder) for name, seed in wanted]
            failed = []
            for run in as_completed(runs):
                if error := run.exception():  # the others go on, and are kept
                    failed.append(error)
                    print(f"a run failed: {error}", flush=True)
                    continue
                row = run.result()
                results.append(row)
                if kept is not None:
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"study_epochs": epochs, **row}) + "\n")
                scores = ", ".join(f"{key} {row[key]:.2f}%" for key in shown)
                print(f"[{len(results)}/{total}] {row['name']}, seed {row['seed']}: {scores}", flush=True)
    if failed:
        raise failed[0]
    return results


def finished(kept: Path | None, names: list[str], seeds: int, epochs: int) -> list[dict[str, Any]]:
    """The rows of a file of finished runs that belong to this study."""
    if kept is None or not kept.is_file():
        return []
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.pop("study_epochs") == epochs and row["name"] in names and row["seed"] < seeds]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for one value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def judge(table: dict[str, dict[str, Any]], findings: tuple[Finding, ...], key: str = "top1") -> list[dict[str, Any]]:
    """Each finding against the paired differences between seeds (t distribution, 95%)."""
    verdicts = []
    for claim, better, worse, strict in findings:
        if better not in table or worse not in table:
            continue
        differences = [a - b for a, b in zip(table[better][key], table[worse][key], strict=True)]
        mean, half = statistics.mean(differences), half_width(differences)
        if strict:
            verdict = "reproduced" if mean - half > 0 else "contradicted" if mean + half < 0 else "not resolved"
        else:
            verdict = "contradicted" if mean + half < 0 else "reproduced" if mean - half > -1 else "not resolved"
        verdicts.append(
            {"claim": claim, "better": better, "worse": worse, "gain": mean, "half_width": half, "verdict": verdict}
        )
    return verdicts


def half_width(differences: list[float]) -> float:
    """Half the 95% confidence interval of a mean."""
    from scipy.stats import t

    if len(differences) < 2:
        return math.inf
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return float(t.ppf(0.975, len(differences) - 1)) * error


def findings_table(verdicts: list[dict[str, Any]], title: str = "The paper's findings at this scale") -> list[str]:
    """The verdicts as lines of markdown."""
    lines = [
        f"## {title}",
        "",
        "Differences are paired by seed; ± is the half width of the 95% confidence interval (t). A claim of a gain is "
        "reproduced if the interval lies above zero; a claim of no loss if it lies above -1 point.",
        "",
        "| finding | difference, points | at this scale |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {v['claim']} | {v['gain']:+.2f} ± {v['half_width']:.2f} ({v['better']} - {v['worse']}) | {v['verdict']} |"
        for v in verdicts
    ]


def in_words(verdicts: list[dict[str, Any]]) -> str:
    """What the table settles, and what it does not."""
    by_verdict = {kind: [v["claim"] for v in verdicts if v["verdict"] == kind] for kind in VERDICTS}
    parts = [f"{len(claims)} of {len(verdicts)} findings {kind}" for kind, claims in by_verdict.items()]
    text = "In short: " + ", ".join(parts) + ". "
    for kind in ("reproduced", "contradicted"):
        if by_verdict[kind]:
            text += f"{kind.capitalize()}: {'; '.join(by_verdict[kind])}. "
    return text + (
        "What is not resolved cannot be told from chance with so few seeds and 360 test images. The verdicts are not "
        "corrected for their number: of many true null differences one in twenty would seem resolved. "
    )


def command_line() -> str:
    """How the study was called, but for where it wrote."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--report"]
    for option in ("--out", "--kept", "--teachers"):
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def parser_of(doc: str | None, seeds: int, epochs: int, only: str = "settings to run") -> argparse.ArgumentParser:
    """A command line with the options that every study has.

    Args:
        doc: of the study's module.
        seeds: how many by default.
        epochs: by default.
        only: what `--only` says of itself.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--only", nargs="*", default=[], help=only)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def chosen(settings: Iterable[str], only: list[str]) -> list[str]:
    """The settings to run."""
    return [name for name in settings if not only or name in only]


def write(out: Path, study: str, content: dict[str, Any], text: str) -> None:
    """Keep a study's figures, and its table for people.

    Args:
        out: folder.
        study: its name, without an ending.
        content: meta, table, findings and runs.
        text: the table.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{study}.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / f"{study}.md").write_text(text)
    print(text)
