"""Where the numbers of every epoch go besides metrics.csv: TensorBoard, Weights & Biases, MLflow.

This file is imported to print help texts, so it imports no torch. TensorBoard is written by the trainer. Services are
Lightning's loggers, driven here and not by the trainer: one that fails must not cost the training, and what a run has
cost is known only when the trainer is done.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vitdistill.errors import UserError, error_words, near
from vitdistill.files import is_first_process

if TYPE_CHECKING:
    from vitdistill.runs.directory import RunDirectory

log = logging.getLogger(__name__)

DEFAULT = "tensorboard"
# Names that `--loggers` takes, and the package that each needs beyond those that are always there.
PACKAGES = {"tensorboard": None, "csv": None, "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "vitdistill"  # where the libraries' own variables name none
FINAL = ("accuracy", "cost")  # of run.json, what is logged at the end


def logger_names(text: str) -> tuple[str, ...]:
    """The loggers that a text names, each once.

    Raises:
        UserError: for an unknown name.

    Example:
        >>> logger_names("tensorboard,wandb")
        ('tensorboard', 'wandb')
    """
    names = [name.strip() for name in re.split(r"[,+]", text)]
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"loggers must be some of {', '.join(PACKAGES)}", repr(name), near(name, PACKAGES))
    return tuple(dict.fromkeys(names))


def check_loggers(text: str) -> None:
    """Refuse unknown names.

    Raises:
        UserError: as `logger_names`.
    """
    logger_names(text)


def require_loggers(text: str) -> None:
    """Refuse loggers whose packages are not installed.

    Raises:
        UserError: naming the extra to install.
    """
    for name in logger_names(text):
        package = PACKAGES[name]
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"--loggers {name} needs {package}",
                f"no module '{package}'",
                "Install it with pip install 'vitdistill[loggers]'",
            )


class Services:
    """The services that follow one run: each a run of its own there, which a resumed run continues.

    Only the first process has any. Where they log to is set by the libraries' own variables: WANDB_PROJECT,
    WANDB_ENTITY and WANDB_MODE; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
    """

    def __init__(self, names: tuple[Any, ...], run: "RunDirectory") -> None:
        """
        Args:
            names: of loggers, those of services among them.
            run: whose numbers are logged.

        Raises:
            UserError: when a service would not take them, as far as can be known before the run begins.
        """
        self.run = run
        self._wanted = [name for name in _OPEN if name in names] if is_first_process() else []
        self._open: dict[str, _Service] = {}
        if "wandb" in self._wanted:
            _check_wandb()

    def start(self, *, resume: bool) -> None:
        """Begin a run at every service, with the configuration as hyperparameters, or continue it.

        Args:
            resume: whether to continue the runs that run.json names.

        Raises:
            UserError: when a service cannot be had.
        """
        if not self._wanted:
            return  # in other processes, which may be here before the first has written anything
        from vitdistill.runs.read import read_run

        config = read_run(self.run.path).config
        known = self.run.read_info().get("loggers") or {} if resume else {}
        for name in self._wanted:
            try:
                service = self._open[name] = _OPEN[name](self.run, known.get(name))
                if name not in known:  # those of an earlier run may not be changed
                    service.logger.log_hyperparams(config)
            except Exception as error:  # each library has its own
                words = error_words(error).rstrip(".")
                self.finish("failed")
                self.run.update(status="failed")
                raise UserError(f"--loggers {name} must be usable", words, _REMEDY[name]) from error
        if self._open:
            self.run.update(loggers={**known, **{name: service.id for name, service in self._open.items()}})

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of an epoch."""
        numbers = {name: value for name, value in row.items() if name != "step"}
        self._each(lambda service: service.logger.log_metrics(numbers, int(row["step"])))

    def finish(self, status: str, step: int = 0) -> None:
        """Log the accuracy and the cost of a finished run, and end the runs at the services.

        Args:
            status: finished, interrupted or failed.
            step: the last one.
        """
        if status == "finished" and self._open:
            info = self.run.read_info()
            final = {f"{key}/{name}": value for key in FINAL for name, value in (info.get(key) or {}).items()}
            numbers = {name: float(value) for name, value in final.items() if isinstance(value, int | float)}
            self._each(lambda service: service.logger.log_metrics(numbers, step))
        self._each(lambda service: service.end(status))
        self._open = {}

    def _each(self, call: "Callable[[_Service], Any]") -> None:
        """Call every service; one that fails is left out from then on."""
        for name, service in list(self._open.items()):
            try:
                call(service)
            except Exception as error:  # a network that is down, a full quota
                log.warning("--loggers %s failed, so the rest is not logged there: %s", name, error_words(error))
                del self._open[name]


class _Service:
    """A run at a service: Lightning's logger, the run's identity there, and how it ends."""

    def __init__(self, logger: Any, id: str, end: Callable[[str], None]) -> None:
        self.logger, self.id, self.end = logger, id, end


def _check_wandb() -> None:
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("offline", "dryrun", "disabled") and wandb.run is None and wandb.api.api_key is None:
        raise UserError(
            "--loggers wandb needs an account",
            "no API key",
            "Log in with `wandb login`, or set WANDB_MODE=offline and upload later with `wandb sync`",
        )


def _wandb(run: "RunDirectory", known: str | None) -> _Service:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    already = wandb.run is not None  # in the user's own session, which is theirs to end
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    logger = WandbLogger(name=run.path.resolve().name, save_dir=run.path, project=project, id=known or uuid4().hex[:8])
    experiment = logger.experiment
    run.wrote("wandb")

    def end(status: str) -> None:
        if not already:
            experiment.finish(exit_code=0 if status == "finished" else 1)

    return _Service(logger, str(experiment.id), end)


def _mlflow(run: "RunDirectory", known: str | None) -> _Service:
    import mlflow
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=run.path.resolve().name,
        # Lightning's own default is the variable's value when it was imported.
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or mlflow.get_tracking_uri(),
        run_id=known,
    )
    identity = str(logger.run_id)
    if known is not None:
        logger.experiment.update_run(identity, status="RUNNING")

    def end(status: str) -> None:
        words = {"finished": "FINISHED", "interrupted": "KILLED"}
        logger.experiment.set_terminated(identity, words.get(status, "FAILED"))

    return _Service(logger, identity, end)


_OPEN: dict[str, Callable[["RunDirectory", str | None], _Service]] = {"wandb": _wandb, "mlflow": _mlflow}
_REMEDY = {
    "wandb": "Set WANDB_MODE=offline, or look at WANDB_PROJECT and WANDB_ENTITY",
    "mlflow": "Set MLFLOW_TRACKING_URI, such as http://localhost:5000; a local database needs the whole of mlflow",
}
