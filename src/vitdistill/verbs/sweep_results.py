"""What a sweep has found: a row per run, means and spreads per setting, claims; written and printed."""

import csv
import io
import shlex
from pathlib import Path
from statistics import mean
from typing import Any

from vitdistill.errors import UserError, near
from vitdistill.files import write_atomically
from vitdistill.runs.claims import judged
from vitdistill.runs.columns import heading, row_of, score_of
from vitdistill.runs.compare import spread
from vitdistill.runs.read import Run, flatten, read_run
from vitdistill.verbs.judges import answers
from vitdistill.verbs.study import Setting, Study
from vitdistill.verbs.task_metrics import metrics_of_tasks, scores_of_tasks


class Results:
    """The finished runs of a study in a folder."""

    def __init__(self, study: Study, command: str, folder: Path) -> None:
        """
        Args:
            study: with as many seeds as are asked for.
            command: how the sweep was called, without where it writes.
            folder: of the sweep.
        """
        self.study, self.command, self.folder = study, command, folder

    def check(self, name: str, seed: int) -> None:
        """Refuse a study whose score no run has, as soon as one is there to tell.

        Raises:
            UserError: naming the columns that there are.
        """
        score = self.study.score
        row = self.row(self.study.setting(name), seed)
        if score is not None and row is not None and score not in row:
            known = [name for name in row if name not in ("setting", "seed", "run")]
            remedy = near(score, known) or f"They have {', '.join(known)}"
            raise UserError("score must be a column of the runs", repr(score), remedy)

    def words(self, name: str, seed: int) -> str:
        """The score of a setting's run with a seed."""
        row = self.row(self.study.setting(name), seed)
        score = None if row is None else self.study.score or score_of(read_run(self.folder / row["run"]))
        return f"{score} {row[score]:.4g}" if row is not None and score in row else "done"

    def row(self, setting: Setting, seed: int) -> dict[str, Any] | None:
        """The columns of a setting's run with a seed, those of its earlier steps under their names; None where it is
        not finished."""
        root = self.folder / setting.folder / f"seed-{seed}"
        row: dict[str, Any] = {"setting": setting.name, "seed": seed}
        *earlier, last = [root / step.name if step.name else root for step in setting.steps]
        if _finished(last) is None:
            return None
        seconds = 0.0
        for place in (*earlier, last):
            run = _finished(place)
            own = {} if run is None else row_of(run)
            seconds += own.get("seconds", 0.0)
            row |= own if place == last else {f"{place.name}/{name}": value for name, value in own.items()}
            row |= answers(place)
        return {**row, "seconds": seconds, "run": last.relative_to(self.folder).as_posix()}

    def write(self, report: str | None, failed: dict[str, str]) -> dict[str, Any]:
        """Write results.csv, summary.md, summary.json and report.html.

        Args:
            report: another place for the summary and its figure.
            failed: what went wrong, by run.

        Returns:
            What summary.json says.
        """
        import json

        from vitdistill.reporting.sweep import figure, markdown, page

        content, runs = self.content(failed)
        if not content["runs"]:
            return content
        text = json.dumps(content, indent=1) + "\n"
        _write(self.folder / "results.csv", _csv(content["runs"]))
        _write(self.folder / "summary.json", text)
        _write(self.folder / "summary.md", markdown(content))
        _write(self.folder / "report.html", page(content, runs))
        if report is not None:
            place = Path(report)
            _write(place, markdown(content, figure=place.with_suffix(".svg").name))
            _write(place.with_suffix(".json"), text)
            _write(place.with_suffix(".svg"), figure(content))
        return content

    def content(self, failed: dict[str, str]) -> tuple[dict[str, Any], dict[str, list[Run]]]:
        """All that the pages say, and the runs by setting."""
        rows: list[dict[str, Any]] = []
        runs: dict[str, list[Run]] = {}
        for setting in self.study.settings:
            for seed in range(self.study.seeds):
                row = self.row(setting, seed)
                if row is not None:
                    rows.append(row)
                    runs.setdefault(setting.name, []).append(read_run(self.folder / row["run"]))
        several = [run for members in runs.values() for run in members]
        scores = {score_of(run) for run in several}
        score = self.study.score or (scores.pop() if len(scores) == 1 else "val/loss")
        # A judge's metrics need not be the run's: `knn` of a run without labels.
        metrics = metrics_of_tasks() | {name: words for run in several for name, words in run.columns.items()}
        columns = dict.fromkeys(name for row in rows for name in row if name not in ("setting", "seed", "run"))
        by_setting = {name: [row for row in rows if row["setting"] == name] for name in runs}
        settings = {
            name: {"seeds": len(own), "columns": {column: _over_seeds(own, column) for column in columns}}
            for name, own in by_setting.items()
        }
        values = {
            name: {column: {row["seed"]: row[column] for row in own if column in row} for column in columns}
            for name, own in by_setting.items()
        }
        findings = judged(self.study.claims, score, values)
        plot = self.study.plot
        content = {
            "title": self.study.title,
            "about": self.study.about,
            "command": self.command,
            "score": score,
            "shown": self._shown(score, settings),
            "headings": {column: heading(column, metrics) for column in columns},
            "plot": None if plot is None else {"x": plot.x, "y": plot.y, "lines": plot.lines},
            "seeds": self.study.seeds,
            "hardware": several[0].info.get("hardware") or {} if several else {},
            "versions": several[0].info.get("versions") or {} if several else {},
            "data": several[0].get("data.name") if several else None,
            "samples": [several[0].get("data.train_images"), several[0].get("data.val_images")] if several else None,
            "seconds": sum(row["seconds"] for row in rows),
            "missing": [setting.name for setting in self.study.settings if setting.name not in runs],
            "settings": settings,
            "findings": [
                {
                    "claim": each.claim.text,
                    "better": each.claim.better,
                    "worse": each.claim.worse,
                    "kind": each.claim.kind,
                    "margin": each.claim.margin,
                    "column": each.column,
                    "gain": _plain(each.gain),
                    "half_width": _plain(each.half_width),
                    "seeds": each.seeds,
                    "verdict": each.verdict,
                    "corrected": each.corrected,
                }
                for each in findings
            ],
            "runs": rows,
            "failed": failed,
        }
        return content, runs

    def _shown(self, score: str, settings: dict[str, Any]) -> list[str]:
        """Columns of the table: the score and what the study names, or else scores of the judges and what differs."""
        known = list(next(iter(settings.values()))["columns"]) if settings else []
        if self.study.columns:
            wanted = list(self.study.columns)
        else:
            asked = [_score_among(judge.name, known) for judge in self.study.judges]
            teacher = f"teacher/{score.rpartition('/')[2]}"
            plot = () if self.study.plot is None else (self.study.plot.x, self.study.plot.y)
            claimed = [claim.column for claim in self.study.claims]
            wanted = [each for each in (*claimed, *asked, *plot, teacher, "teacher_gmacs", "seconds") if each]
            differing = ("student_params", "kept")
            wanted += [c for c in differing if len({_mean(own["columns"].get(c)) for own in settings.values()}) > 1]
        return [column for column in dict.fromkeys((score, *wanted)) if column in known]

    def show(self, content: dict[str, Any], *, as_json: bool) -> None:
        """Print what was found."""
        import json

        if as_json:
            print(json.dumps(content))
            return
        if not content["runs"]:
            print("No run is finished")
            return
        from rich.console import Console
        from rich.table import Table

        from vitdistill.reporting.sweep import cells

        table = Table("setting", "seeds", *(content["headings"][column] for column in content["shown"]))
        for name, own in content["settings"].items():
            table.add_row(name, str(own["seeds"]), *cells(content, own))
        console = Console(width=None if Console().is_terminal else 140)
        console.print(table)
        for each in content["findings"]:
            console.print(f"{each['verdict']}: {each['claim']}", markup=False, highlight=False)
        print(f"wrote {self.folder / 'report.html'}, summary.md and results.csv")


def command_of(study: str, seeds: int | None, only: list[str] | None, override: dict[str, Any] | None) -> str:
    """How a sweep is called again, without where it writes and how many runs there are at once."""
    path = Path(study)
    if path.is_absolute():
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
    words = ["vitdistill", "sweep", path.as_posix()]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    words += ["--only", *only] if only else []
    words += [word for key, value in flatten(override or {}).items() for word in (f"--override.{key}", str(value))]
    return shlex.join(words)


def _score_among(judge: str, known: list[str]) -> str | None:
    """The number of a judge that says most: its score, else its first."""
    own = [column for column in known if column.startswith(f"{judge}/")]
    scores = [column for column in own if column.rpartition("/")[2] in scores_of_tasks()]
    return next(iter([*scores, *own]), None)


def _finished(place: Path) -> Run | None:
    if not (place / "run.json").is_file():
        return None
    run = read_run(place)
    return run if run.status == "finished" else None


def _over_seeds(rows: list[dict[str, Any]], column: str) -> dict[str, Any] | None:
    """Mean and sample standard deviation of the runs that have a column; no deviation of a single one."""
    values = [row[column] for row in rows if column in row]
    if not values:
        return None
    several = spread(values)
    return {"mean": mean(values), "sd": None if several is None else several.std, "n": len(values)}


def _mean(found: dict[str, Any] | None) -> float | None:
    return None if found is None else round(found["mean"], 9)


def _plain(value: float) -> float | None:
    return value if abs(value) < float("inf") else None  # JSON knows no infinity


def _csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
