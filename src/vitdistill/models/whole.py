"""Why patches cannot be left out of a network, by timm's module, in a few words: for messages and for the docs."""

from torch import nn

CONVOLUTIONS = "its convolutions mix patches"
STAGES = "its stages merge patches"
WINDOWS = "its attention runs in windows of neighbouring patches"
ANY_SIZE = "it takes images of any size and has no fixed grid of patches"
PLACES = "its layers mix fixed places of the image"
RELATIVE = "its attention adds a bias for each pair of places"

REASONS: dict[str, str] = {
    **dict.fromkeys(
        ("byoanet", "davit", "focalnet", "gcvit", "maxxvit", "nest", "vision_transformer_sam"),
        WINDOWS,
    ),
    **dict.fromkeys(("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit"), WINDOWS),
    **dict.fromkeys(("hiera", "hieradet_sam2", "mvitv2", "pit", "pvt_v2", "twins", "coat", "levit"), STAGES),
    **dict.fromkeys(("naflexvit", "deepseek_vit", "gemma4_vit", "qwen3_vit"), ANY_SIZE),
    **dict.fromkeys(("mlp_mixer", "sequencer"), PLACES),
    "vision_transformer_relpos": RELATIVE,
    "convit": "its attention is computed from the distances on the whole grid",
    "crossvit": "it has two grids of patches, which exchange class tokens",
    "tnt": "its patches are split into pixels that have tokens of their own",
    "volo": "its outlook attention needs the whole grid",
    "xcit": "its blocks convolve the whole grid of patches",
}


def why_whole(net: nn.Module) -> str:
    """The reason for a network, by the module that its class comes from; convolutions where timm's is not listed."""
    package, _, module = type(net).__module__.rpartition(".")
    return REASONS.get(module, CONVOLUTIONS) if package == "timm.models" else "its patches are not known"
