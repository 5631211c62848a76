"""What all training verbs do: check, prepare the run directory, open the data, train, report.

A training verb is a function from a `Job` and its own options to a `Method`; the decorator `trains` does the rest, and
gives it the options that all of them share. What text alone can refuse is refused before torch is imported.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, isclass, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdistill.errors import UserError, refuse_without_effect
from vitdistill.files import is_first_process
from vitdistill.models.names import LinearFeatures
from vitdistill.runs.directory import RunDirectory, plain
from vitdistill.signals import stop_now, stopping
from vitdistill.verbs.arguments import Flat, Pipelining, Student
from vitdistill.verbs.checks import check
from vitdistill.verbs.needs import Needs
from vitdistill.verbs.paths import absolute_paths
from vitdistill.verbs.signatures import documentation, options_for, options_of, signature_of

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource
    from vitdistill.methods.distillation import Distillation
    from vitdistill.methods.method import Method
    from vitdistill.models.families.video_vit import VideoViT
    from vitdistill.models.network import Network
    from vitdistill.models.teacher import Teacher
    from vitdistill.runs.read import Run
    from vitdistill.tasks.task import Task

log = logging.getLogger(__name__)


def trains(
    *bundles: type[Flat],
    labels: bool = True,
    needs: Iterable[Needs] = (),
    resolve: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    finish: "Callable[[Job, RunDirectory, dict[str, Any]], dict[str, Any]] | None" = None,
    **defaults: Any,
) -> Callable[[Callable[..., Any]], Callable[..., dict[str, Any]]]:
    """Make a training verb of a function that takes a `Job` and returns the method to train.

    Args:
        bundles: options that the verb takes and the job uses, such as `Clips`.
        labels: False where training ignores labels: any folder of images will do, and what needs labels is refused.
        needs: which options have an effect only beside others.
        resolve: checks the values further and returns those that it fills in, before they are recorded.
        finish: what the first process does after training, before the report; returns the content of run.json.
        defaults: of shared options, where they differ from those in `arguments.py`.

    Example:
        @trains(labels=False, epochs=800)
        def mae(job: Job, *, student: Student, **options: Any) -> "Method":
            return MAE(job.pretraining_student(student), **options)
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
        verb = function.__name__

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> dict[str, Any]:
            given = signature_of(verb).bind(*args, **kwargs).arguments
            values = {name: given.get(name, option.default) for name, option in options_for(verb, given).items()}
            check(verb, values, needs, labels=labels)
            values |= filled_in(values)
            with stopping():
                return _train(verb, function, values, labels=labels, finish=finish)

        def filled_in(values: dict[str, Any]) -> dict[str, Any]:
            """What is filled in before the values are recorded; paths are recorded absolute."""
            paths = absolute_paths(verb, values)
            return paths | ({} if resolve is None else resolve({**values, **paths}))

        def rebuild(run: "Run") -> "Method":
            """The method of a run, with its student as the run left it and all else as it began."""
            return _call(function, Job(verb, _recorded(verb, run), rebuilding=run))

        run.__signature__ = signature_of(verb)  # type: ignore[attr-defined]
        run.__doc__ = documentation(verb)
        run.rebuild = rebuild  # type: ignore[attr-defined]
        run.resolve = filled_in  # type: ignore[attr-defined]
        run.check = lambda values, later=(): check(verb, values, needs, labels=labels, later=later)  # type: ignore[attr-defined]
        run.open_data = lambda values: _opened(values, labels=labels)[0]  # type: ignore[attr-defined]
        return run

    return decorate


def _recorded(verb: str, run: "Run") -> dict[str, Any]:
    """The options of a run; its student is read from the run itself, and no data is opened."""
    from vitdistill.verbs.parser import parse_config

    options = options_of(verb)
    required = {name: str(run.path) for name, option in options.items() if option.default is Parameter.empty}
    return parse_config(verb, required | {name: run.config[name] for name in options if name in run.config})


def _train(
    verb: str, function: Callable[..., Any], values: dict[str, Any], *, labels: bool, finish: Callable[..., Any] | None
) -> dict[str, Any]:
    resume, overwrite = values["resume"], values["overwrite"]
    config = {name: plain(_named(value)) for name, value in values.items() if name not in ("resume", "overwrite")}
    config["data"] = _data_name(values["data"])
    run = RunDirectory.prepare(values["out"], verb, config, resume=resume, overwrite=overwrite)

    from vitdistill.data.order import seed_everything_at

    source, task = _opened(values, labels=labels)
    if resume:
        run.check_data(source)
    seed_everything_at(values["seed"], "initialisation")
    job = Job(verb, values, source, task)
    method = _call(function, job)

    from vitdistill.training.train import train
    from vitdistill.verbs.common import settings_of

    settings = settings_of(values, options_for(verb, values)["optim"].default)
    info = train(method, source, run, settings, resume=resume)
    if is_first_process():
        stop_now(f"stopped; the run is finished, but not its report: vitdistill report {run.path}")
        if finish is not None:
            finish(job, run, info)
        report = write_report(run)
        info = run.read_info()  # with the report among its files
        print(f"The run is in {run.path}" + (f", its report in {report}" if report else ""), file=sys.stderr)
    stop_now()
    return info


def _opened(values: dict[str, Any], *, labels: bool) -> "tuple[DataSource, Task | None]":
    """The data, and where there are labels the task on it, with the task's own group of options."""
    from vitdistill.data.open import open_source
    from vitdistill.tasks import files_of, task_by_its_looks, task_class

    if not labels:
        return open_source(values["data"], labels=False), None
    name = values.get("task", "classification")
    group = files_of(name)
    files = None if group is None else values[group]
    try:
        return task_class(name).open(values["data"], augment=values["augment"], files=files)
    except UserError as error:
        other = task_by_its_looks(values["data"])
        if other is None or other == name:
            raise
        raise UserError(str(error), remedy=f"It looks like data of --task {other}") from error


def _named(value: Any) -> Any:
    """Networks given in Python appear in the configuration by their class."""
    return f"<{type(value).__name__}>" if hasattr(value, "state_dict") else value


def _data_name(data: Any) -> str:
    """Data in the configuration: what the user wrote, the name of a source, or the classes of data sets."""
    from vitdistill.data.open import absolute_data
    from vitdistill.data.source import DataSource

    if isinstance(data, str | Path):
        return absolute_data(str(data))
    if isinstance(data, DataSource):
        return data.name
    if isinstance(data, Mapping):
        data = tuple(data.values())
    several = data if isinstance(data, tuple | list) and len(data) == 2 else (data,)
    return f"<{', '.join(type(one).__name__ for one in several)}>"


def write_report(run: RunDirectory) -> Path | None:
    """Write report.html into a finished run; what goes wrong is a warning, and there is no path then."""
    try:
        from vitdistill.reporting.page import write_report

        return write_report([run.path], run.path / "report.html")
    except Exception as error:  # the run itself is safe; a picture must not fail it
        log.warning("The report could not be written: %s", error)
        return None


def _call(function: Callable[..., Any], job: "Job") -> "Method":
    """Call a verb with the values of its own options, its bundles put together."""
    arguments: dict[str, Any] = {}
    own = list(signature(function).parameters.values())[1:]
    rest = dict(job.values)
    for parameter in own:
        if parameter.kind is Parameter.VAR_KEYWORD:
            handed_on = {name for name, option in options_of(job.verb).items() if option.handed_on}
            arguments |= {name: job.values[name] for name in handed_on}
        elif isclass(parameter.annotation) and issubclass(parameter.annotation, Flat):
            bundle = parameter.annotation
            arguments[parameter.name] = bundle(**{field.name: rest[field.name] for field in fields(bundle)})  # type: ignore[arg-type]
        else:
            arguments[parameter.name] = rest[parameter.name]
    return function(job, **arguments)


@dataclass(frozen=True)
class Job:
    """One training run as its verb sees it.

    Attributes:
        verb: its name.
        values: of all options, by name.
        source: the data; None where a finished run's method is built again.
        labelled: what its labels mean; None where they are ignored.
        rebuilding: the run whose method is built again: its student is then the run's, and nothing is trained.
    """

    verb: str
    values: dict[str, Any]
    source: "DataSource | None" = None
    labelled: "Task | None" = None
    rebuilding: "Run | None" = None

    @property
    def data(self) -> "DataSource":
        assert self.source is not None, "a run that is rebuilt opens no data"
        return self.source

    @property
    def task(self) -> "Task":
        """What labels mean."""
        assert self.labelled is not None, "training without labels has no task, and a run that is rebuilt no data"
        return self.labelled

    def task_of(self, network: "Network") -> "Task":
        """The task; for a run that is rebuilt, with the network's classes and without data."""
        from vitdistill.tasks import task_class

        if self.labelled is not None:
            return self.labelled
        return task_class(self.values.get("task", "classification")).of(network, smoothing=self.smoothing)

    @property
    def smoothing(self) -> float:
        """Label smoothing of the augmentation recipe."""
        return self.values["augment"].resolved().smoothing

    def student(self, student: Student, **changes: Any) -> "Network":
        """The network to train, with a head for the task."""
        from vitdistill.verbs.common import make_student, refuse_kind

        if self.rebuilding is not None:
            return self.rebuilding.student()
        options = {**_options(student), **changes}
        options["args"] = self.with_frames(student.student, options["args"], "student_args")
        task = self.labelled if options.get("classes") != 0 else None
        try:
            network = make_student(student.student, self.data, keeps=None if task is None else task.keeps, **options)
        except UserError:
            refuse_kind(student.student, options["args"], self.values.get("task", "classification"), self.data)
            raise
        return network if task is None else task.student(network)

    def linear_student(self, student: Student, features: LinearFeatures) -> "Network":
        """A frozen body with a classifier for the data's classes, of which the classifier alone will be trained."""
        from vitdistill.models.families.linear_only import linear_only
        from vitdistill.verbs.common import refuse_classes

        if self.rebuilding is not None:
            return self.rebuilding.student()
        classes, args = len(self.data.classes), dict(student.student_args or {})
        refuse_classes(args, "student_args", classes)
        args.pop("num_classes", None)
        return linear_only(self.student(student, args=args or None, drop_path=0.0, classes=0), classes, features)

    def pretraining_student(self, student: Student, **changes: Any) -> "Network":
        """A network over images to train without labels; no classifier, and drop path only as the verb sets it."""
        from vitdistill.verbs.pretraining import make_pretraining_student

        if self.rebuilding is not None:
            return self.rebuilding.student()
        options = {name: value for name, value in _options(student).items() if name != "drop_path"}
        return make_pretraining_student(student.student, self.data, **{**options, **changes})

    def video_student(self, student: Student, **changes: Any) -> "VideoViT":
        """A network over clips to train without labels; it has no classifier."""
        from vitdistill.models.families.video_vit import check_video
        from vitdistill.verbs.pretraining import make_video_student

        if self.rebuilding is not None:
            return check_video(self.rebuilding.student(), "student")
        options = {**_options(student), **changes}
        options["args"] = self.with_frames(student.student, options["args"], "student_args")
        return make_video_student(student.student, self.data, **options)

    def clip_or_image_student(self, student: Student, *, images: bool) -> "Network":
        """A network over clips with positions of space and time; over images where those are the data.

        Args:
            student: the options.
            images: whether data of images will do; videos are seen as clips all the same.
        """
        if self.rebuilding is not None:
            return self.rebuilding.student()
        if not images or self.data.train.has_frames:
            return self.video_student(student, positions="sincos_3d")
        self.refuse("frames", why="on images")
        by_name = isinstance(student.student, str)  # a module object brings its own drop path
        drop_path = {"drop_path_rate": self.values["drop_path"]} if by_name else {}
        return self.pretraining_student(student, args={**drop_path, **(student.student_args or {})} or None)

    def teacher(
        self,
        spec: Any,
        student: "Network",
        *,
        args: Any = None,
        text: str | None = None,
        classes: bool = False,
        check: "Callable[[Teacher], object] | None" = None,
        merge: int | str | None = None,
    ) -> "Teacher":
        """A frozen network that takes the student's inputs, in the number format that `--teacher_dtype` names.

        Args:
            spec: as `student` is given; a bare timm name downloads its weights.
            student: the network to train.
            args: further arguments of the architecture.
            text: file with one text embedding per class, of a CLIP teacher.
            classes: whether its classes must be those of the data.
            check: refuses what its architecture alone shows to be of no use, before its weights are downloaded.
            merge: tokens that each of its blocks merges; None leaves it whole.
        """
        from vitdistill.verbs.common import make_teacher

        return make_teacher(
            spec,
            self.source if classes else None,
            student,
            args=args,
            text_embeddings=text,
            dtype=self.values["teacher_dtype"],
            trainer=self.values["trainer"],
            check=check,
            merge=merge,
        )

    def pipelined(self, method: "Distillation", options: Pipelining) -> "Method":
        """The method with steps in parts, where it is trained."""
        from vitdistill.methods.pipelining.lanes import check_devices
        from vitdistill.methods.pipelining.pipeline import pipelined
        from vitdistill.training.precision import trains_on_gpu

        if self.rebuilding is not None:
            return method  # perhaps on a machine with other devices
        if options.pipeline > 1:
            check_devices("cuda" if trains_on_gpu(self.values["trainer"]) else "cpu", options.teacher_device)
        return pipelined(method, options.pipeline, teacher_device=options.teacher_device)

    def with_frames(self, spec: Any, args: dict[str, Any] | None, option: str) -> dict[str, Any] | None:
        """Arguments of an architecture with `--frames` among them, where the verb has that option and it was given.

        Raises:
            UserError: when they have other frames, or the network takes none.
        """
        from vitdistill.models.names import VIDEO
        from vitdistill.models.presets import BUNDLED, PRESETS

        frames = self.values.get("frames")
        if frames is None:
            return args
        if not isinstance(spec, str):
            self.refuse("frames", why="on a module object, which brings its own")
        elif not (spec.startswith(VIDEO) or spec in (*PRESETS, *BUNDLED) or ":" in spec or Path(spec).is_dir()):
            self.refuse("frames", why=f"on a network over images; {spec} is one")
        if (args or {}).get("frames", frames) != frames:
            both = f"{frames} and {(args or {})['frames']}"
            raise UserError(f"--frames and --{option}.frames must agree", both, "Give --frames alone")
        return {**(args or {}), "frames": frames}

    def refuse(self, *names: str, why: str) -> None:
        """Refuse options that were given though nothing will read them, now that the networks and the data are known.

        Raises:
            UserError: such as "--frames has no effect on images".
        """
        defaults = {name: option.default for name, option in options_for(self.verb, self.values).items()}
        refuse_without_effect(self.values, defaults, names, why)


def _options(student: Student) -> dict[str, Any]:
    """A bundle's fields as keywords of the functions that make students."""
    found = {field.name: getattr(student, field.name) for field in fields(student)}
    del found["student"]
    return {"args": found.pop("student_args"), **found}
