"""What happens to a batch of sounds after its transfer: filter bank, SpecAugment, normalisation, mixing."""

import torch
from jaxtyping import Float32
from torch import Tensor

from vitdistill.data.audio.fbank import FilterBank
from vitdistill.data.device import OnDevice
from vitdistill.data.images.augment import Augment
from vitdistill.types import InputSpec


class SoundOnDevice(OnDevice):
    """The part of a recipe that runs on the device, for waveforms.

    In training one band of frequencies and one stretch of time of every sound are set to zero (SpecAugment, Park et
    al., 2019), before normalisation, as AST's authors have it; then batches are mixed, where the recipe says so.

    Example:
        >>> on_device = source.train.on_device(student.input, ViewOptions(augment=Augment(recipe="sound")), 50)
        >>> inputs, targets = on_device.train(batch.images.to("cuda"), batch.targets)
    """

    def __init__(self, augment: Augment, spec: InputSpec, num_classes: int) -> None:
        """
        Args:
            augment: the recipe.
            spec: what the network takes: mel bins, frames and statistics.
            num_classes: length of the soft targets.

        Raises:
            UserError: when an option of the recipe is out of range.
        """
        super().__init__(augment, spec.mean, spec.std, num_classes)
        self.bank = FilterBank(*spec.size)

    def _normalised(self, images: Float32[Tensor, "b samples"]) -> Float32[Tensor, "b 1 mel_bins frames"]:
        return self._scaled(self.bank(images))

    def _augmented(self, images: Float32[Tensor, "b samples"]) -> Float32[Tensor, "b 1 mel_bins frames"]:
        energies = self.bank(images)
        for axis, share in ((-2, self.augment.freq_mask), (-1, self.augment.time_mask)):
            if share:
                energies = energies.masked_fill(_stretch(energies, axis, share), 0.0)
        return self._scaled(energies)

    def _scaled(self, energies: Float32[Tensor, "b 1 mel_bins frames"]) -> Float32[Tensor, "b 1 mel_bins frames"]:
        mean, std = self._statistics(energies.device)
        return (energies - mean) / std

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and divisor of log-mel energies."""
        if device not in self._stats:
            mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
            self._stats[device] = (mean, std)
        return self._stats[device]


def _stretch(energies: Tensor, axis: int, share: float) -> Tensor:
    """True on a stretch along one axis for each sound: of any width below a share of it, anywhere that it fits."""
    size = energies.shape[axis]
    drawn = torch.rand((2, len(energies), 1, 1, 1), device=energies.device)
    width = drawn[0] * share * size
    start = (drawn[1] * (size - width)).floor()
    places = torch.arange(size, device=energies.device)
    places = places[:, None] if axis == -2 else places
    return (places >= start) & (places < start + width.floor())
