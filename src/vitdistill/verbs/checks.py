"""What a training verb refuses before torch is imported: what the values of its options show by themselves."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from vitdistill.data.open import check_there
from vitdistill.errors import UserError, refuse_given, refuse_without_effect
from vitdistill.files import check_path
from vitdistill.methods.selection.amounts import amount_of
from vitdistill.models.names import check_model, check_model_there
from vitdistill.tasks import TASKS
from vitdistill.training.loggers import require_loggers
from vitdistill.training.settings import out_of_range, refuse_ours
from vitdistill.verbs.needs import Needs
from vitdistill.verbs.signatures import options_for, options_of


def check(
    verb: str, values: Mapping[str, Any], needs: Iterable[Needs], *, labels: bool, later: Collection[Any] = ()
) -> None:
    """Refuse what the values alone show to be wrong.

    Args:
        verb: whose options they are.
        values: of all options.
        needs: which options have an effect only beside others.
        labels: whether training uses labels.
        later: models and folders that are not there yet, but will be when the verb runs.

    Raises:
        UserError: with the option, the value and the remedy.
    """
    options = options_of(verb)
    for name, option in options.items():
        if is_dataclass(option.type) and not is_dataclass(values[name]):
            group = getattr(option.type, "__name__", "")
            raise UserError(f"{name} must be a vitdistill.{group}", f"a {type(values[name]).__name__}")
        if isinstance(values[name], str | int | float):
            for refuse in option.checks:
                refuse(values[name])
            if check_model in option.checks and values[name] not in later:
                check_model_there(values[name])
            if check_path in option.checks:
                _check_file(values[name], later)
    refuse_unused(verb, values, (*needs, *_of_tasks(values)))
    numbers = (values[name] for name in ("epochs", "batch_size", "optim", "loader", "snapshots"))
    if broken := out_of_range(*numbers):
        raise UserError("; ".join(broken))
    refuse_ours(values["trainer"] or {})
    require_loggers(values["loggers"])
    values["augment"].resolved()
    if not labels:
        _refuse_what_needs_labels(values["augment"])
        refuse_given({"loader.balance": values["loader"].balance}, "in training without labels")
    if isinstance(values["data"], str):
        check_there(values["data"])


def _of_tasks(values: Mapping[str, Any]) -> list[Needs]:
    """That a task's own group of options needs the task."""
    groups = {name: entry.files for name, entry in TASKS.items() if entry.files in values}
    return [Needs((group,), {"task": name}) for name, group in groups.items() if group is not None]


def _check_file(path: str, later: Collection[Any]) -> None:
    if not Path(path).expanduser().exists() and not any(path.startswith(f"{place}/") for place in later):
        raise UserError("The weights file must exist", path)


def refuse_unused(verb: str, values: Mapping[str, Any], needs: Iterable[Needs]) -> None:
    """Refuse options whose values differ from their defaults where nothing reads them.

    Raises:
        UserError: with what they need.
    """
    defaults = {name: option.default for name, option in options_for(verb, values).items()}
    for each in needs:
        if not each.met(values):
            refuse_without_effect(values, defaults, each.options, f"unless {each.words}")


def refuse_argument(values: Mapping[str, Any], group: str, name: str, option: str) -> dict[str, Any]:
    """Refuse an argument of the architecture that an option of ours sets.

    Returns:
        Nothing to fill in, for `resolve`.

    Raises:
        UserError: such as "--student_args.drop_path_rate is set by --drop_path".
    """
    if name in (values[group] or {}):
        raise UserError(f"--{group}.{name} is set by {option}", values[group][name], f"Use {option}")
    return {}


def check_network(values: Mapping[str, Any]) -> None:
    """Refuse a criterion of a third network where none is named.

    Raises:
        UserError: naming the criterion.
    """
    if values["criterion"] in ("network", "network+random") and values["network"] is None:
        raise UserError(f"--criterion {values['criterion']} needs a third network", remedy="Name it with --network")


def check_pipelining(values: Mapping[str, Any]) -> None:
    """Refuse steps in parts, and teachers on other devices, that cannot be.

    Raises:
        UserError: naming the options.
    """
    parts, device, trainer = values["pipeline"], values["teacher_device"], values["trainer"] or {}
    if parts > values["batch_size"]:
        raise UserError(
            "--pipeline cannot split a batch into more parts than it has inputs",
            f"--pipeline {parts} and --batch_size {values['batch_size']}",
        )
    others = {
        "--compile on one device": values["compile"] and device in (None, "cpu"),
        "--trainer.strategy fsdp": "fsdp" in str(trainer.get("strategy", "")).lower(),
        "--teacher_drop_path": bool(values.get("teacher_drop_path")),
    }
    for other in [other for other, given in others.items() if given and parts > 1]:
        raise UserError(f"--pipeline does not go with {other}", f"--pipeline {parts}", "Leave out one of them")
    if parts > 1 and amount_of(values.get("keep", 1.0)).per_input:
        raise UserError(
            "--pipeline needs a number of patches that does not depend on the other inputs of the batch",
            f"--keep {values['keep']}",
            "Give a number of patches, or leave out --pipeline",
        )
    if device not in (None, "cpu") and str(trainer.get("devices")) not in ("1", "[0]"):
        raise UserError(
            "--teacher_device is a GPU beside that of one process, so it needs --trainer.devices 1",
            f"--teacher_device {device} and --trainer.devices {trainer.get('devices', 'auto')}",
            "Add --trainer.devices 1, or leave out --teacher_device",
        )


def _refuse_what_needs_labels(augment: Any) -> None:
    if augment.mixes:
        raise UserError(
            "Only labelled images can be mixed",
            f"the recipe {augment.recipe!r}",
            "Choose --augment.recipe pretrain, or turn it off with --augment.mixup 0 --augment.cutmix 0",
        )
    names = ("mixup", "cutmix", "smoothing", "mixup_prob")
    given = {f"augment.{name}": getattr(augment, name) or None for name in names}
    refuse_without_effect(given, {}, given, "in training without labels")
