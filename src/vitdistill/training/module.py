"""The only `LightningModule`: drives any `Method`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import MetricCollection

from vitdistill.data.device import OnDevice, blank_padding
from vitdistill.data.loader import Batch, CorruptLog
from vitdistill.data.order import EpochBatchSampler, seed_everything_at
from vitdistill.errors import UserError, together
from vitdistill.methods.method import Method
from vitdistill.models.ema import moving_average
from vitdistill.models.families import as_network
from vitdistill.tokens.keep import progress_at
from vitdistill.training.clock import Clock
from vitdistill.training.optim import clip_each, make_optimizer, make_schedules, plan_groups
from vitdistill.training.settings import Settings
from vitdistill.training.strategy import FullySharded

AGREE = 50  # steps after which processes tell each other which files they could not read

log = logging.getLogger(__name__)


class TrainingModule(pl.LightningModule):
    """One method on one data source.

    Every random draw of a step comes from generators seeded by (seed, epoch, batch, rank), so where the run is says
    all there is to know about its randomness.

    Attributes:
        row: what the epoch has measured, for the metrics file: name -> number. Holds no times. `keep` is the number of
            patches kept in its last step.
        details: what the last validation has counted for `Task.detail_files`; None before there was one.
        listeners: called with each epoch's row, before its checkpoint is written.
        remembered: what the method has learned, summed over all processes, as of the last epoch's end or checkpoint.
        doubt: what was said of a teacher that may mislead; None where nothing was.
        position: (epoch, batch) at which training goes on; what a checkpoint has to know.
    """

    def __init__(
        self,
        method: Method,
        settings: Settings,
        on_device: OnDevice,
        sampler: EpochBatchSampler,
        corrupt: CorruptLog,
        images: int,
        global_batch: int,
    ) -> None:
        super().__init__()
        self.method, self.settings = method, settings
        self._on_device, self._sampler, self._corrupt, self._images = on_device, sampler, corrupt, images
        self._global_batch = global_batch
        self._groups = plan_groups(method, settings.optim)
        self.row: dict[str, float] = {}
        self.listeners: list[Callable[[dict[str, float]], None]] = []
        self.position = (0, 0)
        self.remembered: dict[str, Any] = {}
        self.doubt: str | None = None
        self.clock: Clock | None = None
        self.steps_timed = 0
        self._sums: dict[str, Tensor] = {}
        self._first_bad: Tensor | None = None
        self._batch = 0  # of the epoch, the one in training
        self._ema: list[ModelEmaV3] = []  # in a list, so that it is no submodule
        self._ema_state: dict[str, Tensor] | None = None
        self._ema_steps = 0
        # Every metric by itself: metrics that agree in the first batch would be taken for one.
        self._metrics = nn.ModuleDict(
            {name: MetricCollection(dict(method.task.metrics()), compute_groups=False) for name in ("val", "ema")}
            if method.task is not None
            else {}
        )
        details = None if method.task is None else method.task.details()
        self._details = None if details is None else MetricCollection({"details": details})
        self.details: Tensor | None = None
        self._val_row: dict[str, float] = {}
        self._val_sum = torch.zeros(3, dtype=torch.float64)  # of this process

    # --- setting up ---------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Called by the trainer once all processes are known, before the optimizer is made."""
        if isinstance(strategy := self.trainer.strategy, FullySharded):
            strategy.shard(self.method)

    def configure_optimizers(self) -> Any:
        optim = self.settings.optim
        optimizer = make_optimizer(self.method, self._groups, optim, self._global_batch)
        steps = -(-len(self._sampler) // optim.accumulate)
        schedules = make_schedules(optimizer, optim, self.settings.epochs, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(num_updates=self.global_step)

    def on_fit_start(self) -> None:
        self._sums = {name: value.to(self.device) for name, value in self._sums.items()}
        self.clock = Clock(self.device)
        self.method.clock = self.clock.part
        if self.settings.optim.ema is not None:
            self._ema = [moving_average(self.method.student.net, self.settings.optim.ema)]
            if self._ema_state is not None:
                self._ema[0].module.load_state_dict(self._ema_state)

    def progress(self, batch_idx: int) -> float:
        """Share of the training that is done at a batch of this epoch: 0 at the first of all, 1 at the last."""
        batches = len(self._sampler)
        return progress_at(self.current_epoch * batches + batch_idx, self.settings.epochs * batches)

    # --- training -----------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        self._sampler.set_position(self.current_epoch)
        self._sums = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._batch = batch_idx
        seed_everything_at(self.settings.seed, "step", self.current_epoch, batch_idx, self.global_rank)
        self._note_unreadable(batch)
        images, targets = self._on_device.train(batch.images, batch.targets)
        images = blank_padding(images, batch.sizes)
        step = self.method(images, targets, self.progress(batch_idx))
        self._note(step.loss, batch_idx)
        values = {"train/loss": step.loss.detach(), **{f"train/{name}": value for name, value in step.terms.items()}}
        if step.teacher_prediction is not None and self.method.task is not None and targets is not None:
            hits = self.method.task.hits(step.teacher_prediction, targets)
            values |= {f"teacher/{name}": 100 * share for name, share in hits.items()}
        one = torch.ones_like(step.loss.detach())
        values |= {name: one * value for name, value in step.measured.items()}
        for name, value in {**values, "batches": one}.items():
            self._sums[name] = self._sums[name] + value.to(self._wide) if name in self._sums else value.to(self._wide)
        return step.loss

    def _note_unreadable(self, batch: Batch) -> None:
        if batch.skipped:
            self._corrupt.add(batch.skipped)
            # Several processes count together, now and then (see `_agree`); without a batch there is no going on.
            if self.trainer.world_size == 1 or len(batch.index) == 0:
                self._corrupt.check(self._images)

    def _exchange_unreadable(self) -> bool:
        """Tell all processes which files each could not read; whether there were new ones. A collective.

        Nearly always there is nothing new anywhere, which takes one number to find out.
        """
        strategy, world = self.trainer.strategy, self.trainer.world_size
        if world == 1 or not strategy.reduce_boolean_decision(bool(self._corrupt.untold), all=False):
            return False

        def gather(mine: dict[str, str]) -> list[Any]:
            found: list[Any] = [None] * world
            torch.distributed.all_gather_object(found, mine)
            return found

        self._corrupt.exchange(gather)
        return True

    def _check_unreadable(self) -> None:
        """Stop all processes together where their files that cannot be read are too many in all. A collective.

        Raises:
            UserError: see `CorruptLog.check`.
        """
        if self._exchange_unreadable():
            with together():
                self._corrupt.check(self._images)

    @property
    def _wide(self) -> torch.dtype:
        """What sums are kept in: double, where the device has it (Apple's has not)."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _note(self, loss: Tensor, batch_idx: int) -> None:
        """Remember the first step whose loss is not finite, on the device; `check_finite` reads it now and then."""
        step = torch.full_like(loss.detach(), self.current_epoch * len(self._sampler) + batch_idx, dtype=self._wide)
        bad = torch.where(torch.isfinite(loss.detach()), torch.inf, step)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        several = self.trainer.world_size > 1  # which stop together, so they have to talk
        if (self.device.type == "cpu" and not several) or batch_idx % 100 == 99:
            self.check_finite()

    def check_finite(self, weights: bool = False) -> None:
        """Stop all processes when a loss, or (asked at the end of an epoch, or to save) a weight, is NaN or infinite.

        Raises:
            UserError: naming the step.
        """
        if (first := self._first_bad) is not None:
            first = first.clone()
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
            if first.isfinite():
                epoch, batch = divmod(int(first), len(self._sampler))
                self._refuse_infinite("loss", f"at step {int(first)} (epoch {epoch}, batch {batch})")
        if weights:
            own = [p.to_local() if isinstance(p, DTensor) else p for p in self.method.parameters()]
            norms = torch._foreach_norm([parameter.detach() for parameter in own])
            broken = not torch.isfinite(torch.stack([norm.float() for norm in norms])).all()
            # Under FSDP each process sees its shard only; all must stop together.
            if self.trainer.strategy.reduce_boolean_decision(bool(broken), all=False):
                self._refuse_infinite("weights", f"by step {self.global_step} (epoch {self.current_epoch})")

    def _refuse_infinite(self, what: str, where: str) -> NoReturn:
        clip = 1.0 if self.settings.optim.clip is None else self.settings.optim.clip / 10
        remedy = f"The last good checkpoint is kept. Lower --optim.lr, or set --optim.clip {clip:g}"
        with together():
            raise UserError(f"The {what} must stay finite", f"NaN or infinity {where}", remedy)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.settings.optim.clip_each is not None:
            clip_each(self.method.parameters(), self.settings.optim.clip_each)
        self.method.after_backward(self.progress(self._batch))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.position = (self.current_epoch, batch_idx + 1)
        if self.global_step > self._ema_steps:  # not in the middle of an accumulated step
            self._ema_steps = self.global_step
            self.method.after_step(self.progress(batch_idx))
            if self._ema:
                self._ema[0].update(self.method.student.net)
        if batch_idx % AGREE == AGREE - 1:
            self._check_unreadable()

    def on_train_epoch_end(self) -> None:
        self._check_unreadable()
        self.check_finite(weights=True)
        self.position = (self.current_epoch + 1, 0)
        sums = self._summed()
        batches = sums.pop("batches")
        kept = self.method.kept_patches(self.progress(len(self._sampler) - 1))
        self.row = {
            "epoch": self.current_epoch,
            "step": self.global_step,
            "lr": max(group["lr"] for group in self.trainer.optimizers[0].param_groups),
            **({} if kept is None else {"keep": kept}),
            **{name: float(value / batches) for name, value in sums.items()},
            **self._val_row,
        }
        self.row |= {name: round(value, 4) for name, value in self.method.observations().items()}
        self.remembered = self.method.remembered(self._total)
        self._say_doubt()
        self._val_row = {}
        for listener in self.listeners:
            listener(self.row)
        if self.logger is not None:
            self.logger.log_metrics({k: v for k, v in self.row.items() if k not in ("epoch", "step")}, self.global_step)

    def _say_doubt(self) -> None:
        """Once, behind the warm-up, in which students do not know yet where to look."""
        if self.doubt is None and self.current_epoch + 1 > self.settings.optim.warmup_epochs:
            self.doubt = self.method.doubt()
            if self.doubt is not None and self.trainer.is_global_zero:
                log.warning(self.doubt)

    def _summed(self) -> dict[str, Tensor]:
        """The epoch's sums so far over all processes (a collective: every process must call it)."""
        return {name: self._total(value) for name, value in self._sums.items()}

    def _total(self, value: Tensor) -> Tensor:
        """A tensor's sum over all processes, on the device (a collective, too)."""
        return self.trainer.strategy.reduce(value.to(self.device, copy=True), reduce_op="sum")

    # --- validation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.check_finite(weights=True)  # rather than to score what is broken
        # Of the loss, of the images that have one, and of all that were read.
        self._val_sum = torch.zeros(3, dtype=self._wide, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._note_unreadable(batch)
        if (count := len(batch.index)) == 0:
            return
        self._val_sum[2] += count
        images = blank_padding(self._on_device.eval(batch.images), batch.sizes)
        if (task := self.method.task) is None:
            # The same masks in every epoch, so that epochs can be compared.
            seed_everything_at(self.settings.seed, "validation", batch_idx, self.global_rank)
            with self._off_the_clock():
                loss = self.method(images, batch.targets, self.progress(len(self._sampler) - 1)).loss
            self._note_val_loss(loss * count, count)
            return
        assert isinstance(images, Tensor) and batch.targets is not None  # one view of labelled data
        predictions = task.predict(self.method.student, images, batch.targets)
        loss_of_batch = task.validation_loss(predictions, batch.targets)
        if loss_of_batch is not None:
            self._note_val_loss(loss_of_batch, count)
        known = {"target": batch.targets, "index": batch.index}
        self._metrics["val"].update(preds=predictions, **known)  # type: ignore[operator]
        if self._details is not None:
            self._details.update(preds=predictions, **known)
        if self._ema:
            average = as_network(self._ema[0].module)
            self._metrics["ema"].update(  # type: ignore[operator]
                preds=task.predict(average, images, batch.targets), **known
            )

    @contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """The teacher's time in validation is not that of training steps."""
        clock, self.method.clock = self.method.clock, nullcontext
        try:
            yield
        finally:
            self.method.clock = clock

    def _note_val_loss(self, loss: Tensor, images: int) -> None:
        self._val_sum[:2] += torch.stack((loss.to(self._wide), torch.full_like(loss, images, dtype=self._wide)))

    def on_validation_epoch_end(self) -> None:
        self._check_unreadable()
        loss, images, read = self.trainer.strategy.reduce(self._val_sum, reduce_op="sum").tolist()
        if not read:  # a score of nothing would be 0%
            reason = next(reversed(self._corrupt.paths.values()), "")
            rule = f"At least one {self._corrupt.word} to validate on must be readable"
            with together():
                raise UserError(rule, f"none ({reason})")
        self._val_row = {"val/loss": loss / images} if images else {}
        for name in self._metrics if self._ema else list(self._metrics)[:1]:
            metrics: Any = self._metrics[name]
            for metric_name, value in metrics.compute().items():
                self._val_row[f"{name}/{metric_name}"] = round(100 * float(value), 4)
            metrics.reset()
        if self._details is not None:
            self.details = self._details.compute()["details"]
            self._details.reset()

    # --- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.remembered = self.method.remembered(self._total)
        self._exchange_unreadable()  # too many of them end the run later; now it is saved
        checkpoint["vitdistill"] = {
            "position": self.position,
            "global_batch": self._global_batch,
            "sums": {name: value.cpu() for name, value in self._summed().items()},
            "corrupt": dict(self._corrupt.paths),
            "method": self.remembered,
            "doubt": self.doubt,
            "ema": self._ema[0].module.state_dict() if self._ema else None,
            "ema_steps": self._ema_steps,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["vitdistill"]
        if state["global_batch"] != self._global_batch:
            raise UserError(
                "A resumed run must keep its global batch (batch_size x devices x nodes x accumulate), since its place "
                "in the data is counted in batches",
                f"{self._global_batch} after {state['global_batch']}",
                "Use as many devices as before",
            )
        epoch, batch = state["position"]
        self.position = (epoch, batch)
        self._sampler.set_position(epoch, batch)
        # Rank 0 saved the sums of all ranks, so only it takes them up again.
        first = self.global_rank == 0
        sums = state["sums"] if batch else {}
        self._sums = {
            name: (value if first else torch.zeros_like(value)).to(self.device) for name, value in sums.items()
        }
        self.remembered = state.get("method", {})
        self.method.recall(self.remembered, first=first)
        self.doubt = state.get("doubt")
        known = state["corrupt"]  # of earlier versions a list, without the reasons
        self._corrupt.paths.update(known if isinstance(known, dict) else dict.fromkeys(known, "no reason recorded"))
        self._ema_state, self._ema_steps = state["ema"], state["ema_steps"]
