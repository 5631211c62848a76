"""The classes of a task's data beside those of a network: compared by name, and brought into the data's order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.models.classes import class_names, compare
from vitdistill.models.network import Network


class ClassNames:
    """The classes of a task, by name where its data is known, else how many there are.

    Example:
        >>> names = ClassNames(["sky", "wall"], "rooms")
        >>> names.match(network)  # of the classes wall and sky
        >>> scores = names.ordered(network, network(images).prediction)  # of sky, and of wall
    """

    def __init__(self, classes: Sequence[str] | int, data: str = "") -> None:
        """
        Args:
            classes: their names in the data's order, or their number.
            data: what the data is called in messages.
        """
        self.names = () if isinstance(classes, int) else tuple(classes)
        self.count = classes if isinstance(classes, int) else len(classes)
        self.data = data
        self._order: Tensor | None = None  # of the network's classes, where the data has another

    @classmethod
    def of(cls, source: DataSource | None, classes: int | None = None) -> "ClassNames":
        """Those of data; without any, so many."""
        if source is not None:
            return cls(source.classes, source.name)
        if classes is None:
            raise ValueError("A task needs its data, or the number of classes")
        return cls(classes)

    def match(self, network: Network) -> None:
        """
        Raises:
            UserError: when a network has other classes.
        """
        if not self.names:
            if network.num_classes != self.count:
                raise UserError(
                    f"The network must have the {self.count} classes of the task; {network.name} has "
                    f"{network.num_classes}"
                )
            return
        found = compare(network, self.names, self.data)
        if found.kind in ("different", "other count"):
            raise UserError(f"The classes of a network must be those of the data; {found.words}")
        self._order = None if found.order is None else torch.tensor(found.order)

    def of_network(self, network: Network) -> list[str]:
        """Names of the classes of the network that was matched last, in its own order."""
        if self._order is None:
            return list(self.names)
        # A fresh network has no names yet: those that its outputs are read as.
        return class_names(network) or [name for _, name in sorted(zip(self._order.tolist(), self.names, strict=True))]

    def ordered(self, network: Network, prediction: Tensor) -> Tensor:
        """A prediction of the network that was matched last, in the order of the data's classes."""
        if self._order is None:
            return prediction
        self._order = self._order.to(prediction.device)  # once
        return network.in_order(prediction, self._order)
