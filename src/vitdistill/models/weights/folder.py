"""A folder of `save_pretrained`, or a repository of the hub in the local cache: which network, and its weights."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from vitdistill.errors import UserError
from vitdistill.files import AVERAGED, FULL, RECORD, WEIGHTS
from vitdistill.models.names import CONFIG, is_saved
from vitdistill.models.record import ModelRecord
from vitdistill.models.sizes import pair
from vitdistill.models.weights import videomae
from vitdistill.models.weights.content import NAMES, read_shapes, weights_in
from vitdistill.models.weights.layouts import LAYOUTS, anchors
from vitdistill.models.weights.positions import Size
from vitdistill.models.weights.unwrap import tensors_of, without_prefix

_ARGUMENTS = {kind: layout.arguments for layout in LAYOUTS for kind in layout.model_types}
_ARGUMENTS |= dict.fromkeys(videomae.MODEL_TYPES, videomae.arguments)
_HEADS = re.compile(r"(^|\.)(classifier|cls_classifier|visual_projection)\.weight$")


class Folder(NamedTuple):
    """What a folder says of its network.

    Attributes:
        record: of the network as it was trained.
        weights: their file.
        image_size: of the images as the folder prepares them, where that is another size than the network's.
        preparation: `crop_pct` and `interpolation` of the images, as timm's configurations have them.
    """

    record: ModelRecord
    weights: Path
    image_size: Size | None
    preparation: dict[str, Any]


def open_folder(folder: Path) -> Folder | None:
    """What a folder with config.json holds; None for a folder without one, and for a run directory.

    Raises:
        UserError: when its network is of a kind that is not known, or its files are damaged.
    """
    if not is_saved(folder):
        return None
    if (folder / RECORD).is_file():
        return Folder(ModelRecord.read(folder), weights_in(folder), None, {})
    config = _json(folder / CONFIG)
    if "architecture" in config:
        return _of_timm(config, folder)
    kind = str(config.get("model_type"))
    arguments = _ARGUMENTS.get(kind)
    if arguments is None:
        raise UserError(
            f"The model_type in {folder / CONFIG} must be one of {', '.join(_ARGUMENTS)}",
            repr(kind),
            "Other networks of timm can be given as name@folder, if the weights have timm's names",
        )
    weights = weights_in(folder)
    tensors = without_prefix(tensors_of(read_shapes(weights), weights), {}, anchors(), weights)
    try:
        architecture, args = arguments(config, tensors)
        images = _images(folder)
        size, preparation = _image_size(images, args), _preparation(images)
        mean, std = _statistics(images, args.get("in_chans", 3))
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / CONFIG} must describe a network", f"{type(error).__name__}: {error}") from error
    heads = {name: value.shape for name, value in tensors.items() if _HEADS.search(name)}
    # DINOv2's classifier reads twice the channels of a token, which no network of timm does.
    fitting = {name: shape[0] for name, shape in heads.items() if shape[1] == args["embed_dim"]}
    args.setdefault("num_classes", next(iter(fitting.values()), 0))  # a layout may know better
    named = any("classifier" in name for name in fitting) or (not heads and args["num_classes"] > 0)
    record = ModelRecord(
        architecture,
        args,
        mean,
        std,
        _classes(config) if named else [],
    )
    return Folder(record, weights, size, preparation)


def record_beside(file: Path) -> ModelRecord | None:
    """What is known of the network in a weights file from what lies beside it, or from the run that wrote it.

    Args:
        file: or a folder of `save_pretrained`, or a run.
    """
    folder = file if file.is_dir() else file.parent
    if file.parent.name == "checkpoints" and (folder.parent / RECORD).is_file():
        return ModelRecord.read(folder.parent)
    if (file.is_dir() or file.name in (WEIGHTS, AVERAGED, FULL)) and (folder / RECORD).is_file():
        return ModelRecord.read(folder)
    if not (file.is_dir() or file.name in NAMES):
        return None
    try:
        found = open_folder(folder)
    except UserError:  # the name of the architecture was given, so the folder need not say it
        return None
    return None if found is None else found.record


def cached_folder(spec: str) -> Path | None:
    """The snapshot of a hub repository in transformers' format in the local cache; None for timm's own, or none.

    Raises:
        UserError: when its weights are not there.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = spec.removeprefix("hf-hub:").partition("@")
    try:
        config = try_to_load_from_cache(repository, CONFIG, revision=revision or None)
    except ValueError:  # no name of a repository; timm says so
        return None
    if not isinstance(config, str) or "model_type" not in (content := _json(Path(config))) or "architecture" in content:
        return None
    folder = Path(config).parent
    if not any((folder / name).is_file() for name in NAMES):
        raise UserError(
            f"The weights of {spec} must be in the local cache of the hub",
            f"{folder} without them",
            f"Fetch them with `hf download {repository}`",
        )
    return folder


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("A folder's configuration must be JSON", f"{path} ({error})") from error
    if not isinstance(content, dict):
        raise UserError("A folder's configuration must be a JSON object", f"{path}: {type(content).__name__}")
    return content


def _of_timm(config: dict[str, Any], folder: Path) -> Folder:
    """A folder that timm has saved for the hub."""
    images = config.get("pretrained_cfg") or config
    args = dict(config.get("model_args") or {})
    if config.get("num_classes") is not None:
        args["num_classes"] = config["num_classes"]
    size = images.get("input_size")
    if size and (images.get("fixed_input_size", True) or args.get("dynamic_img_size")):
        args.setdefault("img_size", list(size[-2:]))
    if args.get("dynamic_img_size"):
        args["dynamic_img_size"] = False  # a fixed patch grid; positions are resampled when it is built
    labels = config.get("label_names") or images.get("label_names") or []
    names = list(labels.values()) if isinstance(labels, dict) else list(labels)
    record = ModelRecord(
        config["architecture"], args, list(images.get("mean") or ()), list(images.get("std") or ()), names
    )
    return Folder(record, weights_in(folder), None, {})


def _classes(config: dict[str, Any]) -> list[str]:
    """Names of the classes by number; none where they are transformers' placeholders."""
    given = config.get("id2label") or {}
    given = given if isinstance(given, dict) else dict(enumerate(given))
    if not all(str(number).isdecimal() for number in given):
        return []
    names = {int(number): str(name) for number, name in given.items()}
    ordered = [names[number] for number in sorted(names)]
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in ordered)
    return [] if placeholders or sorted(names) != list(range(len(names))) else ordered


# PIL's numbers of interpolations, by which transformers writes them.
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def _preparation(images: dict[str, Any]) -> dict[str, Any]:
    """How images are resized and cropped for the network; empty where the folder does not say."""
    resized, cropped = _sides(images.get("size")), _crop(images)
    found: dict[str, Any] = {}
    if resized:
        found["crop_pct"] = 1.0 if cropped is None else min(min(cropped) / min(resized), 1.0)
    if images.get("resample") in _INTERPOLATIONS:
        found["interpolation"] = _INTERPOLATIONS[images["resample"]]
    return found


def _images(folder: Path) -> dict[str, Any]:
    """How transformers makes images ready for the network: a file of its own, or part of a processor's."""
    own = _json(folder / "preprocessor_config.json")
    return own or dict(_json(folder / "processor_config.json").get("image_processor") or {})


def _statistics(images: dict[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for pixels in 0..1, where transformers rescales and normalises in two steps."""
    mean, std = images.get("image_mean"), images.get("image_std")
    if images.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    if mean is None or std is None:
        return [], []
    factor = images.get("rescale_factor") if images.get("do_rescale", True) else 1.0
    scale = 1.0 if factor is None or math.isclose(255 * factor, 1.0, abs_tol=1e-3) else 255 * factor
    values = (
        [float(v) / scale for v in (side if isinstance(side, list) else [side] * channels)] for side in (mean, std)
    )
    return next(values), next(values)


def _image_size(images: dict[str, Any], args: dict[str, Any]) -> Size | None:
    """The size to which the folder's own preparation brings images, if the network's patches divide it."""
    wanted, patch = _crop(images) or _sides(images.get("size")), pair(args["patch_size"])
    if wanted is None or any(pixels % side for pixels, side in zip(wanted, patch, strict=True)):
        return None
    return wanted if wanted != pair(args["img_size"]) else None


def _crop(images: dict[str, Any]) -> Size | None:
    return _sides(images.get("crop_size")) if images.get("do_center_crop", "crop_size" in images) else None


def _sides(size: Any) -> Size | None:
    """Height and width in transformers' several spellings."""
    if isinstance(size, dict) and "height" in size:
        return int(size["height"]), int(size["width"])
    side = size.get("shortest_edge") if isinstance(size, dict) else size
    return None if side is None else pair(side)
