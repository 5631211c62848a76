"""Kaldi's log-mel filter bank in torch, batch by batch on any device, as AST's authors have it.

Own code, since torchaudio, which has the same, is in maintenance, and transformers' takes one sound at a time on the
CPU; both agree with it to float32's accuracy.
"""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

RATE = 16_000  # samples per second of every sound that a network sees
WINDOW, SHIFT, FFT = 400, 160, 512  # samples: frames of 25 ms every 10 ms, transformed with zeros behind them
LOWEST = 20.0  # Hz; the highest is half the rate
PREEMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)  # of the energies, of which the logarithm is taken


def frames_of(samples: int) -> int:
    """Whole frames in a sound of so many samples.

    Example:
        >>> frames_of(5 * RATE), frames_of(399)
        (498, 0)
    """
    return max(0, 1 + (samples - WINDOW) // SHIFT)


def samples_of(frames: int) -> int:
    """The fewest samples that have so many frames.

    Example:
        >>> samples_of(512)
        82160
    """
    return WINDOW + SHIFT * (frames - 1)


class FilterBank:
    """From waveforms to log-mel energies, frequency by time.

    Sounds end where their waveforms hold NaN. What lies behind the end is zero in the result, not the logarithm of
    silence: the padding of AST.

    Example:
        >>> bank = FilterBank(mel_bins=128, frames=512)
        >>> bank(torch.randn(8, bank.samples)).shape
        torch.Size([8, 1, 128, 512])
    """

    def __init__(self, mel_bins: int, frames: int) -> None:
        """
        Args:
            mel_bins: filters, spaced equally in mel from 20 Hz to 8 kHz.
            frames: of every spectrogram; longer sounds are cut, shorter ones padded.
        """
        self.mel_bins, self.frames, self.samples = mel_bins, frames, samples_of(frames)
        self._made: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, waveforms: Float32[Tensor, "b samples"]) -> Float32[Tensor, "b 1 mel_bins frames"]:
        window, filters = self._parts(waveforms.device)
        # Mixed precision would take the filters' sums in 16 bits.
        with torch.autocast(waveforms.device.type, enabled=False):
            there = torch.isfinite(waveforms)
            lengths = there.sum(dim=1, keepdim=True)
            sounds = waveforms.nan_to_num(nan=0.0)
            sounds = (sounds - sounds.sum(dim=1, keepdim=True) / lengths.clamp_min(1)) * there
            frames = sounds.unfold(1, WINDOW, SHIFT)
            frames = frames - frames.mean(dim=-1, keepdim=True)
            before = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
            spectra = torch.fft.rfft((frames - PREEMPHASIS * before) * window, n=FFT)
            # The Nyquist bin belongs to no filter.
            power = spectra.real.square() + spectra.imag.square()
            energies = (power[..., :-1] @ filters).clamp_min(FLOOR).log()
            whole = (lengths - WINDOW).div(SHIFT, rounding_mode="floor") + 1
            energies = energies * (torch.arange(self.frames, device=waveforms.device) < whole)[..., None]
            return energies.transpose(1, 2)[:, None]

    def _parts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Window and filters, made once: making a tensor on a GPU from numbers waits for the GPU."""
        if device not in self._made:
            window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).float()
            self._made[device] = (window.to(device), mel_filters(self.mel_bins).to(device))
        return self._made[device]


@cache
def mel_filters(count: int) -> Float[Tensor, "bins mel_bins"]:
    """Triangles that are linear in mel, of height 1; a low one between two bins of the transform has none.

    Args:
        count: how many.
    """
    lowest, highest = _mel(np.array([LOWEST, RATE / 2]))
    edges = lowest + (highest - lowest) / (count + 1) * np.arange(count + 2)
    bins = _mel(RATE / FFT * np.arange(FFT // 2))[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return torch.from_numpy(np.maximum(triangles, 0)).float()


def _mel(hertz: np.ndarray) -> np.ndarray:
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def seconds_of(frames: int) -> float:
    """How long a sound of so many frames is, to a tenth.

    Example:
        >>> seconds_of(512)
        5.1
    """
    return math.floor(samples_of(frames) / RATE * 10) / 10
