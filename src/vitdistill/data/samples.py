"""The interface of a set of samples: what one sample is, and how it becomes what a network sees.

To add a kind of data: subclass `Samples` in a folder of its own, and name it in a source that `open.py` opens. Nothing
else in the package asks whether samples are images, clips or anything else.
"""

import errno
import hashlib
import struct
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from PIL import Image

from vitdistill.errors import MachineError, OutOfMemoryError, UserError, error_words, refuse_given

if TYPE_CHECKING:  # torch takes seconds to load, and the command line refuses missing data without it
    from torch import Tensor

    from vitdistill.data.device import OnDevice
    from vitdistill.data.images.recipes import Augment
    from vitdistill.data.images.views import MultiCrop
    from vitdistill.types import InputSpec

# What decoders raise on missing, truncated, mislabelled or oversized files, and what the machine raises by itself:
# `reason_of` tells one from the other.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# No fault of the file: too many open files, no permission, disk full, quota, a stale network file system.
MACHINE = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ESTALE}
# The same when the system says so; FFmpeg says it of damaged files.
MACHINE_BY_ITSELF = {errno.EIO, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
REMEDIES = {
    errno.EMFILE: "Allow more with `ulimit -n 65536`, or use fewer --loader.workers",
    errno.ENFILE: "Close other programs, or use fewer --loader.workers",
    errno.EACCES: "Give yourself permission to read it",
    errno.EPERM: "Give yourself permission to read it",
}
REASON = 300  # longest reason, in characters


class Problem(NamedTuple):
    """Something wrong with an annotation of one sample.

    Attributes:
        kind: what, in the words of `vitdistill check`.
        number: of the sample in its set.
        detail: which annotation, and what of it.
    """

    kind: str
    number: int
    detail: str


class Unreadable(NamedTuple):
    """A sample that could not be read, and why."""

    path: str
    reason: str


def reason_of(error: Exception, path: str) -> str:
    """Why a sample is unreadable, in one line without its path.

    Args:
        error: one of `UNREADABLE`.
        path: what the sample is called.

    Raises:
        UserError: when the error is one.
        MachineError, OutOfMemoryError: when it is no fault of the file.
    """
    if isinstance(error, UserError):
        raise error
    number = error.errno if isinstance(error, OSError) else None
    text = (error.strerror if isinstance(error, OSError) and number is not None else None) or error_words(error)
    if type(error) is MemoryError:
        remedy = "Use fewer --loader.workers, or make the file smaller"
        raise OutOfMemoryError("There must be enough memory to decode a sample", path, remedy) from error
    by_itself = type(error).__module__ == "builtins" and number in MACHINE_BY_ITSELF
    if number in MACHINE or by_itself:
        remedy = REMEDIES.get(number or 0, "")
        raise MachineError(f"{path} could not be opened, for no fault of the file", text, remedy, number) from error
    return text.removeprefix(f"{path}: ").replace(f" '{path}'", "")[:REASON]


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What users choose of how samples are made ready. A set refuses what would do nothing to its samples.

    Attributes:
        augment: the recipe.
        stride: of clips, frames from one to the next in dense sampling; None chooses by the data.
        sampling: of clips, dense or uniform; None is dense.
        clips: of videos in testing, clips spread over each.
        crops: of videos in testing, crops of each clip: 1 or 3.
        labels: False where training uses no labels; clips are then cropped as in VideoMAE's pre-training.
        several: several crops of each image in place of one.
        ratios: of images with masks in testing, factors on their size at which they are seen.
    """

    augment: "Augment"
    stride: int | None = None
    sampling: str | None = None
    clips: int = 1
    crops: int = 1
    labels: bool = True
    several: "MultiCrop | None" = None
    ratios: tuple[float, ...] = (1.0,)


def refuse_several(options: ViewOptions) -> None:
    """For sets of videos.

    Raises:
        UserError: when several crops of a sample are asked for.
    """
    if options.several is not None:
        raise UserError("Several crops are made of images", "videos", "Give images, or pre-train on clips by videomae")


def refuse_sound(spec: "InputSpec", options: ViewOptions, word: str) -> None:
    """For sets of what can be seen.

    Args:
        spec: what the network takes.
        options: what the user chose.
        word: what samples are called.

    Raises:
        UserError: when the network takes sounds, or options of sounds were given.
    """
    if spec.sound:
        raise UserError("A network over spectrograms needs sounds", f"{word}s", "Give sounds, or a network over images")
    if options.augment.recipe == "sound":
        raise UserError("--augment.recipe sound is for sounds", f"{word}s", "Choose another recipe, or give sounds")
    refuse_given(options.augment.given(("freq_mask", "time_mask")), f"on {word}s")


@dataclass(frozen=True, slots=True)
class Facts:
    """What decoding one whole sample has told.

    Attributes:
        width: pixels, as it is shown (after any rotation); None where that means nothing.
        height: as `width`.
        frames: of a video.
        fps: frames per second of a video, where its file says.
        content: equal for samples that show the same, whatever their files are called; None where nobody can tell.
        seconds: of a sound.
        rate: samples per second of a sound.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    content: str | None = None
    seconds: float | None = None
    rate: int | None = None


@dataclass(frozen=True)
class SeveralViews:
    """What a transform makes of one sample where a method wants more than one view of it.

    Attributes:
        views: uint8 images (3, height, width) or clips (3, t, height, width), each of a size of its own.
        target: what the transform made of the label; None leaves it as it is.
    """

    views: "tuple[Tensor, ...]"
    target: "Tensor | None" = None


@runtime_checkable
class Transform(Protocol):
    """From a sample to what the device gets, which is what `Samples.on_device` takes: uint8 pixels, or a waveform.

    One whose images differ in size says so by an attribute `sizes_differ` that is true: the loader then fills them up
    to the largest height and width in the batch.
    """

    @property
    def random(self) -> bool:
        """Whether the outcome depends on the state of the random number generators."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of what comes out: (3, height, width) or (3, t, height, width), of sounds (samples,); of several views, a
        tuple of such shapes."""

    def __call__(self, sample: Any, /) -> "Tensor | tuple[Tensor, Tensor] | SeveralViews":
        """One view; one view with the target that goes with it, e.g. boxes that were flipped alike; or several."""


def digest_of(*parts: bytes) -> str:
    """A hex digest of all parts, for `Samples.digest`."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class Samples(ABC):
    """Samples that are read one at a time. Must be picklable: loader workers receive a copy.

    Attributes:
        word: what one sample is called in messages.
        thing: what has a class, where that is not the whole sample.
        has_frames: whether a sample is a video, from which clips can be cut.
        in_memory: whether `load` is a memory read; such sets are loaded without workers, and what a
            transform without randomness makes of them is kept.
        random: whether `load` draws from the random number generators.
    """

    word: ClassVar[str]
    thing: ClassVar[str | None] = None
    has_frames: ClassVar[bool] = False
    in_memory = False
    random = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def load(self, index: int) -> tuple[Any, int | None]:
        """Read one sample, or open it where reading can wait until the transform says what it needs (videos).

        Returns:
            The sample, which the set's own transforms take, and its class number; None where there are no labels.

        Raises:
            OSError, SyntaxError, ValueError: when the sample is unreadable, with the reason in words; `UNREADABLE` has
                the full list.
        """

    @abstractmethod
    def path(self, index: int) -> str:
        """What to call the sample in messages: its file, where it has one."""

    def inspect(self, index: int) -> Facts:
        """Decode the whole of one sample, which training may never ask for; `vitdistill check` does so for all.

        Raises:
            OSError, SyntaxError, ValueError: as `load`.
        """
        self.load(index)
        return Facts()

    def problems(self) -> "Sequence[Problem]":
        """What is wrong with annotations, as far as reading them has shown; `vitdistill check` lists it."""
        return ()

    def class_counts(self) -> "Counter[int]":
        """How often each class number occurs, of which `thing` says what has a class; empty without classes."""
        return Counter(self.labels or ())

    def short_side(self, index: int) -> int | None:
        """Shorter edge of one sample in pixels, read from its header where it has one; None where that means nothing.

        Raises:
            OSError, SyntaxError, ValueError: as `load`.
        """
        return None

    @property
    @abstractmethod
    def labels(self) -> list[int] | None:
        """Class number of every sample, without loading any; None where samples have no class."""

    @abstractmethod
    def transform(self, spec: "InputSpec", options: ViewOptions, *, train: bool) -> Transform:
        """How samples become inputs of a network.

        Args:
            spec: what the network takes.
            options: what the user chose.
            train: with the recipe's randomness; otherwise as in validation.

        Raises:
            UserError: when the network takes something else than these samples can give, or an option would change
                nothing or is out of range.

        Example:
            >>> transform = source.train.transform(student.input, ViewOptions(augment=Augment()), train=True)
            >>> image, label = source.train.load(0)
            >>> transform(image).shape
            torch.Size([3, 224, 224])
        """

    def on_device(self, spec: "InputSpec", options: ViewOptions, classes: int) -> "OnDevice":
        """What happens to batches behind their transfer to the device; by default what happens to pictures.

        Args:
            spec: what the network takes.
            options: as for `transform`.
            classes: length of the soft targets of mixed batches.

        Raises:
            UserError: when an option of the recipe is out of range.
        """
        from vitdistill.data.device import OnDevice

        return OnDevice(options.augment, spec.mean, spec.std, classes)

    def shown(self, indices: Sequence[int], size: tuple[int, int]) -> "Tensor":
        """Some samples as pictures show them, before anything that belongs to one network.

        Args:
            indices: which.
            size: height and width in pixels; of spectrograms, mel bins and frames.

        Returns:
            RGB as uint8 (b, 3, height, width), the middle frame of videos; of sounds, log-mel energies
            (b, 1, mel bins, frames).

        Raises:
            OSError, SyntaxError, ValueError: as `load`.
        """
        import torch
        from torchvision.transforms.functional import center_crop

        from vitdistill.data.images.augment import Augment
        from vitdistill.types import InputSpec

        spec = InputSpec((3, *size), (0.0,) * 3, (1.0,) * 3)  # nothing is normalised
        transform = self.transform(spec, ViewOptions(augment=Augment(recipe="none")), train=False)
        made = (transform(self.load(index)[0]) for index in indices)
        images = (one[0] if isinstance(one, tuple) else one for one in made)
        # Images with masks are larger than a network's input, which slides over them.
        return torch.stack([center_crop(image, list(size)) for image in images if isinstance(image, torch.Tensor)])

    def digest(self) -> str | None:
        """A hex digest of which samples these are, and in which order; None where the set cannot tell.

        Equal for the same samples wherever they lie, so that a run goes on with the data that it was started on.
        """
        return None

    def check(self, spec: "InputSpec", options: ViewOptions) -> None:  # noqa: B027  # most sets have nothing to look at
        """Look at some samples before training; the set is given the arguments of `transform`.

        Raises:
            UserError: when no sample gives what the network needs, e.g. videos that are all shorter than a clip.
        """

    def preprocessing(self, spec: "InputSpec", options: ViewOptions) -> dict[str, Any]:
        """What the transform of validation does, for the record of a network; by default what it does to images.

        Args:
            spec: what the network takes.
            options: as for `transform`.
        """
        return image_preprocessing(spec, options.augment)


def image_preprocessing(spec: "InputSpec", augment: "Augment") -> dict[str, Any]:
    """What validation does to images: the shorter edge is resized to size / crop_pct, and the centre cropped."""
    options = augment.resolved()
    return {
        "size": list(spec.size),
        "channels": spec.shape[0],
        "crop_pct": options.crop_pct,
        "interpolation": options.interpolation,
        "crop_mode": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
