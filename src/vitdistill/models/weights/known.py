"""What a file of weights looks like, said where it does not fit."""

import re

from torch import Tensor

from vitdistill.models.weights.layout import Weights

# Networks that hold a ViT among other things; loading that part alone would be silent about the rest.
COMPOSITE = (
    ("YOLOS (a detector)", r"(mid_position_embeddings|detection_tokens|(^|\.)det_token|mid_pos_embed)$"),
    ("AST (an audio network)", r"^(audio_spectrogram_transformer|(module\.)?v)\.(embeddings|patch_embed)\."),
    ("Segmenter", r"(^|\.)decoder\.(cls_emb|proj_patch|proj_dec)"),
    ("UperNet as mmsegmentation or transformers save it", r"(?<!decoder\.)\bdecode_head\."),
    ("UperNet", r"(^|\.)decoder\.decode_head\."),
    ("SigLIP", r"(^|\.)vision_model\.head\.(probe|attention)"),
    ("DETR", r"(^|\.)(transformer\.encoder\.layers|input_proj|query_embed)\b"),
    ("SAM", r"(^|\.)(mask_decoder|prompt_encoder)\."),
    ("adapters (LoRA), which go with a base model,", r"\.lora_[AB]\b|\.lora_(down|up)\."),
)
OTHER = (
    ("BEiT in Hugging Face's names", r"(^|\.)beit\.|attention\.relative_position_bias\."),
    ("Swin in Hugging Face's names", r"(^|\.)(swin|swinv2)\.encoder\.layers"),
    ("Swin", r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table$"),
    ("BEiT", r"blocks\.\d+\.attn\.relative_position_bias_table$"),
    ("ConvViT", r"(^|\.)patch_embed4\."),
    ("CaiT", r"(^|\.)blocks_token_only\."),
    ("XCiT", r"(^|\.)cls_attn_blocks\."),
    ("ConvNeXt", r"stages\.\d+\.(blocks\.)?\d+\.(conv_dw|dwconv|gamma)|(^|\.)downsample_layers\.|convnext"),
    ("ResNet", r"(^|\.)layer1\.0\.(conv1|bn1)\.|resnet\.encoder\.stages|resnet\.embedder"),
    ("EfficientNet or MobileNet", r"(^|\.)conv_stem\.|(^|\.)features\.\d+\.(\d+\.)?(block|conv|0)\b"),
    ("VGG or AlexNet", r"(^|\.)features\.\d+\.(weight|bias)$"),
    ("a ViT of MMPretrain", r"(^|\.)layers\.\d+\.ln1\."),
    ("a text network", r"(^|\.)(embeddings\.word_embeddings|embed_tokens|wte|token_embedding)\."),
    ("CLIP as OpenAI saves it", r"(^|\.)visual\.(class_embedding|conv1)"),
    ("DINOv3 as its authors save it", r"(^|\.)storage_tokens$"),
    ("a diffusion network", r"(^|\.)(down_blocks|up_blocks|mid_block)\."),
)


def composite(weights: Weights) -> str | None:
    """The network of which a ViT is but a part; None for others."""
    kernel = _kernel(weights)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 1 and _matching(weights, COMPOSITE[1:2]):
        return COMPOSITE[1][0]
    return _matching(weights, COMPOSITE)


def looks_like(weights: Weights) -> str:
    """What a file looks like, in a few words that follow "the file looks like"; empty where nothing is known."""
    found = _matching(weights, COMPOSITE) or _matching(weights, OTHER)
    if found:
        return found
    kernel, depth = _kernel(weights), _depth(weights)
    if kernel is None or kernel.ndim not in (4, 5) or not depth:
        return ""
    what = "a video ViT" if kernel.ndim == 5 else "a ViT"
    channels = f" over {kernel.shape[1]} channels" if kernel.shape[1] != 3 else ""
    return f"{what} of width {kernel.shape[0]} and depth {depth}, patch {kernel.shape[-1]}{channels}"


def _matching(weights: Weights, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((what for what, pattern in table if any(re.search(pattern, name) for name in weights)), None)


def _kernel(weights: Weights) -> Tensor | None:
    pattern = r"(patch_embed\.proj|patch_embeddings\.projection|patch_embeddings|patch_embedding)\.weight$"
    return next((value for name, value in weights.items() if re.search(pattern, name)), None)


def _depth(weights: Weights) -> int:
    numbers = {found[1] for name in weights if (found := re.search(r"(?:blocks|layers?)\.(\d+)\.", name))}
    return len(numbers)
