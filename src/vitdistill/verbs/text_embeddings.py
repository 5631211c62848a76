"""`vitdistill text-embeddings`: class embeddings out of a CLIP text model."""

from pathlib import Path
from typing import Annotated, Any

from vitdistill.errors import UserError
from vitdistill.files import check_path
from vitdistill.models.names import check_saved
from vitdistill.verbs.arguments import Data

IMAGENET = "imagenet-1k"
TEMPLATE = "a photo of a {}."


def check_ending(path: str) -> None:
    """
    Raises:
        UserError: for a file that is not to be a safetensors file.
    """
    if not path.endswith(".safetensors"):
        raise UserError(
            "--out must be a file that ends in .safetensors", path, f"For example {Path(path).stem}.safetensors"
        )


def text_embeddings(
    model: str,
    *,
    out: Annotated[str, check_ending],
    data: Data | None = None,
    classes: str | None = None,
    template: str = TEMPLATE,
    batch_size: int = 256,
    device: str = "auto",
    json: bool = False,
) -> dict[str, Any]:
    """Embed the names of classes with a CLIP text model, for a CLIP teacher (`maskedkd --teacher_text`).

    The file that is written has the classes' names, so that the teacher's scores are put into the data's order by name.
    Nothing is downloaded. Needs the extra `hf`.

    Args:
        model: folder of transformers' CLIPTextModelWithProjection or CLIPModel, with its tokenizer.
        out: file to write, which ends in .safetensors.
        data: whose classes are embedded: as the training verbs take it. WordNet numbers (n01440764) stand for the first
            of their words.
        classes: in place of data: a text file with one name a line, or imagenet-1k.
        template: sentence with {} for the name, or a text file with one a line, whose embeddings are averaged.
        batch_size: sentences per step.
        device: auto, cpu, cuda, ...
        json: print one JSON object in place of text.

    Returns:
        Path, number of classes and channels, the templates, and the scale of cosine similarities.

    Raises:
        UserError: when the folder holds no CLIP text model or no tokenizer, a template has no {}, or names are missing,
            repeated or no words.
    """
    if (data is None) == (classes is None):
        both = "both" if data is not None else "neither"
        raise UserError("Give the names of classes with --data or with --classes", both)
    if batch_size < 1:
        raise UserError("batch_size must be at least 1", batch_size)
    templates = _templates(template)
    check_path(model)
    check_saved(Path(model).expanduser(), "A text model")
    names = _names(data, classes)

    from vitdistill.evaluation.loading import place_of
    from vitdistill.models.classes import first_word
    from vitdistill.models.text import TextEmbeddings
    from vitdistill.models.weights.text import TextModel, write_text_embeddings

    words = [first_word(name) for name in names]
    place = place_of(device)
    found = TextModel(Path(model).expanduser())
    features = found.embed(words, templates, batch_size=batch_size, device=place)
    path = Path(out).expanduser()
    write_text_embeddings(TextEmbeddings(features, tuple(names), found.scale), path)
    result = {
        "path": str(path),
        "classes": len(names),
        "channels": features.shape[1],
        "templates": templates,
        "scale": round(found.scale, 4),
        "alike": len(words) - len(set(words)),
    }
    _show(result, json)
    return result


def _templates(given: str) -> list[str]:
    """One template, or those of a file.

    Raises:
        UserError: when one has no place for a name.
    """
    templates = [given] if "{}" in given or not Path(given).expanduser().is_file() else _lines(given)
    for template in templates or [""]:
        if template.count("{}") != 1:
            where = f" of {given}" if len(templates) != 1 or template != given else ""
            rule = f"A template{where} must have one {{}} for the name of a class"
            raise UserError(rule, repr(template), f"For example {TEMPLATE!r}, or an existing file of such lines")
    return templates


def _names(data: Any, classes: str | None) -> list[str]:
    """The names of the classes, each once.

    Raises:
        UserError: when there are none, or one stands there twice.
    """
    if classes is None:
        from vitdistill.data.open import open_source

        source = open_source(data)
        names, where = list(source.classes), source.name
    elif classes == IMAGENET:
        from timm.data import ImageNetInfo

        names, where = list(ImageNetInfo(IMAGENET).label_names()), IMAGENET
    else:
        if not Path(classes).expanduser().is_file():
            raise UserError(f"--classes must be a text file with one name a line, or {IMAGENET}", classes)
        names, where = _lines(classes), classes
    if not names:
        raise UserError("At least one class must be named", where)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"Each class of {where} must be named once", f"{name!r} twice")
        seen.add(name)
    return names


def _lines(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError("The file must be readable text", f"{path} ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    print(f"wrote {result['path']}: {result['classes']} classes, {result['channels']} channels")
    if result["alike"]:
        print(f"{result['alike']} of them are called like another, and have its embedding")
    print(f"use it with: --teacher_text {result['path']}")
