"""Adapters: one family of networks a file.

To add a family: write a file with a subclass of `Backbone`, and add a line to `ADAPTERS`.
"""

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitdistill.models.families.beit import BiasedViT
from vitdistill.models.families.cait import CaiT
from vitdistill.models.families.convvit import ConvStagesViT, ConvViT
from vitdistill.models.families.eva import RotaryViT
from vitdistill.models.families.linear_only import FrozenBody, LinearOnly
from vitdistill.models.families.swin import Swin
from vitdistill.models.families.video_vit import TubeletEmbed, VideoViT
from vitdistill.models.families.vit import ViT
from vitdistill.models.families.yolos import Yolos
from vitdistill.models.families.yolos_vit import YolosViT
from vitdistill.models.network import Network, Opaque

ADAPTERS: dict[type[nn.Module], type[Network]] = {
    Yolos: YolosViT,  # before the class that it extends
    VisionTransformer: ViT,
    Eva: RotaryViT,
    Beit: BiasedViT,
    Cait: CaiT,
    SwinTransformer: Swin,
    LinearOnly: FrozenBody,
    ConvViT: ConvStagesViT,
}


def as_network(net: nn.Module) -> Network:
    """A network behind its adapter; `Opaque` where only its prediction can be used."""
    if isinstance(net, Network):
        return net
    if isinstance(net, VisionTransformer) and isinstance(net.patch_embed, TubeletEmbed):
        return VideoViT(net)
    for family, adapter in ADAPTERS.items():
        if isinstance(net, family):
            return adapter(net)
    return Opaque(net)
