"""Class embeddings of CLIP: made by a text model of transformers, and the file that holds them.

The file is a safetensors file with `text_features` (classes, channels), `logit_scale` (the natural logarithm of the
scale of cosine similarities, as CLIP's own parameter of this name) and, in its metadata, `classes`: a JSON list of
names. Files with the one tensor alone, which `--teacher_text` took before, are read as well.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vitdistill.errors import UserError, error_words
from vitdistill.files import write_atomically
from vitdistill.models.names import CONFIG, check_saved
from vitdistill.models.text import SCALE, TextEmbeddings
from vitdistill.models.weights.read import read_weights

log = logging.getLogger(__name__)

FEATURES, LOGIT_SCALE, CLASSES = "text_features", "logit_scale", "classes"
MODEL_TYPES = ("clip", "clip_text_model")


def write_text_embeddings(text: TextEmbeddings, path: Path) -> None:
    """Write embeddings with the names of their classes and their scale.

    Raises:
        UserError: when the file cannot be written.
    """
    tensors = {FEATURES: text.features.float().contiguous(), LOGIT_SCALE: torch.tensor(math.log(text.scale))}
    content = save(tensors, {CLASSES: json.dumps(list(text.classes), ensure_ascii=False)})
    write_atomically(path, lambda file: file.write(content))


def read_text_embeddings(path: Path) -> TextEmbeddings:
    """Read what `write_text_embeddings` wrote, or a file with a single tensor of shape (classes, channels).

    Raises:
        UserError: when the file is none of these, or says what cannot be.
    """
    tensors = read_weights(path)
    features = tensors.pop(FEATURES, None)
    scale = tensors.pop(LOGIT_SCALE, None) if features is not None else None
    if features is None and len(tensors) == 1:
        features = tensors.popitem()[1]
    if features is None or tensors or features.ndim != 2:
        raise UserError(
            f"The text embeddings file must hold one tensor of shape (classes, channels), or {FEATURES} with "
            f"{LOGIT_SCALE}",
            path,
            "Make one with `vitdistill text-embeddings MODEL --data DATA --out FILE`",
        )
    if not features.isfinite().all() or not features.any(dim=1).all():
        raise UserError("Text embeddings must be finite and not 0", path)
    if scale is not None and (scale.numel() != 1 or not -5 < float(scale) < 7):  # up to 1096
        what = scale.flatten()[:3].tolist()
        raise UserError(
            f"{LOGIT_SCALE} must be the logarithm of a scale, as CLIP's: 4.6052 for 100", f"{what} in {path}"
        )
    classes = _names(path)
    if classes and len(classes) != len(features):
        raise UserError(f"{path} must name each of its {len(features)} embeddings", f"{len(classes)} names")
    return TextEmbeddings(features, classes, SCALE if scale is None else math.exp(float(scale)))


def _names(path: Path) -> tuple[str, ...]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CLASSES)
    except (OSError, SafetensorError):  # another format, which `read_weights` has read
        return ()
    try:
        names = [] if text is None else json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("The metadata `classes` of text embeddings must be a JSON list of names", path)
    return tuple(names)


class TextModel:
    """A CLIP text model with its tokenizer, from a folder that transformers saved.

    Attributes:
        scale: CLIP's learned scale, where the folder holds the whole of CLIP; else 100.

    Example:
        >>> model = TextModel(Path("models/clip-vit-base-patch16"))
        >>> model.embed(["tench", "goldfish"], ["a photo of a {}."]).shape
        torch.Size([2, 512])
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of a CLIPTextModelWithProjection, or of a CLIPModel, its tokenizer included.

        Raises:
            UserError: when transformers is not installed, or the folder holds no such model or no tokenizer.
        """
        self.folder = folder
        config = _config(folder)
        if config.get("model_type") not in MODEL_TYPES:
            raise UserError(
                "The folder must hold a CLIP text model of transformers",
                f"{folder} with model_type {config.get('model_type')!r}",
                "Give one of CLIPTextModelWithProjection or CLIPModel",
            )
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UserError(
                "The folder of a text model must hold its tokenizer",
                f"{folder} without tokenizer.json or vocab.json",
                "Save it there with its save_pretrained",
            )
        try:
            import transformers
        except ImportError:
            raise UserError(
                "Text embeddings need the transformers library", remedy="pip install 'vitdistill[hf]'"
            ) from None
        level, bars = transformers.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()  # it lists the image encoder's weights, which nobody wants here
        transformers.utils.logging.disable_progress_bar()
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            loaded: Any = transformers.CLIPTextModelWithProjection.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # of several packages, which have many kinds
            rule = "The folder must hold a CLIP text model of transformers"
            raise UserError(rule, f"{folder} ({error_words(error)[:160]})") from error
        finally:
            transformers.logging.set_verbosity(level)
            if bars:
                transformers.utils.logging.enable_progress_bar()
        model, found = loaded
        missing = sorted(name for name in found["missing_keys"] if not name.endswith("position_ids"))
        if missing:
            words = f"{folder}, which lacks {len(missing)} tensors of it ({missing[0]}, ...)"
            raise UserError("The folder must hold a CLIP text model with its projection", words)
        self.model: Any = model.eval()
        self.scale = _scale(folder)

    @torch.inference_mode()
    def embed(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        *,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
    ) -> Float[Tensor, "c e"]:
        """Embeddings of unit length: of each name the mean over the templates, each of unit length before.

        Args:
            names: of the classes, as they stand in a sentence.
            templates: sentences with one {} each.
            batch_size: sentences per step.
            device: where to compute.
        """
        assert names and templates and all("{}" in template for template in templates)
        self.model.to(device)
        length = int(self.model.config.max_position_embeddings)
        sentences = [template.replace("{}", name) for template in templates for name in names]
        parts = []
        for start in range(0, len(sentences), batch_size):
            chosen = sentences[start : start + batch_size]
            tokens = self.tokenizer(chosen, padding=True, truncation=True, max_length=length, return_tensors="pt")
            inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
            parts.append(F.normalize(self.model(**inputs).text_embeds.float(), dim=-1).cpu())
        if cut := sum(len(ids) > length for ids in self.tokenizer(sentences)["input_ids"]):
            log.warning("%d of %d sentences have more than %d tokens and were cut", cut, len(sentences), length)
        return F.normalize(torch.cat(parts).unflatten(0, (len(templates), len(names))).mean(dim=0), dim=-1).clone()


def _config(folder: Path) -> dict[str, Any]:
    check_saved(folder, "A text model")
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("The configuration of a text model must be JSON", f"{path} ({error})") from error
    return found if isinstance(found, dict) else {}


def _scale(folder: Path) -> float:
    """The scale that CLIP learned beside its encoders; of a text encoder alone, what all of OpenAI's have."""
    file = folder / "model.safetensors"
    if file.is_file():  # other tensors stay where they are
        with safe_open(file, framework="pt") as content:
            found = content.get_tensor(LOGIT_SCALE) if LOGIT_SCALE in content.keys() else None  # noqa: SIM118
    else:
        found = read_weights(folder).get(LOGIT_SCALE)
    return SCALE if found is None else math.exp(float(found))
