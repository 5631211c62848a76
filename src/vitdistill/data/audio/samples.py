"""Sets of sounds, and how sounds become inputs: waveforms for the device, which makes spectrograms of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from vitdistill.data.audio.decode import Header, Sound
from vitdistill.data.audio.device import SoundOnDevice
from vitdistill.data.audio.fbank import RATE, WINDOW, samples_of, seconds_of
from vitdistill.data.images.augment import OF_PICTURES, Augment
from vitdistill.data.left_out import say_once
from vitdistill.data.samples import UNREADABLE, Facts, Samples, Transform, ViewOptions, digest_of, reason_of
from vitdistill.errors import UserError, refuse_given
from vitdistill.types import InputSpec

LOOKED_AT = 64  # sounds whose headers `check` reads
MUCH_SHORTER = 2  # times that the input may be longer than every sound before one line says so


class SoundSamples(Samples):
    """Sounds. `load` opens one, a `Sound`, and decodes nothing: the transform says how much of it is needed."""

    word: ClassVar[str] = "sound"

    def transform(self, spec: InputSpec, options: ViewOptions, *, train: bool) -> Transform:
        check_sounds(spec, options)
        return Waveform(samples_of(spec.size[1]))

    def on_device(self, spec: InputSpec, options: ViewOptions, classes: int) -> SoundOnDevice:
        return SoundOnDevice(options.augment, spec, classes)

    def inspect(self, index: int) -> Facts:
        sound = self.load(index)[0]
        header, waveform = sound.header(), sound.read()
        return Facts(
            seconds=round(header.seconds, 3), rate=header.rate, content=digest_of(np.asarray(waveform).tobytes())
        )

    def shown(self, indices: Sequence[int], size: tuple[int, int]) -> Float32[Tensor, "b 1 mel_bins frames"]:
        spec = InputSpec((1, *size), (0.0,), (1.0,), sound=True)
        options = ViewOptions(augment=Augment(recipe="none"))
        transform = self.transform(spec, options, train=False)
        waveforms = torch.stack([_one(transform(self.load(index)[0])) for index in indices])
        return self.on_device(spec, options, 1).eval(waveforms)

    def check(self, spec: InputSpec, options: ViewOptions) -> None:
        """Say of some sounds, by their headers, what happens to them: mixed down, resampled, cut."""
        headers: list[Header] = []
        for index in np.unique(np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).astype(int)).tolist():
            try:
                headers.append(self.load(index)[0].header())
            except UNREADABLE as error:
                reason_of(error, self.path(index))  # raises what is no fault of the file
        if headers and spec.sound:
            _say(headers, self.place(), spec)

    def place(self) -> str:
        """What the set is called in messages."""
        return self.path(0)

    def preprocessing(self, spec: InputSpec, options: ViewOptions) -> dict[str, Any]:
        return {
            "size": list(spec.size),
            "channels": spec.shape[0],
            "sampling_rate": RATE,
            "mean": list(spec.mean),
            "std": list(spec.std),
        }


def check_sounds(spec: InputSpec, options: ViewOptions) -> None:
    """Refuse networks over anything else, and options that would change nothing.

    Raises:
        UserError: naming them.
    """
    if not spec.sound:
        raise UserError("Sounds need a network over spectrograms", "one over pixels", "For example ast_small")
    if options.several is not None:
        raise UserError("Several crops are made of images", "sounds", "Give images")
    given = {
        "clips": options.clips != 1,
        "crops": options.crops != 1,
        "stride": options.stride is not None,
        "sampling": options.sampling is not None,
        **options.augment.given(OF_PICTURES),
    }
    refuse_given(given, "on sounds")


@dataclass(frozen=True)
class Waveform:
    """The beginning of a sound at 16 kHz, of one length; NaN where the sound is over, as silence would be a sound.

    Attributes:
        samples: how many.
    """

    samples: int
    random: ClassVar[bool] = False  # all augmentation is the device's

    @property
    def shape(self) -> tuple[int]:
        return (self.samples,)

    def __call__(self, sound: Any) -> Float32[Tensor, "samples"]:
        made = torch.full((self.samples,), float("nan"))
        read = sound.read(self.samples)
        if len(read) < WINDOW:
            raise ValueError(f"{1000 * len(read) / RATE:.3g} ms long, and a spectrogram needs 25")
        made[: len(read)] = torch.from_numpy(np.array(read, dtype=np.float32))
        return made


def _one(made: Any) -> Tensor:
    assert isinstance(made, Tensor)
    return made


def _say(headers: list[Header], place: str, spec: InputSpec) -> None:
    """One line each on what a person may not expect."""
    seen = f"of {len(headers)} sounds of {place} looked at"
    several = sum(header.channels > 1 for header in headers)
    if several:
        say_once(f"{several} {seen} have several channels, which are mixed down to one")
    whole = seconds_of(spec.size[1])
    lengths = [header.seconds for header in headers]
    longer = sum(length > whole + 0.1 for length in lengths)
    if longer:
        say_once(
            f"{longer} {seen} are longer than the network's {spec.size[1]} frames, so only their first {whole:g} s are "
            f"heard; the longest has {max(lengths):.3g} s. More frames: img_size [{spec.size[0]}, FRAMES], 100 a second"
        )
    if max(lengths) * MUCH_SHORTER < whole:
        frames = int(max(lengths) * 100) - 2
        say_once(
            f"The sounds of {place} last at most {max(lengths):.3g} s of the network's {whole:g} s, and the rest is "
            f"padding that costs as much: img_size [{spec.size[0]}, {frames}] has room for them"
        )


__all__ = ["Sound", "SoundSamples", "Waveform", "check_sounds"]
