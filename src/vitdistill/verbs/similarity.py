"""`vitdistill similarity`: how alike the frames of a clip are to teachers and students (MVD, Figs. 3 to 5)."""

from typing import TYPE_CHECKING, Any, Literal

from vitdistill.errors import UserError
from vitdistill.runs.read import Run, find_run
from vitdistill.verbs.arguments import Data

if TYPE_CHECKING:
    from torch import Tensor

    from vitdistill.data.source import DataSource
    from vitdistill.evaluation.similarity import Compared, Comparison, Wanted


def similarity(
    models: list[str],
    *,
    data: Data | None = None,
    out: str = "similarity.svg",
    clips: int = 64,
    layer: str | int = "last",
    teachers: bool = True,
    centre: bool = False,
    stride: int | None = None,
    sampling: Literal["dense", "uniform"] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    workers: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Compare the frames of a clip by their features: a matrix of cosine similarities per network.

    A time step's feature is the mean over its positions of a block's output before the final norm (what MVD's
    students predict). All networks see the same clips; those over images see the first frame of each time step.

    Args:
        models: run directories, timm names (pretrained weights are downloaded), name@weights-file, or bundled
            networks; of images or of clips.
        data: folder of videos, or a bundled source; by default that of the first run that was trained on videos.
        out: picture to write (.png, .jpg, .pdf or .svg).
        clips: validation clips to average, spread evenly over the set.
        layer: block whose output is compared: first, middle, last, or its number from 0.
        teachers: also compare the teachers of runs of mvd.
        centre: draw and list similarities after subtracting each network's mean feature over all clips (not in the
            paper): features that share a large constant part are all alike without that.
        stride: frames of the video from one frame of a dense clip to the next; by default the run's.
        sampling: dense or uniform; by default the run's.
        batch_size: clips per step.
        device: auto, cpu, cuda, ...
        workers: loader processes; by default one per core up to 8, and none for bundled data.
        json: print one JSON object, with whole matrices, in place of the table.

    Returns:
        The picture's path, the frames compared, and per network its matrix and the mean similarity of neighbours, of
        steps half a clip apart, and of the first and the last.
    """
    from vitdistill.evaluation.similarity import Wanted, compare, distinct, teachers_of
    from vitdistill.reporting.galleries.similarity import save, similarity_figure
    from vitdistill.reporting.pictures import picture_path
    from vitdistill.runs.directory import list_in_run

    if not models:
        raise UserError("similarity needs at least one run or model")
    path = picture_path(out)
    runs = [find_run(model) for model in models]
    source, settings = _source(data, runs)
    wanted: list[Wanted] = []
    for model, run in zip(models, runs, strict=True):
        wanted += [*(teachers_of(run.config) if teachers and run is not None else []), Wanted(model)]
    kind = sampling or settings.get("sampling") or "dense"
    found = compare(
        _opened(distinct(wanted), layer),
        source,
        clips=clips,
        stride=settings.get("stride") if stride is None and kind == "dense" else stride,
        sampling=kind,
        batch_size=batch_size,
        device=device,
        workers=workers,
    )
    save(similarity_figure(found.centred if centre else found.plain, found.steps), path)
    list_in_run(path)
    result = {"figure": str(path), "data": source.name, "centred": centre, **_as_dict(found, centre)}
    _show(result, json)
    return result


def _source(data: Data | None, runs: list[Run | None]) -> tuple["DataSource", dict[str, Any]]:
    """The videos, and the configuration of the run that says how clips were taken from them.

    Raises:
        UserError: when none are named, or there is no such data.
    """
    from vitdistill.data.open import open_source

    known = [run for run in runs if run is not None]
    if data is not None:
        return open_source(data, labels=False), next((run.config for run in known if "stride" in run.config), {})
    source = None
    for run in known:
        if run.config.get("data"):
            source = run.source(labels=run.config.get("task", "classification") != "classification")
            if source.val.has_frames:
                return source, run.config
    if source is None:
        raise UserError("Videos must be named where no run says which it was trained on", remedy="Give --data")
    raise UserError(
        "Frames are compared in videos, and no run was trained on any",
        f"{source.name}, which holds {source.val.word}s",
        "Give --data",
    )


def _opened(wanted: list["Wanted"], layer: str | int) -> list["Compared"]:
    """The networks; those of one name by all that the user called them.

    Raises:
        UserError: when one cannot be had.
    """
    from vitdistill.evaluation.similarity import Compared
    from vitdistill.models.backbone import with_tokens
    from vitdistill.models.build import build

    names = [one.name for one in wanted]
    networks = []
    for one in wanted:
        try:
            backbone = with_tokens(build(one.spec, args=one.args, pretrained=True))
        except UserError as error:
            if one.role == "model":
                raise
            raise UserError(
                f"The {one.role} of a run cannot be had: {error}", remedy="Or give --teachers false"
            ) from error
        name = one.name if names.count(one.name) == 1 else one.spec
        networks.append(Compared(name, backbone, one.role, backbone.block_index(layer)))
    return networks


def _as_dict(found: "Comparison", centre: bool) -> dict[str, Any]:
    chosen = found.centred if centre else found.plain
    return {
        "clips": found.clips,
        "unreadable": len(found.unreadable),
        "frames": found.steps.frames,
        "step_frames": found.steps.first_frames,
        "half": found.steps.half,
        "models": [
            {
                "name": one.name,
                "role": one.role,
                "block": one.block,
                "neighbours": round(one.apart(1), 6),
                "half_apart": round(one.apart(found.steps.half), 6),
                "first_and_last": round(one.apart(found.steps.count - 1), 6),
                "matrix": _rounded(one.matrix),
            }
            for one in chosen
        ],
    }


def _rounded(matrix: "Tensor") -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in matrix.tolist()]


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "role", "block", "neighbours", f"{result['half']} steps apart", "first and last")
    for each in result["models"]:
        values = (each["neighbours"], each["half_apart"], each["first_and_last"])
        table.add_row(each["name"], each["role"], str(each["block"]), *(f"{value:.3f}" for value in values))
    Console().print(table)
    steps, centred = len(result["step_frames"]), "centred " if result["centred"] else ""
    print(
        f"wrote {result['figure']} ({centred}cosine similarity of {steps} time steps, over {result['clips']} clips of "
        f"{result['data']})"
    )
