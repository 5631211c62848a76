"""Chance as a criterion."""

from jaxtyping import Float
from torch import Tensor

from vitdistill.methods.selection.criterion import Criterion, Scene
from vitdistill.tokens.select import random_scores


class Random(Criterion):
    """Uniformly random patches, drawn on the device from torch's global generator unless the scene brings noise."""

    draws = True

    def scores(self, scene: Scene) -> Float[Tensor, "b n"]:
        if scene.noise is not None:
            return scene.noise
        return random_scores(len(scene.inputs), scene.grid.count, device=scene.inputs.device)
