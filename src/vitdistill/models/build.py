"""From a name, a file, a run directory or a module object to a `Network`."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.hub import hub_in_reach
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.classes import published_classes
from vitdistill.models.families import as_network
from vitdistill.models.families.ast import STATISTICS_ARGUMENT as STATISTICS
from vitdistill.models.families.dist_token import ARGUMENT, append_dist_token
from vitdistill.models.families.linear_only import linear_only
from vitdistill.models.names import AUDIO, OURS, VIDEO, absolute_model, check_model_there, unknown_model
from vitdistill.models.network import DEFAULT_MEAN, Network, Opaque
from vitdistill.models.presets import BUNDLED, PRESETS
from vitdistill.models.record import (
    WEIGHTS,
    ModelRecord,
    attach_record,
    mark_new_head,
    record_of,
    set_preprocessing,
    set_statistics,
)
from vitdistill.models.sizes import check_patches, check_size, feed, fixed_size, pair
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.models.weights.folder import Folder, cached_folder, open_folder, record_beside
from vitdistill.models.weights.positions import FILE_SIZE
from vitdistill.models.weights.read import adapt, classes_in, load_into, read_weights, without_classifier
from vitdistill.models.weights.videomae import arguments_for, unwrapped

log = logging.getLogger(__name__)


def build(
    spec: str | nn.Module,
    *,
    args: dict[str, Any] | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
    meta: bool = False,
) -> Network:
    """A network behind its adapter.

    Args:
        spec: a timm name (`deit_small_patch16_224`), a name with a weights file (`deit_small_patch16_224@file.pth`),
            a hub name (`hf-hub:owner/model`), a run directory, a folder of transformers' `save_pretrained`, a bundled
            name (`digits-teacher`, `digits_vit_small`), a module object, or a `Network`, which is returned as it is.
        args: more arguments of the architecture (depth, embed_dim, drop_path_rate, ...); `file_img_size` is the
            height and width that a weights file was trained on, where the file does not say it; `dist_token` gives a
            ViT a distillation token without a position (G2SD).
        num_classes: classes of the head. A weights file with another number keeps its body and gets a new head.
            None keeps what the file or the architecture says.
        image_size: input size in pixels; position embeddings are resampled.
        pretrained: for a bare timm or hub name, download timm's weights.
        meta: build without memory and without weights, for counting costs.

    Raises:
        UserError: for an unknown name, a file that does not fit, or weights that cannot be had.
    """
    if isinstance(spec, nn.Module):
        return as_network(spec)
    check_model_there(spec)
    spec = absolute_model(spec) if "~" in spec else spec
    args = dict(args or {})
    image_size = None if "img_size" in args else image_size  # the more explicit one wins
    with torch.device("meta" if meta else "cpu"):
        net = _from_text(spec, args, num_classes, image_size, pretrained, meta)
    return as_network(net)


def _from_text(
    spec: str,
    args: dict[str, Any],
    num_classes: int | None,
    image_size: int | None,
    pretrained: bool,
    meta: bool,
) -> nn.Module:
    folder = BUNDLED.get(spec) or (Path(spec) if spec and Path(spec).is_dir() else None)
    if folder is None and spec.startswith("hf-hub:"):
        folder = cached_folder(spec)
    saved = None if folder is None else open_folder(folder)
    if saved is not None:
        return _saved(saved, args, num_classes, image_size, meta, with_weights=pretrained or Path(spec).is_dir())
    if folder is not None:
        record = ModelRecord.read(folder)
        if record.architecture is None:
            raise UserError(f"{folder} was trained from a module object, so it can only be rebuilt in Python")
        of_hub = folder / "model.safetensors"  # of a folder that `export --format hub` wrote
        weights = of_hub if of_hub.is_file() and not (folder / WEIGHTS).is_file() else folder / WEIGHTS
        if not meta and not weights.is_file():
            raise UserError(
                "A run given as a model must be finished",
                f"{folder} without {WEIGHTS}",
                f"Continue it with `vitdistill resume {folder}`",
            )
        return _with_file(
            record.architecture,
            {**record.args, **args},
            num_classes,
            image_size,
            weights,
            meta,
            record,
        )
    name, separator, file = spec.partition("@")
    if separator and not file:
        raise UserError("The weights file must exist", f"none behind {name}@")
    preset, preset_args = PRESETS.get(name, (name, {}))
    stored = ModelRecord.of_file(Path(file)) or record_beside(Path(file)) if separator else None
    args = {**preset_args, **_recorded(stored, preset, args, file), **args}
    if not separator:
        if FILE_SIZE in args:
            raise UserError(f"{FILE_SIZE} belongs to a weights file", spec, "Leave it out")
        if pretrained and (name in PRESETS or (name.startswith(OURS) and not name.startswith(AUDIO))):
            verbs = "videomae or supervised" if preset.startswith(VIDEO) else "supervised"
            raise UserError(
                f"{name} has no published weights that can be downloaded",
                remedy=f"Give {name}@weights-file, or train it with {verbs} and give the run directory",
            )
        try:
            net = _from_timm(preset, args, num_classes, image_size, pretrained and not meta)
        except UserError:
            if spec.startswith("hf-hub:"):
                cached_folder(spec)  # timm may have fetched a configuration that is transformers', which says more
            raise
        if pretrained:
            if net.num_classes and net.num_classes != (getattr(net, "pretrained_cfg", None) or {}).get("num_classes"):
                mark_new_head(net)
            record_of(net).classes = published_classes(net)
        return net
    return _with_file(preset, args, num_classes, image_size, Path(file), meta, stored)


def _saved(
    saved: Folder,
    args: dict[str, Any],
    num_classes: int | None,
    image_size: int | None,
    meta: bool,
    *,
    with_weights: bool,
) -> nn.Module:
    """The network of a folder of `save_pretrained`, at the size to which the folder brings images."""
    record, given = saved.record, {**saved.record.args, **args}
    if record.architecture is None:
        raise UserError(f"{saved.weights.parent} was trained from a module object, so it can only be rebuilt in Python")
    if image_size is None and saved.image_size is not None and "img_size" not in args:
        given["img_size"] = list(saved.image_size)
    if with_weights:
        net = _with_file(record.architecture, given, num_classes, image_size, saved.weights, meta, record)
    else:
        net = _from_timm(record.architecture, given, num_classes, image_size, pretrained=False)
        set_statistics(net, record.mean, record.std)
    net.pretrained_cfg = {**(net.pretrained_cfg or {}), **saved.preparation}  # type: ignore[assignment, dict-item]
    return net


def _recorded(record: ModelRecord | None, name: str, asked: dict[str, Any], file: str) -> dict[str, Any]:
    """What a weights file says of the arguments of its network, of which the weights' shapes show but a part."""
    if record is None:
        return {}
    heads = record.args.get("num_heads")
    if heads is not None and asked.get("num_heads", heads) != heads:
        log.warning("%s was trained with %s attention heads, not %s", file, heads, asked["num_heads"])
    if (record.architecture or "").partition(".")[0] == name.partition(".")[0]:
        return record.args
    return {} if heads is None else {"num_heads": heads}


def _from_timm(
    name: str, args: dict[str, Any], num_classes: int | None, image_size: int | None, pretrained: bool
) -> nn.Module:
    """A network by timm or hub name, with timm's weights or randomly initialised."""
    if not name.startswith("hf-hub:") and not timm.is_model(name.partition(".")[0]):
        raise unknown_model(name, timm.list_models())
    if num_classes is not None:
        args["num_classes"] = num_classes
    if image_size is not None:
        args["img_size"] = image_size
    size = args.setdefault("img_size", None)
    if size is not None:
        pair(size)  # refuses what is no size
    if pretrained and not name.startswith("local-dir:"):
        hub_in_reach()
    own = {key: value for key, value in args.items() if key != ARGUMENT}
    try:
        net = fixed_size(timm.create_model(name, pretrained=pretrained, **own), name, own)
        args.update(own)
        if args.get(ARGUMENT):
            append_dist_token(net)
    except UserError:  # our own networks say what is wrong
        raise
    except (TypeError, AssertionError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, TypeError) and size is not None and "'img_size'" in str(error):
            # A CNN has no size of its own, and takes what it is fed.
            args = {key: value for key, value in args.items() if key != "img_size"}
            net = _from_timm(name, dict(args), None, None, pretrained)
            check_size(name, args, size)
            feed(net, size)
            return net
        if isinstance(error, TypeError) and args.get("drop_path_rate") and "'drop_path_rate'" in str(error):
            raise UserError(
                f"{name} has no drop path that could be set", args["drop_path_rate"], "Use --drop_path 0"
            ) from error
        if "Invalid pretrained tag" in str(error):
            architecture, _, tag = name.partition(".")
            tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
            raise UserError(
                f"timm has no weights {tag!r} of {architecture}", remedy=f"There are: {', '.join(tags) or 'none'}"
            ) from error
        if size is not None:
            check_size(name, args, size)
        raise UserError(f"{name} cannot be built with {args}", _short(error), "Check its arguments") from error
    except Exception as error:  # the hub raises its own kinds of errors, depending on its version
        if not pretrained and not name.startswith("hf-hub:"):
            raise UserError(f"{name} cannot be built with {args}", _short(error), "Check its arguments") from error
        raise UserError(
            f"The weights of {name} must be in timm's cache or downloadable",
            _short(error),
            f"Download them elsewhere and give '{name}@weights-file'",
        ) from error
    feed(net, channels=args.get("in_chans"))
    check_patches(name, net)
    if size is not None and isinstance(as_network(net), Opaque):
        check_size(name, args, size)
    _warn_about_activation(name, pretrained)
    attach_record(net, _record(name, args, net))
    return net


def _with_file(
    name: str,
    args: dict[str, Any],
    num_classes: int | None,
    image_size: int | None,
    file: Path,
    meta: bool,
    record: ModelRecord | None = None,
    weights: dict[str, Tensor] | None = None,
) -> nn.Module:
    """A network with weights from a file, its class count taken from the file unless one is asked for.

    A file without a classifier (a pre-trained encoder) makes a network without one, unless classes are asked for; and
    where none is asked for, a classifier in the file is left out.
    """
    if record is not None and record.features:
        return _linear_only(name, args, num_classes, image_size, file, meta, record)
    recorded = _trained_as(record, args)
    args = {key: value for key, value in args.items() if key != FILE_SIZE}
    if meta:
        return _from_timm(name, args, num_classes, image_size, pretrained=False)
    weights = read_weights(file) if weights is None else weights
    if name.startswith(VIDEO):
        weights = unwrapped(weights, file)
        args = arguments_for(weights, args)
    probe = _from_timm(name, dict(args), None, image_size, pretrained=False)
    # Converted before its classes are counted: a foreign file may name its head otherwise.
    weights = adapt(weights, probe, recorded, file)
    in_file = classes_in(weights, probe)
    wanted = num_classes if num_classes is not None else in_file or 0
    net = probe if wanted in (None, probe.num_classes) else _from_timm(name, args, wanted, image_size, False)
    new_head = wanted != (in_file or 0)
    if not wanted:
        weights = without_classifier(weights, probe)
    load_into(net, weights, str(file), new_head=new_head)
    if in_file is None and record is None and not name.startswith(AUDIO):
        warn_about_statistics(name, file, net)
    if new_head and wanted and (in_file or record is None):
        log.warning("%s: a new classifier for %s classes (the file has %s)", file, wanted, in_file or "none")
    if new_head and wanted:
        mark_new_head(net)
    if record is not None:
        record_of(net).classes = [] if new_head else record.classes
        if args.get(STATISTICS) == record.args.get(STATISTICS):  # where others are asked for, the network has them
            set_statistics(net, record.mean, record.std)
        if record.heads:
            set_heads(with_tokens(as_network(net)), record.heads)
        _set_preprocessing(net, record, sized=image_size is not None or args.get("img_size") is not None)
    return net


def _linear_only(
    name: str,
    args: dict[str, Any],
    num_classes: int | None,
    image_size: int | None,
    file: Path,
    meta: bool,
    record: ModelRecord,
) -> nn.Module:
    """A frozen body with the classifier that a linear-only training left; the body alone where no classes are wanted.

    The file has the body under timm's names, and the classifier beside it.
    """
    weights = {} if meta else read_weights(file)
    head = {part: weights.pop(f"head.{part}", None) for part in ("weight", "bias")}
    plain = replace(record, features="", classes=[], args={**record.args, "num_classes": 0})
    body = _with_file(name, {**args, "num_classes": 0}, 0, image_size, file, meta, plain, weights)
    stored = int(record.args["num_classes"])
    wanted = stored if num_classes is None else num_classes
    if not wanted:
        return body
    network = linear_only(as_network(body), wanted, record.features)
    if wanted != stored:
        log.warning("%s: a new classifier for %s classes (the file has %s)", file, wanted, stored)
        mark_new_head(network.net)
    elif not meta:
        load_into(network.net, {f"head.{part}": value for part, value in head.items() if value is not None}, str(file))
        record_of(network.net).classes = list(record.classes)
    return network.net


def _trained_as(record: ModelRecord | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the network that a file was trained as, the size of its images among them where that is known."""
    recorded = {} if record is None else dict(record.args)
    if record is not None and record.architecture and recorded.get("img_size") is None:
        config = timm.get_pretrained_cfg(record.architecture, allow_unregistered=True)
        if config is not None and config.input_size:
            recorded["img_size"] = config.input_size[-2:]
    if asked.get(FILE_SIZE) is not None:
        recorded[FILE_SIZE] = pair(asked[FILE_SIZE])
    return recorded


def rebuild(record: ModelRecord, **args: Any) -> Network:
    """The network of a record, with random weights.

    Args:
        record: from `student.json`.
        args: arguments of the architecture in place of the record's.

    Raises:
        UserError: when it was trained from a module object.
    """
    if record.architecture is None:
        raise UserError("A network that was given as a module object can only be rebuilt in Python")
    asked = {**record.args, **args}
    network = build(record.architecture, args={**asked, "num_classes": 0} if record.features else asked)
    if record.heads:
        set_heads(with_tokens(network), record.heads)
    if record.features:
        network = linear_only(network, int(asked["num_classes"]), record.features)
    set_statistics(network.net, record.mean, record.std)
    if "num_classes" not in args:
        record_of(network.net).classes = list(record.classes)
    _set_preprocessing(network.net, record, sized={**record.args, **args}.get("img_size") is not None)
    return network


def _set_preprocessing(net: nn.Module, record: ModelRecord, *, sized: bool) -> None:
    """What a record says of it; a network without a size of its own (a CNN) gets the recorded one if none is given."""
    network = as_network(net)
    own = network.input.size if isinstance(network, Backbone) or sized else None
    if record.preprocessing:
        set_preprocessing(net, record.preprocessing, own or record.preprocessing["size"])


def _record(name: str, args: dict[str, Any], net: nn.Module) -> ModelRecord:
    network = as_network(net)
    kwargs = {key: value for key, value in args.items() if value is not None and key != "drop_path_rate"}
    kwargs["num_classes"] = network.num_classes
    return ModelRecord(name, kwargs, list(network.input.mean), list(network.input.std))


def _warn_about_activation(name: str, pretrained: bool) -> None:
    """OpenAI's and DFN's CLIP weights were trained with QuickGELU, which timm has under separate names."""
    architecture, _, tag = name.partition(".")
    if (
        pretrained
        and "_clip_" in architecture
        and "quickgelu" not in architecture
        and tag.startswith(("openai", "dfn"))
    ):
        log.warning("%s: these CLIP weights expect QuickGELU; use the '_clip_quickgelu_' architecture", name)


def warn_about_statistics(name: str, file: Path, net: nn.Module) -> None:
    """Pre-trained encoders come in bare files; the architecture's name alone says what images they expect."""
    mean = as_network(net).input.mean
    if "." not in name and tuple(mean) != DEFAULT_MEAN:
        log.warning(
            "%s: images are normalised with the mean %s of timm's %s; if the file is MAE's, give %s.mae@%s",
            *(file, mean, name, name, file),
        )


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
