"""`vitdistill robustness`: a classifier on ImageNet-A, -R, -C, -Sketch, -V2 and -ReaL."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdistill.data.robustness.layout import layouts
from vitdistill.data.robustness.published import DENOMINATORS, SEVERITIES
from vitdistill.data.robustness.sets import (
    CORRUPTED,
    SETS,
    Corruptions,
    Sets,
    Severities,
    corruptions_of,
    sets_of,
    severities_of,
)
from vitdistill.errors import UserError, refuse_given
from vitdistill.models.names import ModelName, absolute_model
from vitdistill.runs.read import Checkpoint, find_run

if TYPE_CHECKING:
    from rich.table import Table

NAME = "robustness"  # of the files


def robustness(
    model: ModelName,
    *,
    sets: Sets,
    checkpoint: Checkpoint = "exported",
    allow_partial: bool = False,
    corruptions: Corruptions | None = None,
    severities: Severities | None = None,
    images_per_set: int | None = None,
    batch_size: int = 128,
    image_size: int | None = None,
    crop_pct: float | None = None,
    device: str = "auto",
    workers: int | None = None,
    bad_share: float = 0.01,
    model_args: dict[str, Any] | None = None,
    out: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Accuracy of a classifier of ImageNet's classes on test sets that are unlike its training images.

    What is finished is written at once, so that the same command goes on after an interruption.

    Args:
        model: run directory, timm name (pretrained weights are downloaded), or name@weights-file; its classes must be
            ImageNet's, by WordNet number or by word, or hold those of the sets.
        sets: name:folder with commas between them, of imagenet-a, imagenet-r, imagenet-c, sketch, v2, clean (the
            validation images: relative mCE, and accuracy on the classes of imagenet-a and imagenet-r), and real (the
            validation images, right where the answer is any of the classes that people found in the image).
        checkpoint: of a run: the exported student, the last or best checkpoint, or the averaged weights.
        allow_partial: score sets that lack classes, corruptions or severities, and mark them as partial.
        corruptions: of imagenet-c, such as fog,snow; by default the fifteen, and those of the four extra ones that are
            there.
        severities: of imagenet-c, such as 1,3,5; by default all five.
        images_per_set: how many images of each set (of imagenet-c, of each severity), the first by their file names.
        batch_size: images per step.
        image_size: input size in pixels; by default the model's.
        crop_pct: share of the resized image that the centre crop keeps, except on imagenet-c, whose images are cropped
            already; by default that of the run's recipe, or the one that the model was published with.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8.
        bad_share: share of a set that may be unreadable; in small sets up to 3 are borne.
        model_args: further arguments of the architecture.
        out: folder for robustness.json, and with imagenet-c robustness.png and robustness.svg; by default the run's.
        json: print one JSON object in place of the tables.

    Returns:
        Under `sets`, for each that was ever measured of this network into this folder: top1, top5, confidence and
        counts of images; of imagenet-a and imagenet-r also clean_top1 and gap, of imagenet-c the same per corruption
        and severity (cells), the error and CE of each corruption, mean_error, mce and relative_mce. `partial` lists
        what was missing.

    Raises:
        UserError: when a set is none of those, is not there, or lacks something; or the model has other classes.
    """
    # What the words and the folders alone show to be wrong is refused before torch is imported.
    folders = sets_of(sets)
    chosen = None if corruptions is None else corruptions_of(corruptions)
    degrees = SEVERITIES if severities is None else severities_of(severities)
    given = {"corruptions": corruptions is not None, "severities": severities is not None}
    if CORRUPTED not in folders:
        refuse_given(given, f"unless --sets names {CORRUPTED}")
    if images_per_set is not None and images_per_set < 1:
        raise UserError("images_per_set must be at least 1", images_per_set)
    model = absolute_model(model) if "~" in model else model
    folder = _folder(model, out)
    found = layouts(folders, corruptions=chosen, severities=degrees, allow_partial=allow_partial)

    from vitdistill.evaluation.loading import load, run_of
    from vitdistill.evaluation.robustness import FILE, Kept, fingerprint, measure
    from vitdistill.verbs.common import refuse_classes

    refuse_classes(model_args, "model_args")
    _, config = run_of(model)
    network = load(model, Path(model), checkpoint, image_size, model_args)
    kept = Kept(folder, fingerprint(network, config, crop_pct), model)
    results = measure(
        network,
        found,
        kept=kept,
        config=config,
        crop_pct=crop_pct,
        images=images_per_set,
        batch_size=batch_size,
        device=device,
        workers=workers,
        bad_share=bad_share,
    )
    result = {"model": model, "out": str(folder), "sets": results}
    written = [FILE, *_draw(results, folder)]
    _show(result, kept.taken, written, json)
    return result


def _folder(model: str, out: str | None) -> Path:
    """Where results are kept.

    Raises:
        UserError: when the model is no run and no folder is named, the folder is a file, or the run is of another task.
    """
    run = find_run(model) if Path(model).is_dir() else None
    if run is not None and (task := run.config.get("task", "classification")) != "classification":
        raise UserError("These sets are for classifiers of ImageNet's classes", f"{model}, a run of the task {task}")
    if out is None and run is None:
        raise UserError("Results of a model that is no run need a folder", remedy=f"Give --out, such as runs/{NAME}")
    folder = Path(out).expanduser() if out is not None else Path(model)
    if folder.exists() and not folder.is_dir():
        raise UserError("out must be a folder", f"the file {folder}")
    return folder


def _draw(sets: dict[str, Any], folder: Path) -> list[str]:
    """Write the picture of ImageNet-C, where it was measured; the names of its files."""
    if CORRUPTED not in sets:
        return []
    from vitdistill.files import write_atomically
    from vitdistill.reporting.galleries.robustness import severity_figure
    from vitdistill.runs.directory import list_in_run

    figure, names = severity_figure(sets[CORRUPTED]), [f"{NAME}.png", f"{NAME}.svg"]
    for name in names:
        kind = name.rpartition(".")[2]
        write_atomically(folder / name, lambda file, kind=kind: figure.savefig(file, format=kind, dpi=150))
    list_in_run(*(folder / name for name in names))
    return names


def _show(result: dict[str, Any], taken: list[str], written: list[str], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    from vitdistill.reporting.galleries.robustness import corruption_words

    sets = result["sets"]
    if len(sets) > (CORRUPTED in sets):
        Console().print(_accuracies(sets))
    if CORRUPTED in sets:
        Console().print(_errors(sets[CORRUPTED]))
        print(corruption_words(sets[CORRUPTED]))
    for name, found in sets.items():
        if found["partial"]:
            print(f"{name} is partial: {'; '.join(found['partial'])}")
    if taken:
        more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
        print(f"measured before and taken over: {', '.join(taken[:3])}{more}")
    print(f"wrote {', '.join(written)} into {result['out']}")


def _accuracies(sets: dict[str, Any]) -> "Table":
    """A line for each set but ImageNet-C."""
    from rich.table import Table

    compared = any(found.get("gap") is not None for found in sets.values())
    more = ("clean %", "gap") if compared else ()
    table = Table("set", "images", "top-1 %", "top-5 %", "confidence %", *more)
    for name, found in sets.items():
        if name == CORRUPTED:
            continue
        title = SETS[name].title + (" (partial)" if found["partial"] else "")
        keys = ("top1", "top5", "confidence", *(("clean_top1", "gap") if compared else ()))
        table.add_row(title, _count(found), *(_number(found.get(key)) for key in keys))
    return table


def _errors(found: dict[str, Any]) -> "Table":
    """A line for each corruption of ImageNet-C, the extra ones last."""
    from rich.table import Table

    title = SETS[CORRUPTED].title + (" (partial)" if found["partial"] else "")
    title += ": top-1 error % at severity 1 to 5"
    table = Table("corruption", *map(str, SEVERITIES), "mean", "AlexNet", "CE", title=title)
    ours = [name for name in DENOMINATORS if name in found["cells"]]
    for name in [*ours, *(name for name in found["cells"] if name not in DENOMINATORS)]:
        cells, numbers = found["cells"][name], found["corruptions"][name]
        errors = [_number(100 - cells[str(each)]["top1"] if str(each) in cells else None) for each in SEVERITIES]
        rest = (numbers["error"], DENOMINATORS.get(name), numbers["ce"])
        table.add_row(name, *errors, *map(_number, rest), end_section=bool(ours) and name == ours[-1])
    return table


def _count(found: dict[str, Any]) -> str:
    """How many images were scored, beside how many were published where that is another number."""
    count, published = found["images"], found["published_images"]
    return f"{count:,}" if count == published else f"{count:,} of {published:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
