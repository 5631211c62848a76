"""YOLOS in Hugging Face's names (on disk and in memory), in the authors', and back into Hugging Face's."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitdistill.errors import UserError
from vitdistill.models.families.yolos import Size, Yolos, resize_table
from vitdistill.models.sizes import pair
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
from vitdistill.models.weights.positions import FILE_SIZE

# What is not a ViT's, in Hugging Face's names and in ours.
RENAMES = (
    (r"^(vit\.)?embeddings\.detection_tokens$", "det_token"),
    (r"^(vit\.)?encoder\.(interpolation\.)?mid_position_embeddings$", "mid_pos_embed"),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    *HUGGING_FACE,
)
SIGN = r"(^|\.)(detection_tokens|det_token)$"


def convert(weights: Weights, net: nn.Module) -> Weights:
    """Weights under our names, which are the authors' without `backbone.`.

    Raises:
        UserError: when they are for another network.
    """
    if not isinstance(net, Yolos):
        raise UserError(
            f"The weights must be those of a {type(net).__name__}",
            "a file of YOLOS (a detector)",
            "Name its architecture: yolos_tiny@FILE",
        )
    if has(weights, r"^backbone\.det_token$"):
        return {name.removeprefix("backbone."): value for name, value in weights.items()}
    return without(fuse_qkv(renamed(weights, RENAMES)), r"pooler\.")


def on_own_grids(weights: Weights, net: Yolos, recorded: Mapping[str, Any]) -> Weights:
    """Both tables of positions on the grids of the network.

    Args:
        weights: under our names.
        net: that is to be loaded.
        recorded: arguments of the network that the file was trained as, if that is known; without, a table with as many
            positions as the network's is taken to be on the same grid.

    Raises:
        UserError: when the grid of the file cannot be told.
    """
    trained_at = recorded.get(FILE_SIZE) or recorded.get("img_size")
    sizes = {
        "pos_embed": (net.table_grid, trained_at),
        "mid_pos_embed": (net.mid_grid, recorded.get("mid_size") or trained_at),
    }
    moved = dict(weights)
    for name, (grid, size) in sizes.items():
        table = weights.get(name)
        if table is None or table.ndim < 3 or getattr(net, name) is None:
            continue
        old = _grid_of(table.shape[-2] - 1 - net.det_tokens, grid, pair(net.patch_embed.patch_size), size)
        if old is not None:
            moved[name] = resize_table(table, old, grid, net.det_tokens)
    return moved


def _grid_of(count: int, own: Size, patch: Size, trained_at: Any) -> Size | None:
    """Patches in a column and in a row of a table of `count`; None where strict loading has to complain."""
    if trained_at is not None:
        size = pair(trained_at)
        grid = size[0] // patch[0], size[1] // patch[1]
        if grid[0] * grid[1] == count:
            return grid
    if count == own[0] * own[1]:
        return own
    if count < 1:
        return None
    raise UserError(
        "The file must say on which grid its position embeddings were trained",
        f"{count} positions of patches, where the network has {own[0]}x{own[1]}",
        f"Set {FILE_SIZE} among the architecture's arguments to the height and width in pixels it was trained on",
    )


def arguments(config: dict[str, Any], weights: Weights) -> Arguments:
    """YOLOS of the next size. What is no whole patch is cut off, as transformers does."""
    check_epsilon(config, 1e-6, 1e-12)
    given = vit_arguments({"image_size": (512, 864), **config})
    patch, size = pair(given["patch_size"]), pair(given["img_size"])
    given["img_size"] = [pixels // side * side for pixels, side in zip(size, patch, strict=True)]
    given["det_tokens"] = config.get("num_detection_tokens", 100)
    given["mid_positions"] = bool(config.get("use_mid_position_embeddings", True))
    last = next(
        (value for name, value in weights.items() if name.endswith("class_labels_classifier.layers.2.weight")), None
    )
    given["num_classes"] = 0 if last is None else last.shape[0] - Yolos.beside_classes
    return f"yolos_{size_name(given['embed_dim'], ('tiny', 'small', 'base'))}", given


# --- to Hugging Face -------------------------------------------------------------------------------------------------

_THEIRS = (
    (r"^det_token$", "embeddings.detection_tokens"),
    (r"^mid_pos_embed$", "encoder.mid_position_embeddings"),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    *TO_HUGGING_FACE,
    (r"^(?!class_labels_classifier\.|bbox_predictor\.)", "vit."),
)


def to_hugging_face(net: Yolos) -> Weights:
    """The weights under the names of `YolosForObjectDetection`, as its files on the hub have them.

    transformers has one size for both tables, so that those between the blocks are brought to the first one's grid.

    Raises:
        UserError: when the network has something that YolosForObjectDetection has not.
    """
    strange = [name for name in net.state_dict() if ".ls1." in name or "q_norm" in name or name.startswith("norm_pre.")]
    if strange or not net.num_classes:
        raise UserError(
            "transformers' YOLOS has no such network",
            f"one with {strange[0]}" if strange else "one without a class head",
            "Use --format safetensors, which vitdistill.build loads, or --format onnx",
        )
    weights = split_qkv(net.state_dict())
    if net.mid_pos_embed is not None:
        table = weights["mid_pos_embed"]
        weights["mid_pos_embed"] = resize_table(table, net.mid_grid, net.table_grid, net.det_tokens)
    return renamed(weights, _THEIRS)


def configuration(net: Yolos, classes: list[str]) -> dict[str, Any]:
    """config.json of `YolosForObjectDetection`.

    Args:
        net: whose modules say all but the names.
        classes: names of the classes; empty where they are not known.
    """
    block: Any = net.blocks[0]
    patch = pair(net.patch_embed.patch_size)
    names = classes or [f"LABEL_{number}" for number in range(net.num_classes)]
    return {
        "architectures": ["YolosForObjectDetection"],
        "model_type": "yolos",
        "hidden_size": net.embed_dim,
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}[
            type(block.mlp.act).__name__
        ],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": block.norm1.eps,
        "image_size": [side * count for side, count in zip(patch, net.table_grid, strict=True)],
        "patch_size": patch[0],
        "num_channels": net.patch_embed.proj.in_channels,
        "qkv_bias": block.attn.qkv.bias is not None,
        "num_detection_tokens": net.det_tokens,
        "use_mid_position_embeddings": net.mid_pos_embed is not None,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "torch_dtype": "float32",
    }


LAYOUT = Layout(
    name="YOLOS",
    anchor=anchored(r"vit\.embeddings\.detection_tokens|backbone\.det_token"),
    matches=lambda weights: has(weights, SIGN),
    convert=convert,
    model_types=("yolos",),
    arguments=arguments,
)
