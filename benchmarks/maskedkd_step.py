"""MaskedKD's step against the authors' way of computing it, its limit, and timm's distillation task, all in one run.

    python benchmarks/maskedkd_step.py                 # writes benchmarks/results/maskedkd_step_<machine>.{json,md}
    python benchmarks/maskedkd_step.py --smoke         # tiny networks, seconds, writes nothing

On a CPU: float32, eager, one batch size, about fifteen minutes on two cores. On a GPU: bfloat16, eager and compiled,
batches of 128 and 256. Weights are random (time and memory do not depend on them). What is measured:

1. the teacher's forward pass with all, 75%, 50% and 25% of its patches, against the ratio of their MACs;
2. what saliency and selection add to the student's step;
3. a whole training step (forward, loss, backward, AdamW) of the candidates in `CANDIDATES`, taking turns.

The first comparison is with a step that masks too, computed as the authors' code does it: explicit attention in every
block of both networks, and the index of kept patches repeated over the channels (that code also synchronises the device
in each step, which is left out here). timm's task shows its teacher every patch, so it is the weaker baseline. All
candidates compute in one dtype.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from timm.task import LogitDistillationTask
from torch import Tensor, nn

from common import dtype_name, machine_name, parser_of, write
from maskedkd_tables import MASKED_AUTHORS, OURS, OURS_FULL, TIMM, markdown
from vitdistill.costing.measure import compare, hardware, peak_memory_bytes, weight_bytes
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.models.families import as_network
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.keep import keep_count
from vitdistill.verbs.bench import measure_student, measure_teacher

ALPHA, TAU, KEEP = 0.5, 1.0, 0.5
KEEPS = (0.75, 0.5, 0.25)


@dataclass
class Setting:
    """Networks and batch of one measurement.

    Attributes:
        forward_teacher: timm name of the teacher whose forward pass is measured (part 1).
        teacher, student: timm names of the pair whose training step is measured (parts 2 and 3).
        args: more arguments of all three architectures.
        batch: images per step.
        repeats: timed rounds.
        device, dtype, compiled: how they run.
    """

    forward_teacher: str = "deit_small_patch16_224"
    teacher: str = "deit_base_patch16_224"
    student: str = "deit_small_patch16_224"
    args: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    repeats: int = 10
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    def net(self, name: str, seed: int = 0) -> nn.Module:
        """A randomly initialised network, the same one every time."""
        torch.manual_seed(seed)
        return build(name, args=self.args).net.to(self.device)

    def meta(self, name: str) -> Backbone:
        """A network without memory, for what its shapes tell."""
        return with_tokens(build(name, args=self.args, meta=True))

    def images(self, batch: int | None = None) -> Tensor:
        return torch.randn(batch or self.batch, *self.meta(self.student).input.shape, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def label(self) -> str:
        return f"{dtype_name(self.dtype)}, {'compiled' if self.compiled else 'eager'}, batch {self.batch}"


# --- the candidates: each is a way from (setting, student, teacher) to a function that gives the loss ---------------

LossOf = Callable[[Tensor, Tensor], Tensor]


def ours(setting: Setting, student: nn.Module, teacher: nn.Module, keep: float = KEEP) -> LossOf:
    """vitdistill.MaskedKD with the teacher in the measured dtype."""
    network = as_network(student)
    frozen = Teacher.of(teacher, network, dtype=setting.dtype)
    method = MaskedKD(network, frozen, keep=keep, alpha=ALPHA, tau=TAU)
    if setting.compiled:
        network.compile_blocks()
        frozen.network.compile_blocks()
    return lambda images, targets: method(images, targets).loss


def ours_full(setting: Setting, student: nn.Module, teacher: nn.Module) -> LossOf:
    """The same code with nothing masked: what masking itself gains."""
    return ours(setting, student, teacher, keep=1.0)


def authors_way(setting: Setting, student: nn.Module, teacher: nn.Module) -> LossOf:
    """MaskedKD with explicit attention in every block of both networks, and the index of kept patches repeated over the
    channels. Always eager; under autocast where ours is.
    """
    assert isinstance(student, VisionTransformer) and isinstance(teacher, VisionTransformer)
    teacher.eval().requires_grad_(False)
    kept_count = keep_count(KEEP, teacher.patch_embed.num_patches)

    def loss(images: Tensor, targets: Tensor) -> Tensor:
        logits, maps = explicit_forward(student, images)
        saliency = maps[-1][:, :, 0, student.num_prefix_tokens :].mean(dim=1)
        kept = saliency.topk(kept_count).indices
        with torch.no_grad():
            teacher_logits, _ = explicit_forward(teacher, images, kept)
        soft = F.kl_div(
            F.log_softmax(logits / TAU, dim=-1),
            F.log_softmax(teacher_logits / TAU, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - ALPHA) * F.cross_entropy(logits, targets) + ALPHA * TAU**2 * soft

    return loss


def explicit_forward(net: VisionTransformer, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Logits and every block's attention map, on all patches or the kept ones."""
    tokens = net._pos_embed(net.patch_embed(images))
    if kept is not None:
        prefix, patches = tokens[:, : net.num_prefix_tokens], tokens[:, net.num_prefix_tokens :]
        index = kept.unsqueeze(-1).repeat(1, 1, patches.shape[-1])
        tokens = torch.cat((prefix, patches.gather(1, index)), dim=1)
    with attention_maps(net) as maps:
        tokens = net.blocks(net.norm_pre(tokens))
    return net.forward_head(net.norm(tokens)), maps


@contextmanager
def attention_maps(net: nn.Module) -> Iterator[list[Tensor]]:
    """timm's own attention modules with fused attention off; their maps pass through `attn_drop`."""
    maps: list[Tensor] = []
    handles = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.fused_attn = False
            handles.append(module.attn_drop.register_forward_hook(lambda _module, _inputs, out: maps.append(out)))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def timm_task(setting: Setting, student: nn.Module, teacher: nn.Module) -> LossOf:
    """timm's own logit distillation, as its training script runs it: both networks under autocast, every patch for the
    teacher.
    """
    task = LogitDistillationTask(
        student_model=student,
        teacher_model=teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        temperature=TAU,
        device=setting.device,
        verbose=False,
    ).train()
    if setting.compiled:
        task.compile()
    return lambda images, targets: task(images, targets)["loss"]


CANDIDATES: dict[str, Callable[[Setting, nn.Module, nn.Module], LossOf]] = {
    OURS: ours,
    MASKED_AUTHORS: authors_way,
    OURS_FULL: ours_full,
    TIMM: timm_task,
}


# --- measuring ---------------------------------------------------------------------------------------------------


def make_step(setting: Setting, name: str, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """One whole training step of a candidate on networks of its own, equal in all candidates."""
    student, teacher = setting.net(setting.student), setting.net(setting.teacher, seed=1)
    loss_of = CANDIDATES[name](setting, student, teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)

    def step() -> None:
        with setting.autocast():
            loss = loss_of(images, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def check_candidates(setting: Setting) -> None:
    """Candidates that do the same must give the same loss, or their times cannot be compared.

    Raises:
        AssertionError: when they do not.
    """
    plain = copy.copy(setting)
    plain.dtype, plain.compiled = torch.float32, False
    images = plain.images(batch=2)
    losses = {}
    for name, candidate in CANDIDATES.items():
        student, teacher = plain.net(plain.student), plain.net(plain.teacher, seed=1)
        targets = torch.arange(2, device=plain.device)
        losses[name] = candidate(plain, student, teacher)(images, targets).item()
    for one, other in ((OURS, MASKED_AUTHORS), (OURS_FULL, TIMM)):
        assert abs(losses[one] - losses[other]) < 1e-4 * abs(losses[one]), losses


def measure_forward(setting: Setting, name: str, keeps: tuple[float, ...]) -> list[dict[str, Any]]:
    """Part 1: a teacher alone."""
    teacher = Teacher(build(setting.net(name)), dtype=setting.dtype)
    counts = [keep_count(keep, teacher.grid.count) for keep in keeps]
    return measure_teacher(teacher, setting.images(), counts, setting.repeats, compile=setting.compiled)


def measure_saliency(setting: Setting) -> dict[str, Any]:
    """Part 2: the student alone."""
    student, grid = with_tokens(build(setting.net(setting.student))), setting.meta(setting.teacher).grid
    count = keep_count(KEEP, grid.count)
    return measure_student(
        student, setting.images(), grid, count, setting.dtype, setting.repeats, compile=setting.compiled
    )


def measure_steps(setting: Setting) -> dict[str, Any]:
    """Part 3: whole steps of all candidates, taking turns."""
    images = setting.images()
    targets = torch.randint(10, (setting.batch,), device=setting.device)
    steps = {name: make_step(setting, name, images, targets) for name in CANDIDATES}
    for step in steps.values():
        step()  # optimizer moments, and compilation
    seen = steps if has_memory(setting) else {}
    memory = {name: peak_memory_bytes(step, setting.device) for name, step in seen.items()}
    timings = compare(steps, setting.repeats, warmup=1, device=setting.device)
    return {
        "candidates": {
            name: {**timings[name].as_dict(setting.batch), "peak_memory_bytes": memory.get(name)} for name in steps
        },
        "speedup_of_ours": {name: timings.ratio(name, OURS) for name in steps if name != OURS},
        "speedup_limit_of_masking": step_limit(setting),
    }


def has_memory(setting: Setting) -> bool:
    """Memory on a CPU is counted per operator, and compiled code hides its operators."""
    return setting.device.type == "cuda" or not setting.compiled


def step_limit(setting: Setting) -> float:
    """Whole step over masked step in MACs, the student's training being three forward passes."""
    teacher, student = setting.meta(setting.teacher), setting.meta(setting.student)
    training = 3 * student.macs().total
    kept = teacher.macs(keep_count(KEEP, teacher.grid.count)).total
    return (teacher.macs().total + training) / (kept + training)


def measure(setting: Setting) -> dict[str, Any]:
    """All three parts in one setting."""
    torch._dynamo.reset()
    print(f"measuring {setting.label()} ...", flush=True)
    return {
        "label": setting.label(),
        "batch": setting.batch,
        "dtype": dtype_name(setting.dtype),
        "compiled": setting.compiled,
        "teacher_weight_bytes": weight_bytes(setting.meta(setting.teacher)),
        # The pair's teacher at the paper's main setting only, for its memory.
        "teacher_forward": {
            setting.teacher: measure_forward(setting, setting.teacher, (KEEP,)),
            setting.forward_teacher: measure_forward(setting, setting.forward_teacher, KEEPS),
        },
        "student_step": measure_saliency(setting),
        "training_step": measure_steps(setting),
    }


# --- command -----------------------------------------------------------------------------------------------------


def settings(options: argparse.Namespace) -> list[Setting]:
    """What to measure on this machine."""
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    common: dict[str, Any] = {"device": device, "repeats": options.repeats}
    if options.smoke:
        tiny = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
        names = dict.fromkeys(("forward_teacher", "teacher", "student"), "deit_tiny_patch16_224")
        common |= {"args": tiny, "repeats": 2, **names}
    batches = options.batch or ([4] if options.smoke else [128, 256] if gpu else [16])
    compiled = [False, True] if gpu or options.compile else [False]
    dtype = torch.bfloat16 if gpu else torch.float32
    return [Setting(batch=b, dtype=dtype, compiled=c, **common) for c in compiled for b in batches]


def main() -> None:
    parser = parser_of(__doc__, smoke="tiny networks")
    parser.add_argument("--batch", type=int, nargs="+", help="images per step; several are measured one after another")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks on a CPU as well")
    options = parser.parse_args()

    todo = settings(options)
    check_candidates(todo[0])
    result = {
        "machine": options.machine or machine_name(todo[0].device),
        "hardware": hardware(),
        "repeats": todo[0].repeats,
        **{name: getattr(todo[0], name) for name in ("forward_teacher", "teacher", "student")},
        "settings": [measure(setting) for setting in todo],
    }
    print(markdown(result))
    if not options.smoke:
        write(options.out, "maskedkd_step", result, markdown(result))


if __name__ == "__main__":
    main()
