"""The teacher as a guest: frozen, always in eval mode, without gradient, and in nobody's checkpoint."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone
from vitdistill.types import NOTHING, BackboneOutput, Capture


class Teacher:
    """A frozen backbone that takes the student's images and sees them as it was trained to.

    Deliberately not an `nn.Module`: a module that holds it does not register its weights, so they stay out of
    `state_dict`, `parameters`, DDP buckets and FSDP shards. It follows the images to their device by itself.

    Attributes:
        backbone: the network, frozen and in eval mode.
        drops_paths: whether its drop path is active, if it has any: an ablation of TinyMIM, off by default.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        text_embeddings: Float[Tensor, "c e"] | None = None,
    ) -> None:
        """
        Args:
            backbone: the network; its parameters are frozen in place.
            mean: statistics that the incoming images were normalised with; None means the teacher's own.
            std: likewise.
            dtype: compute the teacher in this dtype (bfloat16 on GPUs); None keeps its own.
            text_embeddings: one embedding per class. The teacher's output is then taken as an image embedding, and
                its class scores are 100 * cosine similarity (CLIP zero-shot).

        Raises:
            UserError: when the text embeddings have other channels than the network's output.
        """
        if text_embeddings is not None:
            channels = backbone.num_classes or backbone.width
            if text_embeddings.shape[1] != channels:
                raise UserError(
                    f"Text embeddings must have the {channels} channels of {backbone.name}'s image embeddings",
                    text_embeddings.shape[1],
                    "Take both from one CLIP model, its image projection included",
                )
        self.backbone = backbone.requires_grad_(False).eval()
        if dtype is not None:
            backbone.to(dtype)
        self.text_embeddings = None if text_embeddings is None else F.normalize(text_embeddings.float(), dim=-1)
        self.drops_paths = False
        self._renormalise = _Renormalise.between(
            mean or backbone.mean, std or backbone.std, backbone.mean, backbone.std
        )

    @property
    def num_classes(self) -> int:
        return len(self.text_embeddings) if self.text_embeddings is not None else self.backbone.num_classes

    def __call__(
        self,
        images: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "b k"] | None = None,
        capture: Capture = NOTHING,
    ) -> BackboneOutput:
        """The backbone's output for images normalised with the student's statistics; float32 logits."""
        parameter = next(self.backbone.parameters(), None)
        if parameter is not None and parameter.device != images.device:
            self.backbone.to(images.device)
        self.backbone.eval()
        for module in self._drop_paths if self.drops_paths else ():
            module.train()
        dtype = parameter.dtype if parameter is not None else images.dtype
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            seen = self.resized(self._renormalise(images.float())).to(dtype)
            output = self.backbone(seen, keep=keep, capture=capture)
            if output.logits is not None:
                output.logits = self._class_scores(output.logits.float())
        return output

    @property
    def _drop_paths(self) -> list[DropPath]:
        return [module for module in self.backbone.modules() if isinstance(module, DropPath)]

    def resized(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b ch *pixels2"]:
        """Images or frames at the teacher's resolution (MaskedKD, App. C, and MVD's H interpolate)."""
        size = self.backbone.image_size
        if tuple(images.shape[-2:]) == size or not self.backbone.sized:
            return images
        shrinking = images.shape[-2] > size[0] or images.shape[-1] > size[1]
        frames = images.transpose(1, 2).flatten(0, 1) if images.ndim == 5 else images
        frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=shrinking)
        return frames.unflatten(0, (len(images), -1)).transpose(1, 2) if images.ndim == 5 else frames

    def _class_scores(self, output: Float[Tensor, "b e"]) -> Float[Tensor, "b c"]:
        if self.text_embeddings is None:
            return output
        self.text_embeddings = self.text_embeddings.to(output.device)
        return 100.0 * F.normalize(output, dim=-1) @ self.text_embeddings.T


class _Renormalise(nn.Module):
    """From one pair of input statistics to another: x * scale + shift per channel."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    @classmethod
    def between(
        cls, mean: Sequence[float], std: Sequence[float], to_mean: Sequence[float], to_std: Sequence[float]
    ) -> nn.Module:
        """The map between two statistics; the identity when they agree, so that nothing is rounded."""
        pairs = zip((*mean, *std), (*to_mean, *to_std), strict=True)
        if all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs):
            return nn.Identity()
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std, to_mean, to_std)
        )
        return cls(old_std / new_std, (old_mean - new_mean) / new_std)

    def forward(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b ch *pixels"]:
        if self.scale.device != images.device:
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        shape = (-1, *[1] * (images.ndim - 2))
        return images * self.scale.view(shape) + self.shift.view(shape)
