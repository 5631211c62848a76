"""`vitdistill sweep`: settings x seeds out of one file, several at once; resumes, and ends in one report."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from vitdistill.errors import UserError, near
from vitdistill.files import check_path
from vitdistill.signals import asked, stop_after, stop_now, stopping
from vitdistill.verbs.judges import Question, ask, question, unanswered
from vitdistill.verbs.steps import (
    DataNow,
    State,
    check_place,
    folder_of_runs,
    parsed,
    references,
    resolved,
    run_step,
    state_of,
)
from vitdistill.verbs.study import Before, Study, check_seeds, read_study
from vitdistill.verbs.sweep_results import Results, command_of
from vitdistill.verbs.table import verb
from vitdistill.verbs.workers import Workers

BEFORE, LOGS = "before", "logs"
PAUSE = 0.2  # seconds between two looks at whether the sweep was asked to stop


def sweep(
    study: str,
    *,
    out: str,
    jobs: int = 1,
    seeds: int | None = None,
    only: list[str] | None = None,
    override: dict[str, Any] | None = None,
    report: str | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Run every setting of a study with every seed, and say what the differences between them are worth.

    Calling it again skips what is finished and resumes what is not, exactly. A run that fails does not stop the others.

    Args:
        study: YAML file with a verb, its settings, and what is claimed of them.
        out: folder for the run directories, `SETTING/seed-K`, and for results.csv, summary.md and report.html.
        jobs: runs at once, each in a process with one thread.
        seeds: how many, from 0; by default what the study says.
        only: settings to run, such as `--only half whole`; all by default. Tables have whatever is finished.
        override: options of all runs whose verb has them, over those of the study, e.g. `--override.epochs 2`.
        report: markdown file to which the summary is written as well, with figures beside it as json and svg.
        overwrite: run the settings anew; with `--only`, what is made before them stays.
        json: print one JSON object in place of the table.

    Returns:
        Under `settings` the mean and spread of every column, under `findings` what became of each claim, under `runs` a
        row per run, and under `failed` what went wrong.

    Raises:
        UserError: before anything is run, for an unknown option, verb, setting or column, or when a run that is
            finished or to be resumed was run with other options or on other data than now.
    """
    found = read_study(study, override)
    if jobs < 1:
        raise UserError("--jobs must be at least 1", jobs)
    if seeds is not None:
        check_seeds("--seeds", seeds)
        found = replace(found, seeds=seeds)
    for name in only or ():
        known = [setting.name for setting in found.settings]
        if name not in known:
            raise UserError("--only names settings of the study", repr(name), near(name, known))
    folder = folder_of_runs(out)
    if report is not None:
        check_report(report)
    tasks = find_states(plan(found, folder, only), overwrite=overwrite, only=only)
    results = Results(found, command_of(study, seeds, only, override), folder)
    with stopping():
        failed = _run_all(tasks, jobs, results, folder, quiet=json)
        written = results.write(report, failed)
        results.show(written, as_json=json)
        left = sum(not task.done for task in tasks)
        stop_now(f"stopped; {left} of {len(tasks)} runs are left. The same command goes on with them")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(tasks)} runs failed",
            "; ".join(f"{label}: {words}" for label, words in failed.items()),
            f"What they said is in {folder / LOGS}; the same command runs them again",
        )
    return written


def check_report(report: str) -> None:
    """Refuse a place for the summary to which it could not be written when all is run.

    Raises:
        UserError: naming it.
    """
    check_path(report)
    path = Path(report)
    if path.suffix != ".md" or path.is_dir():
        raise UserError("--report must be a markdown file", report, "For example benchmarks/results/study.md")
    check_place("--report", path)


@dataclass
class Task:
    """One run of a sweep.

    Attributes:
        label: what it is called: "half, seed 1".
        kind: the verb.
        values: of all its options.
        folder: the run directory.
        needs: run directories that must be finished before.
        questions: what is asked of it when it is finished.
        setting: whose run it is; None for what is made before.
        seed: with which it is run.
        once: whether it is the same run for all seeds.
        last: whether its score is the setting's.
        state: what an earlier call has left of it.
        pending: what it has not been asked yet.
        done: whether nothing is left to do.
    """

    label: str
    kind: str
    values: dict[str, Any]
    folder: Path
    needs: frozenset[Path]
    questions: tuple[Question, ...] = ()
    setting: str | None = None
    seed: int = 0
    once: bool = False
    last: bool = True
    state: State = "new"
    pending: tuple[Question, ...] = ()
    done: bool = False


# --- what is to be run -------------------------------------------------------------------------------------------


def plan(study: Study, folder: Path, only: Iterable[str] | None = None) -> list[Task]:
    """All runs, seeds outermost: an interruption leaves whole comparisons.

    Every option is parsed here, once per setting: of other seeds only paths and the seed itself differ.

    Raises:
        UserError: for an option that a verb does not have, or a value that it does not take.
    """
    chosen = [setting for setting in study.settings if not only or setting.name in set(only)]
    templates = [_before_task(name, each, study, folder) for name, each in study.before.items()]
    templates += [task for setting in chosen for task in _setting_tasks(study, setting.name, folder)]
    tasks: dict[Path, Task] = {}
    for seed in range(study.seeds):
        for template in templates:
            task = template if template.once else _with_seed(template, seed)
            tasks.setdefault(task.folder, task)
    return list(tasks.values())


def place_before(study: Study, folder: Path, name: str, seed: int) -> Path:
    """The run directory of what is made before."""
    place = folder / BEFORE / name
    return place if study.before[name].once else place / f"seed-{seed}"


def _before_task(name: str, each: Before, study: Study, folder: Path) -> Task:
    places = {other: place_before(study, folder, other, 0) for other in study.before}
    label = f"before {name}"
    own = places[name]
    options = {"seed": 0, **resolved(each.step.options, places.__getitem__), "out": str(own)}
    needs = frozenset(places[other] for other in references(each.step.options))
    values = _checked(label, each.step.verb, options, needs)
    return Task(label, each.step.verb, values, own, needs, once=each.once, last=False)


def _setting_tasks(study: Study, name: str, folder: Path) -> list[Task]:
    """The runs of a setting with the first seed."""
    setting = study.setting(name)
    root = folder / setting.folder / "seed-0"
    places = {other: place_before(study, folder, other, 0) for other in study.before}
    last = setting.steps[-1].name
    tasks = []
    for step in setting.steps:
        own = places[step.name] = root / step.name if step.name else root
        where = f"Setting {name}" + (f", step {step.name}" if step.name else "")
        options = {**resolved(step.options, places.__getitem__), "out": str(own), "seed": 0}
        needs = frozenset(places[other] for other in references(step.options))
        values = _checked(where, step.verb, options, needs)
        asked_of = [judge for judge in study.judges if (judge.of or last) == step.name]
        questions = tuple(
            question(judge.name, judge.verb, resolved(judge.options, places.__getitem__), own) for judge in asked_of
        )
        needs |= {places[other] for judge in asked_of for other in references(judge.options)}
        label = name + (f", {step.name}" if step.name else "")
        tasks.append(Task(label, step.verb, values, own, needs, questions, name, last=step.name == last))
    return tasks


def _checked(where: str, kind: str, options: Mapping[str, Any], needs: Iterable[Path]) -> dict[str, Any]:
    """The values of a verb's options; all is refused that text alone shows to be wrong."""
    values = parsed(where, kind, options)
    try:
        verb(kind).check(values, later={str(place) for place in needs})  # type: ignore[attr-defined]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return values


def _with_seed(task: Task, seed: int) -> Task:
    """A task of the first seed with another one, in folders of its own."""
    moved = {str(task.folder): str(_seeded(task.folder, seed))}
    moved |= {str(place): str(_seeded(place, seed)) for place in task.needs}
    return replace(
        task,
        label=f"{task.label}, seed {seed}",
        values={**_moved(task.values, moved), "seed": seed},
        folder=_seeded(task.folder, seed),
        needs=frozenset(_seeded(place, seed) for place in task.needs),
        questions=tuple(each._replace(values=_moved(each.values, moved)) for each in task.questions),
        seed=seed,
    )


def _seeded(place: Path, seed: int) -> Path:
    """A run directory of the first seed as that of another one; what is made once stays."""
    if place.name == "seed-0":
        return place.with_name(f"seed-{seed}")
    return place.parent.with_name(f"seed-{seed}") / place.name if place.parent.name == "seed-0" else place


def _moved(value: Any, moved: Mapping[str, str]) -> Any:
    """Values with other paths in place of some."""
    if isinstance(value, str):
        for old, new in moved.items():
            if value == old or value.startswith(f"{old}/"):
                return new + value[len(old) :]
        return value
    if isinstance(value, dict):
        return {key: _moved(part, moved) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(part, moved) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        texts = {each.name: getattr(value, each.name) for each in fields(value)}
        changed = {name: new for name, old in texts.items() if (new := _moved(old, moved)) != old}
        return replace(value, **changed) if changed else value
    return value


def find_states(tasks: list[Task], *, overwrite: bool, only: Iterable[str] | None) -> list[Task]:
    """Note what earlier calls have left.

    Returns:
        The tasks without those made before that nothing needs, or no more.

    Raises:
        UserError: when a run was made with other options, or on other data.
    """
    now = DataNow()
    for task in tasks:
        anew = overwrite and not (only and task.setting is None)
        task.state = state_of(task.folder, task.kind, task.values, now) if not anew else "new"
        if anew and task.folder.exists():
            task.state = "again"
        task.pending = task.questions if task.state != "finished" else tuple(unanswered(task.folder, task.questions))
        task.done = task.state == "finished" and not task.pending
    needed: list[Task] = []
    for task in reversed(tasks):  # what is needed stands before what needs it
        if task.setting is not None or task.done or any(task.folder in each.needs for each in needed if not each.done):
            needed.insert(0, task)
    return needed


# --- running -----------------------------------------------------------------------------------------------------


def work(task: Task) -> None:
    """Run a task, or what is left of it; in a worker."""
    if task.state != "finished":
        run_step(task.kind, task.values, resume=task.state == "resume", overwrite=task.state == "again")
    ask(task.folder, list(task.pending))


def _run_all(tasks: list[Task], jobs: int, results: Results, folder: Path, *, quiet: bool) -> dict[str, str]:
    """Run what is not done, several at once; what failed, by label."""
    todo = [task for task in tasks if not task.done]
    finished = {task.folder for task in tasks if task.done}
    failed: dict[str, str] = {}
    if not quiet:
        print(_opening(tasks, todo, jobs), flush=True)
    clock = _Clock(jobs)
    total, told = len(todo), False
    stop_after("the runs under way have written their checkpoints")
    with Workers(min(jobs, max(1, len(todo))), work) as workers:
        running: dict[str, Task] = {}
        while running or (todo and not asked()):
            for task in [task for task in todo if task.needs <= finished]:
                if asked() or workers.free <= 0:
                    break
                todo.remove(task)
                running[task.label] = task
                clock.start(task.label)
                name = "-".join(part.replace("/", "-") for part in task.folder.relative_to(folder).parts)
                workers.submit(task.label, task, folder / LOGS / f"{name}.log")
            if not running:
                break  # what is left needs what failed
            if asked() and not told:
                workers.stop()
                told = True
            for outcome in workers.wait(PAUSE):
                task = running.pop(outcome.key)
                if outcome.stopped:
                    continue
                seconds = clock.end(task)
                if outcome.problem is not None:
                    failed[task.label] = outcome.problem
                    for lost in _lost(task, todo):
                        failed[lost.label] = f"not run, as {task.label} failed"
                        todo.remove(lost)
                else:
                    task.done, task.state = True, "finished"
                    finished.add(task.folder)
                    if task.setting is not None and task.last:
                        results.check(task.setting, task.seed)
                if not quiet:
                    count = total - len(todo) - len(running)
                    scored = task.setting is not None and task.last and not outcome.problem
                    words = f"failed: {outcome.problem}" if outcome.problem else "done"
                    words = results.words(str(task.setting), task.seed) if scored else words
                    print(
                        f"[{count}/{total}] {task.label}: {words} ({seconds:.0f} s){clock.left(todo, running)}",
                        flush=True,
                    )
    return failed


def _opening(tasks: list[Task], todo: list[Task], jobs: int) -> str:
    resumed = sum(task.state == "resume" for task in todo)
    before = len(tasks) - len(todo)
    words = f"{len(todo)} run{'s' if len(todo) != 1 else ''} to do, {min(jobs, max(1, len(todo)))} at once"
    words += f"; {before} finished before" if before else ""
    return words + (f"; {resumed} resumed" if resumed else "")


def _lost(failed: Task, todo: list[Task]) -> list[Task]:
    """What cannot be run since it builds on what failed."""
    gone = {failed.folder}
    found = []
    for task in todo:  # what is needed stands before what needs it
        if task.needs & gone:
            gone.add(task.folder)
            found.append(task)
    return found


class _Clock:
    """How long runs take, and how long all that are left will."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._started: dict[str, float] = {}
        self._took: dict[str, list[float]] = {}

    def start(self, label: str) -> None:
        self._started[label] = time.monotonic()

    def end(self, task: Task) -> float:
        seconds = time.monotonic() - self._started.pop(task.label)
        self._took.setdefault(_sort(task), []).append(seconds)
        return seconds

    def left(self, todo: list[Task], running: Mapping[str, Task]) -> str:
        """How many are left, and about how long they will take, by runs of their kind or else of any."""
        count = len(todo) + len(running)
        if not count:
            return ""
        overall = mean(seconds for several in self._took.values() for seconds in several)
        expected = {task.label: mean(self._took.get(_sort(task), [overall])) for task in (*todo, *running.values())}
        since = sum(min(time.monotonic() - self._started[label], expected[label]) for label in running)
        minutes = (sum(expected.values()) - since) / self.jobs / 60
        return f"; {count} left, about {minutes:.0f} min" if minutes >= 1 else f"; {count} left, under a minute"


def _sort(task: Task) -> str:
    """Runs that take alike: of one setting and step, or made before under one name."""
    return task.label.replace(f", seed {task.seed}", "")
