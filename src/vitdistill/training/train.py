"""From a method, a data source and settings to a finished run directory."""

import logging
import shlex
import sys
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import disable_possible_user_warnings
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vitdistill.costing.measure import hardware
from vitdistill.data.loader import CorruptLog, default_workers, make_loader
from vitdistill.data.order import EpochBatchSampler, EvalBatchSampler
from vitdistill.data.samples import ViewOptions
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, error_words
from vitdistill.files import AVERAGED, is_first_process
from vitdistill.methods.method import Method
from vitdistill.models.record import RECORD, WEIGHTS, ModelRecord, record_of
from vitdistill.runs.data import describe_data
from vitdistill.runs.directory import RunDirectory
from vitdistill.signals import Interrupted, stop_after, stop_now
from vitdistill.training.checkpoints import (
    AtomicCheckpointIO,
    SaveCheckpoints,
    export_weights,
    keep_body,
    read_checkpoint,
    student_weights,
)
from vitdistill.training.disk import footprint
from vitdistill.training.estimate import Estimate
from vitdistill.training.interrupt import StopBetweenSteps, end_others, watch_others
from vitdistill.training.launch import devices_and_nodes, launched, lost_process, sharing_cores
from vitdistill.training.loggers import Services
from vitdistill.training.module import TrainingModule
from vitdistill.training.optim import warn_about_rates
from vitdistill.training.precision import training_precision
from vitdistill.training.progress import ProgressBar
from vitdistill.training.settings import Settings
from vitdistill.training.snapshots import KeepSnapshots, snapshot_epochs
from vitdistill.training.strategy import strategy_of
from vitdistill.training.summary import cost_of, describe, speed_of, teacher_of, versions
from vitdistill.training.timing import StepTiming
from vitdistill.training.waste import say_waste

log = logging.getLogger(__name__)


@dataclass
class _Parts:
    """What a run is put together from, once the trainer knows its world."""

    module: TrainingModule
    trainer: pl.Trainer
    train_loader: Any
    val_loader: Any
    global_batch: int
    services: Services
    stop: StopBetweenSteps


def train(method: Method, source: DataSource, run: RunDirectory, settings: Settings, *, resume: bool) -> dict[str, Any]:
    """Train, checkpoint and export the student.

    Args:
        method: what to train.
        source: what to train on.
        run: a prepared run directory.
        settings: how.
        resume: continue from `checkpoints/last.ckpt`, if the run got as far as writing one.

    Returns:
        The content of run.json.

    Raises:
        UserError: for settings that cannot be trained with, a loss that is not finite, too many unreadable images,
            or a full disk. What was computed up to the last checkpoint is kept.
        Interrupted: after a signal, when it is stopped (see `vitdistill.signals`).
    """
    settings.check()
    stop_now("stopped before the first step; nothing is lost")
    parts = _assemble(method, source, run, settings)  # whatever refuses does so before an earlier run is replaced
    run.begin()
    checkpoint = run.last if resume and run.last.is_file() else None
    keep_body(method.student, run.checkpoints, resume=checkpoint is not None)
    if is_first_process():
        _write_record(method, source, run, settings)
        if checkpoint is not None:
            run.drop_rows_from(read_checkpoint(checkpoint)["vitdistill"]["position"][0])
        elif resume:
            log.warning("%s has no checkpoint yet; starting from the beginning", run.path)
            run.drop_rows_from(0)
    run.update(
        student=describe(method.student),
        teacher=describe(method.teachers[0].network) if method.teachers else None,
        teachers=[describe(teacher.network) for teacher in method.teachers],
        data=describe_data(source),
        hardware=hardware(),
        versions=versions(),
        seed=settings.seed,
        epochs=settings.epochs,
        sample_word=source.train.word,
        # What the columns of the metrics are called, which of them counts, and whether it has a binomial error.
        metrics={} if method.task is None else method.task.columns,
        score=None if method.task is None else method.task.score,
        score_per_sample=method.task is not None and method.task.per_sample,
        notes=say_waste(method, source, run.read_info()),
    )
    parts.services.start(resume=resume)
    if settings.compile:
        for backbone in (method.student, *(teacher.network for teacher in method.teachers)):
            backbone.compile_blocks()
    started = time.perf_counter()
    status = "failed"
    watch_others(parts.trainer)
    try:
        parts.trainer.fit(parts.module, parts.train_loader, parts.val_loader, ckpt_path=checkpoint)
        status = "finished"
    except RuntimeError as error:
        if isinstance(error.__context__, Interrupted):  # in the loader's start, which Lightning cannot clean up after
            status = "interrupted"
            raise Interrupted(str(error.__context__)) from None
        if parts.trainer.world_size > 1 and (reason := lost_process(error)):
            got = f"one that has ended ({reason})"
            remedy = f"It may have said why. Go on with: vitdistill resume {shlex.quote(str(run.path))}"
            raise UserError("All processes of a run must go on to its end", got, remedy) from error
        if "loading state_dict" not in str(error):
            raise
        got = f"{checkpoint} ({error_words(error)[:160]})"
        raise UserError("The checkpoint must be of this run", got, "Start anew with --overwrite") from error
    except Interrupted as stop:
        status = "interrupted"
        raise Interrupted(_said(parts, run, str(stop))) from None
    finally:
        seconds = time.perf_counter() - started
        if status != "finished":
            end_others(parts.trainer, by_themselves=parts.stop.agreed)
        try:
            run.update(status=status if status != "finished" else "running", **_results(parts, source, run, seconds))
        except UserError:  # the disk is full, which is why the training has failed
            if status != "failed":
                raise
        parts.services.finish(status, parts.module.global_step)
    return _finish(parts, method, run)


def _said(parts: _Parts, run: RunDirectory, words: str) -> str:
    """What a stopped training says at its end."""
    if parts.stop.saved:
        return f"stopped; the checkpoint is written. Continue with: vitdistill resume {shlex.quote(str(run.path))}"
    return words


def _assemble(method: Method, source: DataSource, run: RunDirectory, settings: Settings) -> _Parts:
    spec = method.student.input
    views = _views(method, settings)
    source.train.check(spec, views)
    train_transform = source.train.transform(spec, views, train=True)
    val_transform = source.val.transform(spec, views, train=False)
    services = Services(settings.loggers, run)
    trainer = _trainer(run, settings)
    world, rank = trainer.world_size, trainer.global_rank
    global_batch = settings.batch_size * world * settings.optim.accumulate
    augment = settings.augment.resolved()
    on_device = source.train.on_device(spec, views, len(source.classes))
    on_device.check_batch_size(settings.batch_size)
    sampler = EpochBatchSampler(
        len(source.train),
        settings.batch_size,
        seed=settings.seed,
        repeats=augment.repeats,
        labels=_labels_to_balance(source) if settings.loader.balance else None,
        rank=rank,
        world=world,
    )
    warn_about_rates(settings.optim, settings.epochs, global_batch, len(sampler))
    loader = settings.loader
    eval_sampler = EvalBatchSampler(len(source.val), loader.eval_batch or settings.batch_size, rank=rank, world=world)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    options: dict[str, Any] = {
        "seed": settings.seed,
        "num_workers": default_workers(source, sharing_cores(trainer.num_devices))
        if loader.workers is None
        else loader.workers,
        "pin_memory": on_gpu if loader.pin is None else loader.pin,
    }
    corrupt = CorruptLog.of(source.train, loader.bad_share)
    module = TrainingModule(
        method, settings, on_device, sampler, corrupt, len(source.train) + len(source.val), global_batch
    )
    bar = ProgressBar(settings.batch_size * world, f"{source.train.word}s", method.task)
    if trainer.is_global_zero:
        module.listeners += [run.add_row, lambda _: _write_details(module, source, run), bar.on_row, services.on_row]
    snapshots = settings.snapshots or 0
    estimate = Estimate(bar, footprint(method, settings.optim, snapshots), run, len(source.val))
    stop = StopBetweenSteps(run.last, trainer)
    callbacks = [StepTiming(), bar, stop, SaveCheckpoints(run.checkpoints), estimate]
    callbacks.append(KeepSnapshots(run, snapshot_epochs(snapshots, settings.epochs)))
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    train_loader = make_loader(source.train, train_transform, sampler, **options)
    val_loader = make_loader(source.val, val_transform, eval_sampler, **options)
    return _Parts(module, trainer, train_loader, val_loader, global_batch, services, stop)


def _labels_to_balance(source: DataSource) -> list[int]:
    labels = source.train.labels
    if labels is None:
        raise UserError(
            "--loader.balance needs one class per sample",
            f"{source.name}, which has none",
            "Leave out --loader.balance",
        )
    return labels


def _views(method: Method, settings: Settings) -> ViewOptions:
    return ViewOptions(
        augment=settings.augment,
        stride=settings.stride,
        sampling=settings.sampling,
        labels=method.task is not None,
        several=settings.several,
    )


def _trainer(run: RunDirectory, settings: Settings) -> pl.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore", message=".*weights_only.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nobody adds to it in place
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, of a newer torch
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # of one row, where none matter
    arguments: dict[str, Any] = {
        "devices": "auto" if torch.cuda.is_available() else 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000,  # metrics are per epoch; nothing is read from the device in a step
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "use_distributed_sampler": False,
        **settings.trainer,
        **devices_and_nodes(settings.trainer),
    }
    _warn_of_idle_gpus(settings)
    arguments["strategy"] = strategy_of(arguments.get("strategy", "auto"), settings)
    try:
        return _lightning_trainer(run, settings, arguments)
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError("Lightning refuses these --trainer or --precision values", reason) from error


def _warn_of_idle_gpus(settings: Settings) -> None:
    """Say when a launcher from outside started fewer processes than there are GPUs here, unless they were chosen."""
    launch, gpus = launched(), torch.cuda.device_count()
    if launch is not None and launch.per_node < gpus and "devices" not in settings.trainer:
        log.warning(
            "%s started %s, so %d of the %d GPUs of this node are used", launch.by, launch, launch.per_node, gpus
        )


def _lightning_trainer(run: RunDirectory, settings: Settings, arguments: dict[str, Any]) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=settings.epochs,
        precision=training_precision(settings.precision, settings.trainer),  # type: ignore[arg-type]
        gradient_clip_val=settings.optim.clip,
        accumulate_grad_batches=settings.optim.accumulate,
        default_root_dir=run.path,
        logger=TensorBoardLogger(run.path, name="tensorboard", version="")
        if "tensorboard" in settings.loggers
        else False,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        **arguments,
    )


def _write_record(method: Method, source: DataSource, run: RunDirectory, settings: Settings) -> None:
    """student.json, at the start: checkpoints can be read with it before the run is over."""
    classes = list(source.classes) if method.task is not None else []
    if method.task is not None and method.task.names is not None:
        classes = method.task.names.of_network(method.student) or classes
    record = replace(record_of(method.student.net), classes=classes)
    record.mean, record.std = list(method.student.input.mean), list(method.student.input.std)
    record.preprocessing = source.val.preprocessing(method.student.input, _views(method, settings))
    record.write(run.path)


def _write_details(module: TrainingModule, source: DataSource, run: RunDirectory) -> None:
    if module.details is not None:
        assert module.method.task is not None
        run.add_files(module.method.task.detail_files(module.details, source))


def _results(parts: _Parts, source: DataSource, run: RunDirectory, seconds: float) -> dict[str, Any]:
    """What run.json says of the training so far; also after a failure."""
    rows = run.rows()
    method, settings = parts.module.method, parts.module.settings
    images_per_epoch = len(parts.module._sampler) * settings.batch_size * parts.trainer.world_size
    before = run.read_info().get("seconds") or 0.0
    result: dict[str, Any] = {"seconds": round(before + seconds, 2)}
    if rows:
        columns = () if method.task is None else tuple(method.task.columns)
        last = {name: float(value) for name, value in rows[-1].items()}
        saves = next(c for c in parts.trainer.callbacks if isinstance(c, SaveCheckpoints))  # type: ignore[attr-defined]
        result["accuracy"] = {
            **{name: round(last[f"val/{name}"], 4) for name in (*columns, "loss") if f"val/{name}" in last},
            **_best_loss(method, rows),
        }
        if method.task is not None:
            score = method.task.score
            if saves.best_epoch >= 0:
                result["accuracy"] |= {f"best_{score}": round(saves.best, 4), "best_epoch": saves.best_epoch}
            if f"ema/{score}" in last:
                result["accuracy"][f"ema_{score}"] = round(last[f"ema/{score}"], 4)
    result |= cost_of(
        method,
        epochs=settings.epochs,
        steps_per_epoch=len(parts.module._sampler),
        images_per_epoch=images_per_epoch,
        epochs_done=len(rows),
        spent=method.spent(parts.module.remembered),
    )
    result |= teacher_of(method, rows, parts.module.doubt)
    if speed := speed_of(parts.module, settings.batch_size, parts.trainer.world_size):
        result["speed"] = speed
        result["peak_memory_gib"] = _peak_memory_gib(parts.trainer.strategy.root_device)
    data = run.read_info().get("data") or {}
    corrupt = dict(parts.module._corrupt.paths)
    result["data"] = {**data, "corrupt": {"count": len(corrupt), "files": list(corrupt), "reasons": corrupt}}
    return result


def _best_loss(method: Method, rows: list[dict[str, str]]) -> dict[str, float]:
    """Lowest validation loss of a run without labels; nothing where no epoch was validated."""
    losses = [float(row["val/loss"]) for row in rows if "val/loss" in row]
    return {"best_loss": min(losses)} if losses and method.task is None else {}


def _peak_memory_gib(device: torch.device) -> float:
    """Most memory in use: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)


def _finish(parts: _Parts, method: Method, run: RunDirectory) -> dict[str, Any]:
    """Export the student and mark the run finished; every process gets what the run says."""
    if is_first_process():
        stop_after("the export")
        _export(method, run)
    # The next run of a chain reads what this one wrote, in every process.
    parts.trainer.strategy.barrier()
    return run.read_info()


def _export(method: Method, run: RunDirectory) -> None:
    # From the checkpoint, which is whole under every strategy; the module may be in shards.
    content, record = read_checkpoint(run.last), ModelRecord.read(run.path)
    fixed = method.student.fixed()
    weights = {WEIGHTS: {**fixed, **student_weights(content["state_dict"])}}
    state = {name.removeprefix("method."): value for name, value in content["state_dict"].items()}
    weights |= method.artifacts(state)
    if content["vitdistill"]["ema"] is not None:
        weights[AVERAGED] = {**fixed, **content["vitdistill"]["ema"]}
    for name, tensors in weights.items():
        export_weights(tensors, run.path / name, record)
    run.wrote(*weights)
    run.update(status="finished")


__all__ = ["RECORD", "WEIGHTS", "export_weights", "train"]
