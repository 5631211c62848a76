"""Sound files as waveforms: read by soundfile, mixed down to one channel, resampled to 16 kHz once and then kept."""

import os
import struct
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from vitdistill.data.audio.fbank import RATE, WINDOW
from vitdistill.data.samples import digest_of
from vitdistill.errors import MachineError, UserError
from vitdistill.files import write_atomically

RATES = (1_000, 1_000_000)  # samples per second that can be meant
KEPT = ".vitdistill_16k"  # in the data's folder; a name with a dot is no class
CACHE = "VITDISTILL_CACHE"
VERSION = 1  # of what is kept
LOUDEST = 1e9  # of values that are meant to lie in -1..1; squares of more overflow
UNKNOWN = 0xFFFFFFFF  # length of a wav file that was written into a pipe


@dataclass(frozen=True)
class Header:
    """What a file says of its sound, without decoding it.

    Attributes:
        rate: samples per second.
        length: samples of a channel.
        channels: how many there are.
    """

    rate: int
    length: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.length / self.rate


@dataclass(frozen=True)
class Sound:
    """A sound file, of which nothing was decoded yet.

    Attributes:
        path: of the file.
        folder: of the data, in which what was resampled is kept; None keeps nothing.
    """

    path: str
    folder: str | None = None

    def read(self, samples: int | None = None) -> Float32[np.ndarray, "samples"]:
        """The waveform at 16 kHz, in -1..1, without what lies behind the first `samples`.

        Raises:
            OSError, ValueError: when the file is unreadable, with the reason.
        """
        with _opened(self.path) as file:
            header = _header(file, self.path)
            whole = -(-header.length * RATE // header.rate)
            wanted = whole if samples is None else min(samples, whole)
            if header.rate == RATE:
                return _decoded(file, header, wanted)
            kept = None if self.folder is None else kept_file(self.path, Path(self.folder), wanted)
            if kept is not None and (found := _kept(kept, wanted)) is not None:
                return found
            made = resampled(_decoded(file, header, _needed(wanted, header)), header.rate)[:wanted]
        if kept is not None:
            _keep(kept, made)
        return made

    def header(self) -> Header:
        """What the file says of itself.

        Raises:
            OSError, ValueError: as `read`.
        """
        with _opened(self.path) as file:
            return _header(file, self.path)


def require_soundfile() -> Any:
    """The library that reads sounds.

    Raises:
        UserError: when it, or SciPy, which resamples, is not installed.
    """
    try:
        import scipy.signal  # noqa: F401
        import soundfile
    except (ImportError, OSError) as error:  # OSError: there is no libsndfile for it to load
        raise UserError("Sounds need soundfile and SciPy", remedy="Run: pip install 'vitdistill[audio]'") from error
    return soundfile


def resampled(waveform: Float32[np.ndarray, "samples"], rate: int) -> Float32[np.ndarray, "out"]:
    """A waveform at 16 kHz, by SciPy's polyphase filter.

    Args:
        waveform: at any rate.
        rate: its own.
    """
    from scipy.signal import resample_poly

    common = gcd(RATE, rate)
    return resample_poly(waveform.astype(np.float64), RATE // common, rate // common).astype(np.float32)


def _needed(wanted: int, header: Header) -> int:
    """Samples of a file that decide the first `wanted` ones at 16 kHz: those, and what the filter reaches behind them.

    SciPy's filter reaches ten times the slower of both rates' periods.
    """
    common = gcd(RATE, header.rate)
    up, down = RATE // common, header.rate // common
    reach = -(-10 * max(up, down) // up) + 1
    return min(header.length, -(-wanted * header.rate // RATE) + reach)


def _opened(path: str) -> Any:
    """The file, opened by soundfile; errors of the machine are raised as what they are."""
    soundfile = require_soundfile()
    with open(path, "rb") as file:  # libsndfile says "System error" of whatever the system says
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("an empty file")
        _check_complete(file)
    try:
        # Names that are no text of the file system's encoding reach it as bytes alone.
        return soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path)
    except (soundfile.SoundFileError, TypeError) as error:
        words = str(error).partition(": ")[2] if "Error opening" in str(error) else str(error)
        raise ValueError(words.rstrip(".") or "no sound that soundfile reads") from error


def _check_complete(file: BinaryIO) -> None:
    """Refuse a wav file that ends before its data does, of which libsndfile reads what is there without a word.

    Raises:
        ValueError: with the shares.
    """
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != b"RIFF" or len(file.read(8)) < 8:
        return
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            there = size - file.tell()
            if length not in (0, UNKNOWN) and there < length:
                raise ValueError(f"cut off: {there} of {length} bytes of sound are there")
            return
        file.seek(length + length % 2, os.SEEK_CUR)


def _header(file: Any, path: str) -> Header:
    header = Header(file.samplerate, file.frames, file.channels)
    if not RATES[0] <= header.rate <= RATES[1]:
        raise ValueError(
            f"a rate of {header.rate} samples per second, which must lie between {RATES[0]} and {RATES[1]}"
        )
    if header.length <= 0:
        raise ValueError("no samples in it")
    if -(-header.length * RATE // header.rate) < WINDOW:
        raise ValueError(f"{1000 * header.seconds:.3g} ms long, and a spectrogram needs 25")
    return header


def _decoded(file: Any, header: Header, count: int) -> Float32[np.ndarray, "samples"]:
    """The first samples of a file, as the mean of its channels."""
    soundfile = require_soundfile()
    try:
        read = file.read(count, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"damaged: {error}") from error
    if len(read) < count:
        raise ValueError(f"cut off: {len(read) / header.rate:.3g} of {header.seconds:.3g} s are there")
    waveform = read[:, 0] if header.channels == 1 else read.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise ValueError("it holds values that are no numbers")
    if np.abs(waveform).max(initial=0) > LOUDEST:
        raise ValueError(f"it holds values above {LOUDEST:g}, where -1..1 is meant")
    return np.ascontiguousarray(waveform, dtype=np.float32)


# --- what was resampled ------------------------------------------------------------------------------------------


def kept_file(path: str, folder: Path, samples: int) -> Path:
    """Where the first samples of a file are kept at 16 kHz: below the data's folder, or that of the user where nothing
    can be written there.

    Its name is of the file's place in the folder, size and time, so a file that was replaced is resampled anew.

    Args:
        path: of the file.
        folder: of the data.
        samples: how many.
    """
    status = os.stat(path)
    named = os.path.relpath(path, folder), status.st_size, status.st_mtime_ns, samples, RATE, VERSION
    name = digest_of(repr(named).encode())
    place = folder / KEPT
    if not os.access(place if place.is_dir() else folder, os.W_OK):
        user = Path(os.environ.get(CACHE) or "~/.cache/vitdistill").expanduser()
        place = user / "sounds" / digest_of(os.fsencode(os.path.realpath(folder)))
    return place / name[:2] / f"{name}.npy"


def _kept(file: Path, samples: int) -> Float32[np.ndarray, "samples"] | None:
    """What was kept; None where that is nothing, or not whole."""
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (samples,) and found.dtype == np.float32 else None


def _keep(file: Path, waveform: Float32[np.ndarray, "samples"]) -> None:
    """Write for the next time. A full disk only costs that: the waveform is there."""
    try:
        write_atomically(file, lambda opened: np.save(opened, waveform))
    except (UserError, MachineError):
        return
