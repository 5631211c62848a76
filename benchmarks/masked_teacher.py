"""When masking hurts: teachers trained as usual, with patch dropout, or tuned with it, and students under their masks.

    apt-get install dataset-fashion-mnist         # real pictures of garments in ten classes, 28x28 pixels
    python benchmarks/masked_teacher.py           # five seeds, two processes
    python benchmarks/masked_teacher.py --data digits
    python benchmarks/masked_teacher.py --seeds 2 --only "usual: whole" "usual: student 50%"

Writes benchmarks/results/masked_teacher_{fashion,digits}.{json,md,svg}. All networks are trained by verbs: teachers by
`supervised` and `finetune` (once; they stay in the folder --teachers), students by `maskedkd`. A run is kept as it ends
in the file --kept, a line each: called again, the study goes on where it was.

Garments: teachers learn from 30,000 pictures, students from 6,000 of them. Shifts of up to two pixels and flips are the
data set's own transform. A student has six epochs in batches of 64 (558 steps), which take 40 to 60 seconds on one
quiet core, so that five seeds of every setting take about an hour on two. It is far from done by then: with the whole
teacher it has about 62%, and 77% after 20 epochs; on half the patches by its own choice about 40%, and 62% after 16
epochs (the usual teacher, seed 0). So differences are larger here than at the end of a long training, which --epochs 20
shows. Batches of 128 would have halved the steps in the same time. Pictures are arrays in memory, as torchvision's
transforms of single images took a fifth of it.
"""

import csv
import gzip
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from masked_teacher_tables import TEACHERS, figure, markdown, settings, summarise
from study import chosen, command_line, finished, parser_of, run_all, write
from vitdistill import Augment, Optim
from vitdistill.training.settings import Loader

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package has it

CURVES = {
    "curve": "val/top1",
    "teacher_curve": "teacher/top1",
    "agreement_curve": "teacher/agreement",
    "keep_curve": "keep",
}


class Garments(Dataset):  # type: ignore[type-arg]
    """Fashion-MNIST in memory; for training each picture is shifted by up to two pixels, and flipped or not."""

    classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

    def __init__(self, split: str, count: int, *, moving: bool) -> None:
        with gzip.open(FASHION / f"{split}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]
        with gzip.open(FASHION / f"{split}-labels-idx1-ubyte.gz") as file:
            self.targets = np.frombuffer(file.read(), np.uint8, offset=8)[:count].astype(np.int64)
        self.padded, self.moving = np.pad(pixels, ((0, 0), (2, 2), (2, 2))), moving

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        # The loader seeds numpy's generator for every sample.
        top, left, flip = np.random.randint(0, (5, 5, 2)) if self.moving else (2, 2, 0)
        picture = self.padded[index, top : top + 28, left : left + 28]
        return picture[:, ::-1] if flip else picture, int(self.targets[index])


@dataclass(frozen=True)
class Subject:
    """A data set to study masks on.

    Attributes:
        words: about data and networks, for the table.
        test_images: how many.
        epochs: of a student.
        common: arguments of all verbs.
        teacher: arguments of `supervised`.
        tuning: arguments of `finetune`.
        student: arguments of `maskedkd`.
        usual: the usual teacher, where it is there already.
    """

    words: str
    test_images: int
    epochs: int
    common: dict[str, Any]
    teacher: dict[str, Any]
    tuning: dict[str, Any]
    student: dict[str, Any]
    usual: str | None = None

    def data(self, images: int) -> Any:
        """What the verbs take as data; of garments so many pictures to train on."""
        if self is SUBJECTS["digits"]:
            return "digits"
        return Garments("train", images, moving=True), Garments("t10k", self.test_images, moving=False)

    def place_of(self, teacher: str, folder: Path) -> str:
        """The name of a teacher that is there already, else the folder of its run."""
        return self.usual if teacher == "usual" and self.usual is not None else str(folder / teacher)


def vit(width: int, heads: int) -> dict[str, Any]:
    size = {"img_size": 28, "patch_size": 4, "embed_dim": width, "depth": 4, "num_heads": heads}
    return {"student": "vit_tiny_patch16_224", "student_args": size}


SUBJECTS = {
    "fashion": Subject(
        words="Fashion-MNIST, 28x28 pixels, patch 4 (49 patches), shifted and flipped; 2,000 test images. Teachers: "
        "width 64, 4 blocks, 8 epochs of 30,000 images (the tuned one 2 more). Students: width 32, 4 blocks, on 6,000 "
        "images, batch 64.",
        test_images=2_000,
        epochs=6,
        common={
            "drop_path": 0.0,
            "augment": Augment(recipe="none"),
            "loader": Loader(workers=0, eval_batch=500),
        },
        teacher={
            **vit(width=64, heads=4),
            "batch_size": 128,
            "epochs": 8,
            "optim": Optim(lr=2e-3, lr_batch=128, warmup_epochs=0.85, min_lr=0.0),
        },
        tuning={
            "batch_size": 128,
            "epochs": 2,
            "optim": Optim(lr=1e-3, lr_batch=128, warmup_epochs=0.2, min_lr=0.0),
        },
        student={
            **vit(width=32, heads=2),
            "batch_size": 64,
            "optim": Optim(lr=2e-3, lr_batch=64, warmup_epochs=1, min_lr=0.0),
        },
    ),
    "digits": Subject(
        words="Handwritten digits, 12x12 pixels, patch 2 (36 patches), 1,437 for training and 360 for tests. Teachers: "
        "width 96, 4 blocks, 60 epochs (`recipes/digits/teacher.yaml`; the tuned one 20 more). Students: width 48, 3 "
        "blocks, batch 64.",
        test_images=360,
        epochs=24,
        common={"batch_size": 64, "drop_path": 0.0},
        teacher={
            "student": "digits_vit_base",
            "epochs": 60,
            "augment": Augment(recipe="none", mixup=0.4, smoothing=0.1),
            "optim": Optim(lr=3e-3, lr_batch=64, warmup_epochs=5),
        },
        tuning={  # the values of recipes/maskedkd/ready_for_masks.yaml, with more epochs and a higher rate
            "epochs": 20,
            "augment": Augment(recipe="none"),
            "optim": Optim(lr=1e-3, lr_batch=256, layer_decay=0.75, warmup_epochs=0.5, warmup_lr=0.0, min_lr=1e-6),
        },
        student={
            "student": "digits_vit_small",
            "augment": Augment(recipe="none"),
            "optim": Optim(lr=3e-3, lr_batch=64, warmup_epochs=3),
        },
        usual="digits-teacher",
    ),
}


# --- running --------------------


def train_teacher(kind: str, subject: Subject, folder: Path) -> None:
    """Train a teacher, unless it is there."""
    import torch

    torch.set_num_threads(1)
    from vitdistill import finetune, supervised

    out = subject.place_of(kind, folder)
    if out == subject.usual or (Path(out) / "student.safetensors").is_file():
        return
    shared = {"data": subject.data(30_000), "out": out, "seed": 0, "overwrite": True, **subject.common}
    if kind == "tuned":
        finetune(subject.place_of("usual", folder), **shared, **subject.tuning, patch_drop=0.5)
    else:
        supervised(**shared, **subject.teacher, patch_drop=0.0 if kind == "usual" else 0.5)


def run_one(data: str, teachers: Path, name: str, seed: int, epochs: int, folder: str) -> dict[str, Any]:
    """Train one student: its accuracy, what the masked teacher knew in every epoch, and what that cost."""
    import torch

    torch.set_num_threads(1)
    from vitdistill import maskedkd

    (kind, options), subject = settings()[name], SUBJECTS[data]
    out = Path(folder) / f"{''.join(letter if letter.isalnum() else '_' for letter in name)}-{seed}"
    info = maskedkd(
        **subject.common,
        **subject.student,
        teacher=None if kind is None else subject.place_of(kind, teachers),
        data=subject.data(6_000),
        out=str(out),
        epochs=epochs,
        seed=seed,
        loggers="csv",
        **{"criterion": "student", **options},  # the paper's, where nothing else is said
    )
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {key: [float(row[column]) if row.get(column) else None for row in rows] for key, column in CURVES.items()}
    cost = info["cost"]
    return {
        "name": name,
        "seed": seed,
        "top1": info["accuracy"]["top1"],
        **curves,
        "teacher_gmacs": cost.get("teacher_gmacs_total"),
        "saved": cost.get("saved_fraction"),
        "seconds": info["seconds"],
    }


def preflight(kind: str, subject: Subject, folder: Path) -> list[dict[str, Any]]:
    """What `vitdistill evaluate` says of a teacher before any student: a row for each mask."""
    import contextlib
    import io

    from vitdistill import evaluate

    with contextlib.redirect_stdout(io.StringIO()):
        found = evaluate(
            subject.place_of(kind, folder),
            data=subject.data(6_000),
            keep=[0.25, 0.5, 0.75, 1.0],
            criterion=["random", "teacher"],
            workers=0,
            json=True,
        )
    return found["masked"]


def main() -> int:
    parser = parser_of(__doc__, seeds=5, epochs=0)
    parser.add_argument("--data", choices=list(SUBJECTS), default="fashion")
    parser.add_argument("--teachers", type=Path, help="folder of the teachers' runs; by default in runs/")
    parser.add_argument("--kept", type=Path, help="file of finished runs; by default beside the teachers")
    parser.add_argument("--report", action="store_true", help="train nothing: the table of the runs that are kept")
    options = parser.parse_args()
    from vitdistill.costing.measure import hardware

    subject = SUBJECTS[options.data]
    if options.data == "fashion" and not FASHION.is_dir():
        raise SystemExit(f"{FASHION} is not there: apt-get install dataset-fashion-mnist, or take --data digits")
    teachers = options.teachers or Path("runs") / f"masked_teacher_{options.data}"
    teachers.mkdir(parents=True, exist_ok=True)
    epochs = options.epochs or subject.epochs
    names = chosen(settings(), options.only)
    kept = options.kept or teachers / "students.jsonl"
    if options.report:
        results = finished(kept, names, options.seeds, epochs)
        names = [name for name in names if any(run["name"] == name for run in results)]
    kinds = [kind for kind in TEACHERS if any(name.startswith(f"{kind}: ") for name in names)]
    if not options.report:
        for kind in dict.fromkeys(("usual", *kinds)):  # the tuned one starts from the usual one
            train_teacher(kind, subject, teachers)
        run = partial(run_one, options.data, teachers)
        results = run_all(run, names, options.seeds, options.jobs, epochs, kept=kept)
    meta = {
        "command": command_line(),
        "hardware": hardware(),
        "seeds": options.seeds,
        "epochs": epochs,
        "seconds": sum(run["seconds"] for run in results),
    }
    content = {
        "meta": meta,
        "preflight": {kind: preflight(kind, subject, teachers) for kind in kinds},
        "table": summarise(results),
        "runs": results,
    }
    write(options.out, f"masked_teacher_{options.data}", content, markdown(content, subject.words))
    figure(results, options.out / f"masked_teacher_{options.data}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
