"""Bundled sounds: synthetic ones of a second, each made from a seed. No recording of anything is among them.

The classes differ in how a sound goes on, not in where it lies: pitch, level, onset and length are drawn from the same
ranges in all of them, and every sound has noise behind it. So neither loudness nor one band of frequencies gives a
class away, and to tell a chirp from a tone takes frequency and time together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32

from vitdistill.data.audio.decode import Header
from vitdistill.data.audio.fbank import RATE
from vitdistill.data.audio.samples import SoundSamples
from vitdistill.data.samples import Facts, digest_of
from vitdistill.data.source import DataSource

LENGTH = RATE  # samples: one second
TRAIN, VAL = 800, 200  # sounds

Chance = np.random.RandomState  # whose streams no version of numpy changes
Wave = np.ndarray


def _tone(time: Wave, pitch: float, chance: Chance) -> Wave:
    return np.sin(2 * np.pi * pitch * time)


def _two_tones(time: Wave, pitch: float, chance: Chance) -> Wave:
    ratio = chance.uniform(1.3, 1.9)
    return (np.sin(2 * np.pi * pitch * time) + np.sin(2 * np.pi * pitch * ratio * time)) / 2


def _chirp(octaves: float) -> Callable[[Wave, float, Chance], Wave]:
    def wave(time: Wave, pitch: float, chance: Chance) -> Wave:
        rate = octaves * chance.uniform(0.7, 1.3) / max(time[-1], 1e-3) * np.log(2)
        start = pitch * 2 ** (-octaves / 2)  # so that the middle of all is the same
        return np.sin(2 * np.pi * start * np.expm1(rate * time) / rate)

    return wave


def _tremolo(time: Wave, pitch: float, chance: Chance) -> Wave:
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * chance.uniform(9, 16) * time)
    return beat * np.sin(2 * np.pi * pitch * time)


def _vibrato(time: Wave, pitch: float, chance: Chance) -> Wave:
    beat = chance.uniform(5, 9)
    return np.sin(2 * np.pi * pitch * time + 0.16 * pitch / beat * np.sin(2 * np.pi * beat * time))


def _noise(time: Wave, pitch: float, chance: Chance) -> Wave:
    low, high = int(pitch / 1.3), int(pitch * 1.3)  # a second of sound has a frequency for every hertz
    strengths = np.zeros(LENGTH // 2 + 1)
    strengths[low : high + 1] = 1
    band = _of_random_phases(strengths, chance)
    return band[: len(time)] / np.abs(band).max()


def _clicks(time: Wave, pitch: float, chance: Chance) -> Wave:
    since = np.mod(time, 1 / chance.uniform(9, 16))
    return np.exp(-since * 120) * np.sin(2 * np.pi * pitch * since)


def _steps(time: Wave, pitch: float, chance: Chance) -> Wave:
    return np.sin(2 * np.pi * pitch * np.where(np.mod(time * chance.uniform(5, 9), 2) < 1, 1.0, 1.5) * time)


CLASSES: dict[str, Callable[[Wave, float, Chance], Wave]] = {
    "tone": _tone,
    "two tones": _two_tones,
    "chirp up": _chirp(1.0),
    "chirp down": _chirp(-1.0),
    "tremolo": _tremolo,
    "vibrato": _vibrato,
    "noise band": _noise,
    "clicks": _clicks,
    "steps": _steps,
}


def draw(label: int, chance: Chance) -> Float32[np.ndarray, "samples"]:
    """A sound of a class.

    Args:
        label: number of the class.
        chance: pitch, level, onset, length, background and all else are drawn from it.

    Example:
        >>> draw(0, np.random.RandomState(7)).shape
        (16000,)
    """
    length = int(RATE * chance.uniform(0.4, 0.7))
    onset = chance.randint(0, LENGTH - length + 1)
    pitch = float(np.exp(chance.uniform(np.log(700), np.log(1800))))
    level = 10 ** chance.uniform(-1.5, -0.3)
    loudness = level * 10 ** chance.uniform(-2.0, -1.2)  # of the noise behind it
    colour = chance.uniform(0, 0.95)  # from white to one that rumbles
    wave = list(CLASSES.values())[label](np.arange(length) / RATE, pitch, chance)
    fade = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.01 * RATE)
    sound = _background(colour, chance) * loudness
    sound[onset : onset + length] += level * wave * np.minimum(fade, 1)
    return sound.astype(np.float32)


def _background(colour: float, chance: Chance) -> Wave:
    """Noise of deviation 1 whose low frequencies are the stronger, the higher its colour."""
    noise = _of_random_phases(_INVERSE**colour, chance)
    return noise / noise.std()


_INVERSE = 1 / np.maximum(np.arange(LENGTH // 2 + 1), 50)


def _of_random_phases(strengths: Wave, chance: Chance) -> Wave:
    """Noise with these strengths of its frequencies."""
    return np.fft.irfft(strengths * np.exp(2j * np.pi * chance.uniform(size=len(strengths))), LENGTH)


@dataclass(frozen=True)
class MadeSound:
    """A sound in memory, with what files of sounds have."""

    waveform: Float32[np.ndarray, "samples"]

    def read(self, samples: int | None = None) -> Float32[np.ndarray, "samples"]:
        """The first samples of it."""
        return self.waveform[:samples]

    def header(self) -> Header:
        """Rate and length."""
        return Header(RATE, len(self.waveform), 1)


class SyntheticSounds(SoundSamples):
    """One split of the bundled sounds, made once and kept in memory; classes take turns."""

    in_memory = True

    def __init__(self, split: str, count: int, seed: int) -> None:
        """
        Args:
            split: train or val.
            count: how many sounds.
            seed: sound i is drawn from seed + i, whatever the count.
        """
        self._split = split
        self._labels = [number % len(CLASSES) for number in range(count)]
        self._waveforms = np.stack([draw(label, Chance(seed + number)) for number, label in enumerate(self._labels)])

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> tuple[MadeSound, int]:
        return MadeSound(self._waveforms[index]), self._labels[index]

    def path(self, index: int) -> str:
        return f"sounds/{self._split}/{index}"

    def place(self) -> str:
        return "sounds"

    @property
    def labels(self) -> list[int]:
        return list(self._labels)

    def inspect(self, index: int) -> Facts:
        content = digest_of(self._waveforms[index].tobytes())
        return Facts(seconds=LENGTH / RATE, rate=RATE, content=content)

    def digest(self) -> str:
        return digest_of(self._waveforms.tobytes(), np.array(self._labels, dtype="<i8").tobytes())


@cache
def sounds() -> DataSource:
    """Open the synthetic sounds: 800 to train on, 200 to validate on, nine classes, a second at 16 kHz each."""
    # Far apart, so that no seed is in both.
    train, val = SyntheticSounds("train", TRAIN, seed=0), SyntheticSounds("val", VAL, seed=1_000_000)
    return DataSource(name="sounds", train=train, val=val, classes=list(CLASSES))
