"""What classes are called in the embedding space of CLIP: a zero-shot classifier."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.models.classes import order_of

log = logging.getLogger(__name__)

SCALE = 100.0  # CLIP's learned scale, at which its training was stopped from growing
SHOWN = 3


class TextEmbeddings(NamedTuple):
    """One embedding per class.

    Attributes:
        features: of any length.
        classes: their names; empty where they are not known.
        scale: of cosine similarities, for class scores.
    """

    features: Float[Tensor, "c e"]
    classes: tuple[str, ...] = ()
    scale: float = SCALE

    def order(self, classes: Sequence[str], data: str) -> tuple[int, ...] | None:
        """Which embedding belongs to each class of the data, by name; None for all of them as they are.

        Args:
            classes: names of the data's classes.
            data: what the data is called in messages.

        Raises:
            UserError: when a class has no embedding, or names are not known and there are more or fewer embeddings.
        """
        if not self.classes:
            if len(self.features) != len(classes):
                raise UserError(
                    "The text embeddings must be one for each class of the data",
                    f"{len(self.features)} for the {len(classes)} of {data}",
                )
            return None
        order = order_of(self.classes, classes)
        if order is None:
            missing = [name for name in classes if order_of(self.classes, [name]) is None] or list(classes)
            more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            raise UserError(
                f"Each class of {data} must have a text embedding",
                f"none for {', '.join(map(repr, missing[:SHOWN]))}{more} among {len(self.classes)}",
                "Make them with `vitdistill text-embeddings MODEL --data DATA --out FILE`",
            )
        if order == tuple(range(len(self.classes))):
            return None
        if len(order) < len(self.classes):
            log.warning("%s has %d of the %d classes with text embeddings", data, len(order), len(self.classes))
        else:
            log.warning("The text embeddings are of the classes of %s in another order, and are put into its", data)
        return order
