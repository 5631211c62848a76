"""A model card, written from what the run recorded."""

import json
from collections.abc import Iterator
from typing import Any

from vitdistill.exporting.form import Student
from vitdistill.runs.read import Run

METHODS = {
    "maskedkd": "MaskedKD: distilled from a teacher that sees only the patches to which the student attends "
    "(Son et al., ECCV 2024)",
    "tinymim": "TinyMIM: distilled without labels from token relations of a masked-image-modelling teacher "
    "(Ren et al., CVPR 2023)",
    "mvd": "MVD: distilled without labels from image and video teachers (Wang et al., CVPR 2023)",
    "g2sd": "G2SD, generic stage: distilled without labels from the decoder of a masked autoencoder "
    "(Huang et al., CVPR 2023)",
    "dino": "DINO: pre-trained without labels by its own moving average, whose weights these are "
    "(Caron et al., ICCV 2021)",
    "mae": "MAE: pre-trained without labels by predicting masked pixels (He et al., CVPR 2022)",
    "videomae": "VideoMAE: pre-trained without labels by predicting masked pixels (Tong et al., NeurIPS 2022)",
    "supervised": "trained on labels alone",
    "finetune": "a pre-trained network, fine-tuned on labels",
    "probe": "a frozen network with a linear classifier on its features",
}
SHOWN = 20  # classes that are listed


def model_card(student: Student) -> str:
    """Markdown with the metadata that the hub reads: method, teacher, data, accuracy, cost, and how to load it."""
    run, classes = student.run, student.record.classes
    detects = bool(student.network.detections)
    task = "image-classification" if student.network.num_classes else "image-feature-extraction"
    task, library = ("object-detection", "transformers") if detects else (task, "timm")
    tags = [f"- {task}", *([] if detects else ["- timm"]), "- transformers"]
    head = ["---", f"library_name: {library}", f"pipeline_tag: {task}", "tags:", *tags]
    lines = [*head, "- vitdistill", "---", "", f"# {run.name}", ""]
    lines += ["Trained with vitdistill.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(student))]
    if classes:
        more = f" and {len(classes) - SHOWN} more, in `config.json`" if len(classes) > SHOWN else ""
        lines += ["", "## Classes", "", ", ".join(str(name) for name in classes[:SHOWN]) + more]
    return "\n".join(
        [*lines, "", "## Use", "", *(_USE_DETECTOR if detects else _use(bool(student.network.num_classes))), ""]
    )


def _facts(student: Student) -> Iterator[tuple[str, str]]:
    run, network, made = student.run, student.network, student.record.preprocessing
    verb = run.text("verb") or "unknown"
    yield "method", METHODS.get(verb, verb)
    yield "network", f"`{student.record.architecture}` with `{json.dumps(student.record.args)}`"
    yield "parameters", f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} million"
    if run.setting("teacher"):
        yield "teacher", f"{_named(run, 'teacher')} ({run.text('teacher.name') or 'unknown'})"
    elif verb == "finetune" or verb == "probe":
        yield "pre-trained network", _named(run, "model")
    yield from _data(run)
    result = run.result
    if result is not None and run.score is not None:
        yield "accuracy", f"{run.columns.get(run.score, run.score)} {result:.2f} on validation"
    yield from _cost(run)
    height, width = made["size"]
    resize = f"{made['interpolation']}, crop_pct {made['crop_pct']:g}, crop mode {made['crop_mode']}"
    yield "input", f"{made['channels']} x {height} x {width} pixels; {resize}; mean {made['mean']}, std {made['std']}"


def _data(run: Run) -> Iterator[tuple[str, str]]:
    name = run.text("data.name")
    if name is not None:
        train, val = run.get("data.train_images"), run.get("data.val_images")
        yield "data", f"{name}: {train} samples to train on, {val} to validate on, {run.get('data.classes')} classes"


def _cost(run: Run) -> Iterator[tuple[str, str]]:
    student, teacher = run.number("cost.student_gmacs_full_per_image"), run.number("cost.teacher_gmacs_per_image")
    if student is not None:
        yield "compute", f"{student:.4g} GMACs an image"
    if teacher:
        saved = run.number("cost.saved_fraction")
        share = f", {100 * saved:.0f}% less than a teacher that sees everything" if saved else ""
        yield "teacher in training", f"{teacher:.4g} GMACs an image{share}"
    epochs, seconds = run.get("epochs"), run.number("seconds")
    if epochs is not None and seconds is not None:
        yield "training", f"{epochs} epochs, {seconds / 3600:.2g} hours on {run.text('hardware.gpu') or 'CPU'}"


def _named(run: Run, option: str) -> str:
    """A network as the command named it; of paths the last part alone."""
    name, separator, file = str(run.setting(option)).partition("@")
    parts = (part.rstrip("/").rpartition("/")[2] for part in (name, file))
    return f"`{separator.join(parts)}`" if separator else f"`{next(parts)}`"


def _use(classifier: bool) -> list[Any]:
    kind = "AutoModelForImageClassification" if classifier else "AutoModel"
    return [
        "`PATH` is this folder; from the hub, give `hf-hub:OWNER/NAME` to timm and `OWNER/NAME` to transformers.",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:PATH", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
        "```",
        "",
        "```python",
        f"from transformers import AutoImageProcessor, {kind}",
        "",
        f'model = {kind}.from_pretrained("PATH")',
        'processor = AutoImageProcessor.from_pretrained("PATH")',
        "```",
        "",
        "```bash",
        f"vitdistill {'predict' if classifier else 'embed'} PATH photos/",
        "```",
    ]


_USE_DETECTOR = [
    "`PATH` is this folder; from the hub, give `OWNER/NAME`.",
    "",
    "```python",
    "from transformers import AutoImageProcessor, AutoModelForObjectDetection",
    "",
    'model = AutoModelForObjectDetection.from_pretrained("PATH")',
    'processor = AutoImageProcessor.from_pretrained("PATH")',
    "```",
]
