"""Memory of one MaskedKD step, by how many patches the teacher sees (MaskedKD, App. I, Table 11).

    python benchmarks/memory.py                 # on a CPU: bytes of live tensors, a minute or two
    python benchmarks/memory.py --device cuda   # the allocator's own peak, at the paper's batch of 128

DeiT-B teaches DeiT-S, random weights, class scores as in plain logit distillation. Measured, above the weights of both
networks and the images:

    teacher             its forward pass as training makes it: without gradient, so that tensors go after their use
    teacher, all kept   the same pass if every intermediate tensor that a backward pass would want stayed until its end
    student             forward, loss and backward without a teacher
    whole step          forward of both, loss and backward

On a CUDA device a figure is `torch.cuda.max_memory_allocated` less what was allocated before. On a CPU it is the most
bytes at any time in storages that operators of the step returned and that were still alive, gradients included;
scratch memory inside an operator is not seen, nor what an allocator keeps in reserve. There each figure is measured at
two batch sizes, and a straight line through both gives batch 128: peaks are linear in the batch. The optimizer's state
is left out, since masking does not change it, and so are the questions about a few images that the whole teacher is
asked now and then. Bytes depend neither on the processor nor on what else runs on it.

Writes benchmarks/results/memory_<machine>.{md,json}.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common import machine_name, parser_of, write
from vitdistill.costing.measure import hardware, peak_memory_bytes, weight_bytes
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.supervised import Supervised
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.build import build
from vitdistill.models.teacher import Teacher
from vitdistill.tokens.select import random_scores, top_k

TEACHER, STUDENT, BATCH = "deit_base_patch16_224", "deit_small_patch16_224", 128
KEEPS = {"all": 196, "75%": 144, "50%": 98}
PARTS = ("teacher", "teacher, all kept", "student", "whole step")

# MB at batch 128, Table 11 of the paper; how they were measured is not said.
PUBLISHED = {"all": {"teacher": 6499, "student": 6426, "total": 12925}, "50%": {"teacher": 3412, "total": 9838}}


def works(teacher: Backbone, student: Backbone, images: Tensor, kept: int) -> dict[str, Callable[[], object]]:
    """The pieces of a step, by what they are called."""
    patches = teacher.grid.count
    keep = None if kept == patches else top_k(random_scores(len(images), patches, device=images.device), kept)
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    frozen = Teacher.of(teacher, student)
    methods = {
        "student": Supervised(student),
        "whole step": MaskedKD(student, frozen, keep=kept, criterion="student"),
    }

    def step(method: nn.Module) -> None:
        method.train()
        if isinstance(method, MaskedKD):
            method.selector.eval()  # asks the whole teacher about a few images now and then, not about all of two
        method(images, targets).loss.backward()
        student.net.zero_grad(set_to_none=True)

    def all_kept() -> object:
        teacher.requires_grad_(True)  # as far as a backward pass would need
        try:
            return teacher(images, keep=keep).prediction
        finally:
            teacher.requires_grad_(False)

    return {
        "teacher": lambda: frozen(images, keep=keep),
        "teacher, all kept": all_kept,
        **{name: partial(step, method) for name, method in methods.items()},
    }


def measure(device: torch.device, batches: tuple[int, ...], args: dict[str, Any] | None) -> dict[str, Any]:
    """Peaks in bytes at each batch size, by patches and part."""
    torch.manual_seed(0)
    teacher, student = (with_tokens(build(name, args=args).to(device)) for name in (TEACHER, STUDENT))
    found: dict[str, dict[str, list[int]]] = {}
    for label, kept in KEEPS.items():
        kept = max(1, round(kept / 196 * teacher.grid.count))
        found[label] = {part: [] for part in PARTS}
        for batch in batches:
            images = torch.randn(batch, 3, *teacher.input.size, device=device)
            for part, work in works(teacher, student, images, kept).items():
                if label != "all" and part == "student":  # nothing of it depends on the teacher
                    found[label][part].append(found["all"][part][batches.index(batch)])
                    continue
                if device.type == "cuda":
                    work()  # workspaces of the libraries
                found[label][part].append(peak_memory_bytes(work, device))
                print(f"{label}, {part}, batch {batch}: {found[label][part][-1] / 1e6:.0f} MB", flush=True)
    weights = {"teacher": weight_bytes(teacher), "student": weight_bytes(student)}
    return {"batches": list(batches), "bytes": found, "weights": weights}


def at_full_batch(batches: list[int], measured: list[int]) -> float:
    """Bytes at `BATCH`: measured there, or on the line through two smaller batches."""
    if batches[-1] == BATCH:
        return measured[-1]
    slope = (measured[1] - measured[0]) / (batches[1] - batches[0])
    return measured[0] + slope * (BATCH - batches[0])


def table_of(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """MB at batch 128, by patches and part."""
    return {
        label: {part: at_full_batch(found["batches"], measured) / 1e6 for part, measured in parts.items()}
        for label, parts in found["bytes"].items()
    }


def markdown(result: dict[str, Any]) -> str:
    """The committed table."""
    table, device = result["table"], result["device"]
    of_teacher, of_student = (result["weights"][name] / 1e6 for name in ("teacher", "student"))
    how = "the CUDA allocator's peak" if device == "cuda" else "bytes of live tensors, a CPU"
    lines = [
        "# Memory of a MaskedKD step (Table 11)",
        "",
        f"`python benchmarks/memory.py`, {how}; DeiT-B teaches DeiT-S, {result['dtype']}, batch {BATCH}"
        + ("" if device == "cuda" else f" on a line through batches of {' and '.join(map(str, result['batches']))}")
        + f", torch {result['hardware']['torch']}. MB are 10^6 bytes above weights ({of_teacher:.0f} MB "
        f"of the teacher, {of_student:.0f} MB of the student) and images. What each row "
        "counts is said at the top of `benchmarks/memory.py`.",
        "",
        "| | all 196 patches | 144 (75%) | 98 (50%) | 50% against all |",
        "|---|---|---|---|---|",
    ]

    def row(name: str, values: list[float]) -> str:
        cells = " | ".join(f"{value:,.0f} MB" for value in values)
        return f"| {name} | {cells} | {100 * (values[-1] / values[0] - 1):+.0f}% |"

    for part in PARTS:
        lines.append(row(part, [table[label][part] for label in KEEPS]))
    sums = [table[label]["teacher, all kept"] + table[label]["student"] for label in KEEPS]
    lines.append(row("student + teacher, all kept", sums))
    lines += [
        "| published: teacher | 6,499 MB | | 3,412 MB | -47% |",
        "| published: student | 6,426 MB | | 6,426 MB | 0% |",
        "| published: total | 12,925 MB | | 9,838 MB | -24% |",
        "",
        words(table),
    ]
    return "\n".join(lines) + "\n"


def words(table: dict[str, dict[str, float]]) -> str:
    """What the table says about the paper's, and about memory in practice."""
    whole, half = table["all"], table["50%"]

    def change(part: str) -> str:
        return f"{100 * (half[part] / whole[part] - 1):+.0f}%"

    total = [parts["teacher, all kept"] + parts["student"] for parts in (whole, half)]
    alone, kept = change("teacher")[1:], change("teacher, all kept")[1:]
    less = f"{100 * (1 - total[1] / total[0]):.0f}%"
    return (
        f"The paper's teacher column falls by 47%. A teacher's pass by itself falls by {alone} here, and by {kept} "
        f"with all its intermediate tensors, whose sum with the student's falls by {less} "
        "(paper: 24%). But a frozen teacher needs none of them after their use: as built here its pass takes "
        f"{whole['teacher']:,.0f} MB where all of them would be {whole['teacher, all kept']:,.0f} MB, before anything "
        "is masked. The whole step, in which the student's activations wait while the teacher runs, changes by "
        f"{change('whole step')}: masking saves the teacher's time, and little memory."
    )


def main() -> None:
    parser = parser_of(__doc__, smoke="tiny networks")
    parser.add_argument("--batch", type=int, nargs=2, default=(2, 4), help="batch sizes on a CPU")
    options = parser.parse_args()
    device = torch.device(options.device)
    args = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3} if options.smoke else None
    batches = (BATCH,) if device.type == "cuda" and not options.smoke else tuple(options.batch)
    found = measure(device, batches, args)
    result = {
        "machine": options.machine or ("cpu" if device.type == "cpu" else machine_name(device)),
        "hardware": hardware(),
        "device": device.type,
        "dtype": "float32",
        "teacher": TEACHER,
        "student": STUDENT,
        "published": PUBLISHED,
        "table": table_of(found),
        **found,
    }
    print(markdown(result))
    if options.smoke:
        json.dumps(result)
    else:
        write(options.out, "memory", result, markdown(result))


if __name__ == "__main__":
    main()
