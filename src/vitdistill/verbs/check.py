"""`vitdistill check`: what is wrong with a data set, before a training finds out."""

import csv
import io
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from vitdistill.data.boxes.files import SIZES, BoxFiles
from vitdistill.data.segments.files import SegmentFiles
from vitdistill.errors import UserError, refuse_given
from vitdistill.files import write_atomically
from vitdistill.tasks import DistilledTask

if TYPE_CHECKING:
    from rich.console import Console

    from vitdistill.data.inspect import Finding, Survey

SHOWN = 10  # findings of a kind that are printed
OF_BOXES = ("unknown category", "empty box", "box outside", "box cut")  # of which an image may have several
MOST_CLASSES = 20  # of which each has a line


def check(
    data: Union[str, "Any"],
    *,
    task: DistilledTask = "classification",
    boxes: BoxFiles = BoxFiles(),
    labels: bool = True,
    segments: SegmentFiles = SegmentFiles(),
    workers: int | None = None,
    out: str | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Decode every sample of a data set once, and list what is wrong with it.

    That is what cannot be read and why, sizes, classes and their counts, samples that show the same under two labels or
    in both splits, and very small ones. The exit status is 1 when something cannot be read, whole or in part, else 0.
    Ctrl-C ends it early, with what was found until then.

    Args:
        data: what the training verbs take: a folder with train/ and val/, lists of videos, a container such as
            torchvision:CIFAR10, or a bundled source; or a folder with images/ and annotations/ (or masks/).
        task: what labels mean: a class for each sample, boxes around the objects in each image, or a class for each
            pixel (segmentation), which images/ beside annotations/ shows by itself.
        boxes: of the task boxes, which annotations are looked at. Boxes that are empty, or outside their image in whole
            or in part, and categories that are not listed are counted and named.
        segments: of images with masks, what these mean.
        labels: false for data without labels: any folder of images, videos or sounds.
        workers: processes that read; by default one per core up to 8.
        out: file for all that was found (.csv): kind, split, path, label and detail of each.
        json: print one JSON object in place of text.

    Returns:
        ok (whether all can be read), complete, splits (counts; least, median and most of width, height, frames, fps,
        seconds and rate), classes (counts), imbalance, repeats (samples that show the same as an earlier one),
        findings, and how many of each kind.
    """
    if out is not None and Path(out).suffix.lower() != ".csv":
        raise UserError("out must end in .csv", repr(out))
    if workers is not None and workers < 0:
        raise UserError("workers must be 0 or more", workers)
    if task != "classification" and not labels:
        raise UserError(f"--labels has no effect with --task {task}", remedy="Leave it out")
    refuse_given({"boxes": task != "boxes" and boxes != BoxFiles()}, "unless --task is boxes")
    given = {f"boxes.{name}": getattr(boxes, name) is not None for name in (*SIZES, "det_tokens", "class_weight")}
    given |= {f"segments.{name}": getattr(segments, name) is not None for name in ("ratio", "stride", "head")}
    refuse_given(given, "on what is wrong with data")
    from vitdistill.data.boxes.sources import open_boxes
    from vitdistill.data.inspect import Survey, inspections
    from vitdistill.data.loader import default_workers
    from vitdistill.data.open import open_source
    from vitdistill.data.segments.folder import is_pair_folder
    from vitdistill.data.segments.sources import open_segments
    from vitdistill.evaluation.progress import track
    from vitdistill.tasks import task_by_its_looks

    pairs = task == "segmentation" or (task == "classification" and labels and is_pair_folder(data))
    refuse_given({"segments": not pairs and segments != SegmentFiles()}, "unless the data is images with masks")
    try:
        if task == "boxes":
            source = open_boxes(data, boxes, lenient=True)
        else:
            source = open_segments(data, segments) if pairs else open_source(data, labels=labels)
    except UserError as error:
        if not labels or task != "classification":
            raise
        if (other := task_by_its_looks(data)) not in (None, task):
            raise UserError(str(error), remedy=f"It looks like data of --task {other}") from error
        open_source(data, labels=False)  # what is wrong with it even then is said
        raise UserError(str(error), remedy="To check it without labels, give --labels false") from error
    survey = Survey(source)
    stopped = None
    try:
        all_samples = inspections(source, default_workers(source) if workers is None else workers)
        for one in track(all_samples, "checking", len(source.train) + len(source.val)):
            survey.add(one)
    except KeyboardInterrupt as error:
        stopped = error
    found = survey.findings()
    result = _result(survey, found)
    if out is not None:
        _write(Path(out), found)
    _show(survey, result, found, out, json)
    if stopped is not None:
        raise stopped
    return result


def _result(survey: "Survey", found: "list[Finding]") -> dict[str, Any]:
    splits, classes = survey.splits(), survey.classes()
    return {
        "data": survey.source.name,
        "ok": not any(finding.kind in ("unreadable", "damaged", "unknown category") for finding in found),
        "complete": survey.complete,
        "splits": splits,
        "classes": classes,
        "imbalance": {
            split: _imbalance(classes, split) for split in splits if any(counts[split] for counts in classes.values())
        },
        "repeats": survey.repeats(),
        "counts": dict(Counter(finding.kind for finding in found)),
        "findings": [asdict(finding) for finding in found],
    }


def _imbalance(classes: dict[str, dict[str, int]], split: str) -> dict[str, Any]:
    """The most and the least frequent class of a split, of those that it has, and how many times as frequent."""
    counts = {name: of[split] for name, of in classes.items() if of[split]}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    return {
        "most": [most, counts[most]],
        "least": [least, counts[least]],
        "ratio": round(counts[most] / counts[least], 3),
        "empty": [name for name, of in classes.items() if not of[split]],
    }


def _write(path: Path, found: "list[Finding]") -> None:
    from vitdistill.data.inspect import Finding

    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Finding)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(finding) for finding in found)
    # Names of files need not be text in any encoding; what is none comes back as the bytes that it was.
    write_atomically(path, lambda file: file.write(text.getvalue().encode(errors="surrogateescape")))


def _show(survey: "Survey", result: dict[str, Any], found: "list[Finding]", out: str | None, as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    word = survey.source.train.word
    if not result["complete"]:
        done = sum(split["checked"] for split in result["splits"].values())
        total = sum(split["samples"] for split in result["splits"].values())
        console.print(f"stopped after {done} of {total} {word}s")
    _print_splits(console, result["splits"], f"{word}s")
    if any(any(counts.values()) for counts in result["classes"].values()):  # those of pixels are not counted
        _print_classes(console, result["classes"])
        thing = survey.source.train.thing or word
        for split, uneven in result["imbalance"].items():
            (most, high), (least, low) = uneven["most"], uneven["least"]
            empty = f"; none of {len(uneven['empty'])} classes" if uneven["empty"] else ""
            spread = (
                f"{high} {thing}s of '{most}', the most, and {low} of '{least}', the least: {uneven['ratio']:g} to 1"
            )
            even = f"{high} {thing if high == 1 else f'{thing}s'} of every class"
            console.print(f"{split}: {spread if high > low else even}{empty}")
    if result["repeats"]:
        console.print(f"{result['repeats']} {word}s show the same as an earlier one")
    _print_findings(console, found, word, out)


def _print_splits(console: "Console", splits: dict[str, dict[str, Any]], heading: str) -> None:
    from rich.table import Table

    known = ("width", "height", "frames", "fps", "seconds", "rate")
    sizes = [name for name in known if any(name in split for split in splits.values())]
    table = Table("split", heading, "unreadable", *sizes)
    for name, split in splits.items():
        # All alike is one number.
        spreads = (" / ".join(dict.fromkeys(f"{value:g}" for value in split.get(size, ()))) for size in sizes)
        table.add_row(name, str(split["samples"]), str(split["unreadable"]), *spreads)
    console.print(table)
    if sizes:
        console.print(f"of {', '.join(sizes)}: least / median / most")


def _print_classes(console: "Console", classes: dict[str, dict[str, int]]) -> None:
    from rich.table import Table

    if len(classes) > MOST_CLASSES:
        console.print(f"{len(classes)} classes; --json lists them")
        return
    table = Table("class", "train", "val")
    for name, counts in classes.items():
        table.add_row(name, str(counts["train"]), str(counts["val"]))
    console.print(table)


WORDS = {
    "unreadable": "cannot be read",
    "damaged": "damaged in part",
    "unknown category": "annotations of a category that is not listed",
    "empty box": "empty boxes, left out",
    "box outside": "boxes outside their image, left out",
    "box cut": "boxes partly outside their image, cut to it",
    "two labels": "the same under two labels",
    "both splits": "the same in both splits",
    "small": "very small",
    "short": "very short",
}


def _print_findings(console: "Console", found: "list[Finding]", word: str, out: str | None) -> None:
    if not found:
        console.print("nothing wrong was found")
    for kind, words in WORDS.items():
        these = [finding for finding in found if finding.kind == kind]
        if these:
            counted = f"{len(these)} {word}{'s' if len(these) > 1 else ''}"
            console.print(f"{words}: {len(these) if kind in OF_BOXES else counted}")
        shown: list[Finding] = []
        for finding in these:
            if kind not in OF_BOXES and any(finding.path in each.detail for each in shown):
                continue  # of samples that are the same, one line says it of all that it names
            if len(shown) == SHOWN:
                console.print("  and more" + ("" if out else "; --out FILE.csv lists all"))
                break
            shown.append(finding)
            console.print(f"  {finding.path}: {finding.detail}")
    if out:
        console.print(f"wrote {out}")
