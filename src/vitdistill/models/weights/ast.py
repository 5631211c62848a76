"""AST's files: the authors' (`v.*`, `mlp_head.*`) and Hugging Face's, on disk and in memory."""

from typing import Any

from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.families.ast import AST, STATISTICS
from vitdistill.models.weights.layout import (
    HUGGING_FACE,
    TO_HUGGING_FACE,
    Arguments,
    Layout,
    Weights,
    anchored,
    check_epsilon,
    fuse_qkv,
    has,
    renamed,
    size_name,
    split_qkv,
    vit_arguments,
    without,
)

_PREFIX = r"audio_spectrogram_transformer\."
_THEIRS = anchored(rf"(?:{_PREFIX})?embeddings\.patch_embeddings\.projection\.weight")
_AUTHORS = anchored(r"v\.patch_embed\.proj\.weight")
_HEAD = ((r"^(mlp_head\.0|classifier\.layernorm)\.", "head_norm."), (r"^(mlp_head\.1|classifier\.dense)\.", "head."))


def own_names(weights: Weights) -> Weights:
    """An AST's weights under our names, whatever stands before all of them; others as they are."""
    for anchor in (_AUTHORS, _THEIRS):
        found = next((match for name in weights if (match := anchor.search(name))), None)
        if found is None or weights[found.string].ndim != 4 or weights[found.string].shape[1] != 1:
            continue
        start = found.string[: found.start()]
        inside = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        if anchor is _THEIRS:
            return fuse_qkv(renamed(inside, (*_HEAD, (rf"^{_PREFIX}", ""), *HUGGING_FACE)))
        # DeiT's own heads are in the authors' files, and nothing reads them.
        return renamed(without(inside, r"v\.head(_dist)?\."), (*_HEAD, (r"^v\.", "")))
    return weights


def their_names(weights: Weights) -> Weights:
    """An AST's weights under Hugging Face's names on disk, with the projections of q, k and v apart."""
    heads = ((r"^head_norm\.", "classifier.layernorm."), (r"^head\.", "classifier.dense."))
    body = (r"^(?!classifier\.)", "audio_spectrogram_transformer.")
    return renamed(split_qkv(weights), (*heads, *TO_HUGGING_FACE, body))


def convert(weights: Weights, net: nn.Module) -> Weights:
    """
    Raises:
        UserError: when the network is none over spectrograms.
    """
    if not isinstance(net, AST):
        raise UserError(
            f"The weights must be those of a {type(net).__name__}",
            "a file of AST, which hears spectrograms",
            "Name its architecture: ast_base@FILE",
        )
    return own_names(weights)


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """Our AST, with transformers' defaults for what config.json leaves out.

    Its norms have the authors' epsilons, 1e-6 and in the classifier 1e-5, with which the weights were trained;
    config.json says 1e-12 for both.
    """
    check_epsilon(config, 1e-6, 1e-12)
    given = vit_arguments({name: value for name, value in config.items() if name != "image_size"})
    given["img_size"] = [config.get("num_mel_bins", 128), config.get("max_length", 1024)]
    given["stride"] = [config.get("frequency_stride", 10), config.get("time_stride", 10)]
    return f"ast_{size_name(given['embed_dim'], ('tiny', 'small', 'base'))}", given


def statistics(preparation: dict[str, Any]) -> dict[str, Any]:
    """The argument `statistics`, from preprocessor_config.json; AudioSet's where there is none, as in transformers."""
    if preparation.get("do_normalize") is False:
        return {"statistics": [0.0, 0.5]}  # twice the deviation is 1
    mean, deviation = STATISTICS["audioset"]
    return {"statistics": [float(preparation.get("mean", mean)), float(preparation.get("std", deviation))]}


LAYOUT = Layout(
    name="AST",
    anchor=_THEIRS,
    matches=lambda weights: has(weights, rf"^{_PREFIX}embeddings\.") or _is_bare(weights),
    convert=convert,
    model_types=("audio-spectrogram-transformer",),
    arguments=arguments,
    prepared=statistics,
)


def _is_bare(weights: Weights) -> bool:
    kernel = weights.get("embeddings.patch_embeddings.projection.weight")
    two_tokens = "embeddings.distillation_token" in weights
    return two_tokens and kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 1
