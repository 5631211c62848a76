"""`vitdistill masks`: pictures of what the teacher saw."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdistill.errors import UserError
from vitdistill.models.names import is_saved
from vitdistill.runs.read import find_run

if TYPE_CHECKING:
    from vitdistill.data.source import DataSource


def masks(
    models: list[str],
    *,
    images: str | None = None,
    out: str = "masks.png",
    keep: int | float | None = None,
    count: int = 8,
    layer: str | int | None = None,
    saliency: Literal["cls", "patch", "pool", "det"] | None = None,
    seed: int = 0,
    heatmap: bool = True,
    student_args: dict[str, Any] | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Draw which patches students keep: dropped patches dimmed, and how often each position is kept.

    `vitdistill masks runs/tiny images/` takes the last word for the images if it is no run and no model.

    Args:
        models: run directories, checkpoints (runs/x/checkpoints/last.ckpt), or names of untrained students; one
            column each.
        images: image file, folder of images, or bundled data; by default the validation images of the first run.
        out: picture to write (.png, .jpg, .pdf or .svg); the heat map goes beside it as NAME-heatmap.png.
        keep: patches to keep, a count or a fraction; by default what the run ends with, or half.
        count: images to show.
        layer: block whose attention ranks the patches: first, middle, last, or its number from 0; by default the
            run's, or the last.
        saliency: attention of the class token, received from all patches, of the pooling head, or of detection tokens;
            by default the run's, or that of the class token (of a detector, det).
        seed: which images are drawn, and how untrained students are initialised.
        heatmap: also draw how often each position is kept, over up to 256 images.
        student_args: further arguments of untrained students.
        json: print one JSON object in place of text.

    Returns:
        Paths of the pictures, and per model the grid, the patches kept, the share of images keeping each position, and
        the structure of its masks over all images: joint (how often neighbouring patches are kept or dropped together;
        1 for random masks), centre and edge (shares of the patches that are kept there), and correlation by distance.
    """
    from vitdistill.data.images.folder import list_images
    from vitdistill.data.open import address_of, bundled, check_there, open_source
    from vitdistill.data.order import seed_everything_at
    from vitdistill.reporting.galleries.masks import (
        Column,
        heatmap_figure,
        keep_heatmap,
        kept_by,
        mask_grid_figure,
        masks_of,
        normalised,
        some_images,
    )
    from vitdistill.reporting.pictures import picture_path
    from vitdistill.runs.directory import list_in_run
    from vitdistill.tokens.keep import KeepSchedule
    from vitdistill.tokens.structure import MaskStructure

    models, images = _split(list(models), images)
    if count < 1:
        raise UserError("count must be at least 1", count)
    path = picture_path(out)
    seed_everything_at(seed, "initialisation")
    students = [(_title(spec), _load(spec, student_args)) for spec in models]
    for title, student in students:
        if student.input.frames is not None:
            remedy = "The report page of a run on videos has its pictures, and `similarity` compares frames"
            raise UserError(f"masks shows images; {title} sees clips", remedy=remedy)
    named = images or _data_of(models)
    if not Path(named).exists():
        check_there(named)
    source = _own_source(models) if images is None else None
    if source is None:
        is_source = named in bundled() or address_of(named) is not None or (Path(named) / "train").is_dir()
        source = open_source(named, labels=False) if is_source else None
    paths = [] if source else list_images(named)
    batch = some_images(source, paths, students[0][1].input.size, max(count, 256 if heatmap else 0), seed)
    columns = []
    for spec, (title, student) in zip(models, students, strict=True):
        run = find_run(spec)  # what its teacher saw, as far as the student's attention decided it
        own = {} if run is None else run.config
        ended = KeepSchedule.parse(keep if keep is not None else (run and kept_by(run)) or 0.5)
        kept = masks_of(
            student,
            normalised(batch, student),
            ended.count(1.0, student.grid.count),
            layer=layer if layer is not None else own.get("saliency_layer", "last"),
            kind=saliency or own.get("saliency"),
            order=own.get("order", "top"),
        )
        columns.append(Column(f"{title}\n{kept.shape[1]} of {student.grid.count}", kept, student.grid))

    shown = [Column(c.title, c.kept[:count], c.grid) for c in columns]
    beside = path.with_name(f"{path.stem}-heatmap{path.suffix}")
    replaced = [str(each) for each in (path, *([beside] if heatmap else [])) if each.exists()]
    mask_grid_figure(batch[:count], shown).savefig(path, dpi=150)
    list_in_run(path)
    result: dict[str, Any] = {"masks": str(path), "images": len(batch), "replaced": replaced, "models": []}
    if heatmap:
        heatmap_figure(columns).savefig(beside, dpi=150)
        list_in_run(beside)
        result["heatmap"] = str(beside)
    for (title, _), column in zip(students, columns, strict=True):
        shares = keep_heatmap(column.kept, column.grid)
        structure = MaskStructure(column.grid, column.kept.shape[1])
        structure.add(column.kept)
        result["models"].append(
            {
                "name": title,
                "grid": str(column.grid),
                "kept": column.kept.shape[1],
                "share_kept": shares.tolist(),
                "joint": round(structure.joint, 6),
                "centre": round(structure.centre, 6),
                "edge": None if structure.edge is None else round(structure.edge, 6),
                "correlation": {step: round(value, 6) for step, value in structure.correlation().items()},
            }
        )
    _show(result, json)
    return result


def _split(models: list[str], images: str | None) -> tuple[list[str], str | None]:
    """The last word names the images, if it is a folder or file that is no run and no checkpoint."""
    if images is None and len(models) > 1:
        last = Path(models[-1])
        if last.exists() and last.suffix != ".ckpt" and not ((last / "student.json").is_file() or is_saved(last)):
            return models[:-1], models[-1]
    if not models:
        raise UserError("masks needs at least one run, checkpoint or model name")
    return models, images


def _title(spec: str) -> str:
    path = Path(spec)
    if path.suffix == ".ckpt":
        return f"{path.parent.parent.name}/{path.stem}"
    return path.name if path.is_dir() else f"{spec} (untrained)"


def _load(spec: str, args: dict[str, Any] | None) -> Any:
    from vitdistill.models.backbone import with_tokens
    from vitdistill.models.build import build
    from vitdistill.training.checkpoints import load_student

    return with_tokens(load_student(spec) if spec.endswith(".ckpt") else build(spec, args=args))


def _data_of(models: list[str]) -> str:
    """The data of the first run among the models."""
    for spec in models:
        run = find_run(spec)
        data = None if run is None else run.config.get("data")
        if data or spec.startswith("digits"):
            return str(data or "digits")
    raise UserError("Images must be named where no run says which data it used", remedy="Give --images")


def _own_source(models: list[str]) -> "DataSource | None":
    """The data of the first run, where its task alone can open it; else None."""
    runs = [run for run in map(find_run, models) if run is not None and run.config.get("data")]
    return runs[0].source() if runs and runs[0].config.get("task", "classification") != "classification" else None


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    print(f"wrote {result['masks']}")
    if "heatmap" in result:
        print(f"wrote {result['heatmap']} (over {result['images']} images)")
    for model in result["models"]:
        edge = "" if model["edge"] is None else f", at the edge {100 * model['edge']:.0f}%"
        print(
            f"{model['name']}: neighbours are kept or dropped together {model['joint']:.2f} times as often as in "
            f"random masks; kept in the centre {100 * model['centre']:.0f}%{edge}"
        )
    if result["replaced"]:
        print(f"in place of what was there: {', '.join(result['replaced'])}")
