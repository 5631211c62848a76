"""Which class each pixel of an image belongs to."""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from vitdistill.data.device import OnDevice
from vitdistill.data.images.augment import Augment
from vitdistill.data.samples import ViewOptions
from vitdistill.data.segments.files import Head, SegmentFiles, SegmentTest
from vitdistill.data.segments.masks import IGNORED
from vitdistill.data.segments.sizes import scored_size
from vitdistill.data.segments.sources import open_segments
from vitdistill.data.segments.transforms import parted, tested
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, refuse_given, refuse_without_effect
from vitdistill.losses.segments import segmentation_terms
from vitdistill.models.families.pixels import PixelViT
from vitdistill.models.families.upernet import UperNetViT
from vitdistill.models.network import Network
from vitdistill.models.surgery.drop_path import drop_path_rates, set_drop_path
from vitdistill.models.surgery.segmenter import segmenter, upernet
from vitdistill.tasks.class_names import ClassNames
from vitdistill.tasks.confusion import FILE, Confusion, table
from vitdistill.tasks.pixels import MatrixOf, PixelScores, at_their_size, class_rows, own_size, resized_map
from vitdistill.tasks.task import Task
from vitdistill.tasks.windows import slide
from vitdistill.types import Output

if TYPE_CHECKING:
    from torchmetrics import Metric

PER_CLASS = "per_class.csv"
HEADS: dict[Head, Callable[..., Network]] = {
    "mask": partial(segmenter, decoder="mask"),
    "linear": partial(segmenter, decoder="linear"),
    "upernet": upernet,
    "upernet_wide": partial(upernet, necks="wide"),
}
OVERLAP = 32  # pixels that the windows of a Segmenter share in its test, or half of an input below 64
PLAIN: tuple[float, ...] = (1.0,)  # ratios of a test at one size


class Segmentation(Task):
    """Cross-entropy over all pixels that have a class; validated by mean IoU over the classes.

    Targets are (b, height, width) class numbers, 255 where there is none. In training all have the size of the
    network's input. In validation masks keep their own size, see `predict`.

    Example:
        >>> source, task = Segmentation.open("scenes", augment=Augment(recipe="none"))
        >>> method = Supervised(task.student(build("vit_tiny_patch16_224", image_size=48)), task=task)
    """

    score: ClassVar[str] = "miou"
    columns: ClassVar[dict[str, str]] = {"miou": "mIoU %", "macc": "mean recall %", "aacc": "pixels right %"}
    reads_grid: ClassVar[bool] = True
    per_sample: ClassVar[bool] = False
    names: ClassNames

    def __init__(
        self,
        classes: int | None = None,
        *,
        source: DataSource | None = None,
        stride: int | None = None,
        head: Head | None = None,
    ) -> None:
        """
        Args:
            classes: how many there are; None takes those of the data.
            source: whose classes a network's are compared with, by name; None compares their number alone.
            stride: pixels from one window to the next in images that are larger than the network's input; None is the
                size of that input, so that windows touch.
            head: what makes maps of a ViT: mask, linear, upernet or upernet_wide; None is mask.
        """
        self.names = names = ClassNames.of(source, classes)
        self.classes, self.stride, self.head = names.count, stride, head
        self.testing, self.ratios, self.flip, self.at_once = False, PLAIN, False, 1
        self._first: PixelScores | None = None

    @classmethod
    def open(cls, data: Any, *, augment: Augment, files: Any = None) -> "tuple[DataSource, Segmentation]":
        files = files or SegmentFiles()
        source = open_segments(data, files)
        return source, cls(source=source, stride=files.stride, head=files.head)

    @classmethod
    def source_of(cls, config: Mapping[str, Any]) -> DataSource:
        return cls.open(config["data"], augment=Augment(), files=SegmentFiles.recorded(config.get("segments")))[0]

    @classmethod
    def tested_files(
        cls, given: SegmentTest, network: Network, config: Mapping[str, Any], *, elsewhere: bool = False
    ) -> SegmentTest:
        unread = {"segments.head": given.head is not None, "segments.ratio": given.ratio is not None}
        refuse_given(unread, "in a test, but in training alone")
        return given.over(config.get("segments") or {})

    def with_head(
        self,
        body: Network,
        *,
        pool: Any = "auto",
        head_init: float = 0.001,
        new_head: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> Network:
        given = {"pool": pool, "dropout": dropout}
        why = "with --task segmentation, whose heads read every patch"
        refuse_without_effect(given, {"pool": "auto", "dropout": 0.0}, given, why)
        if isinstance(body, PixelViT) and not new_head:
            self._refuse_head(body)
            set_drop_path(body, drop_path)
            return body
        return self._made(body, drop_path)

    def keeps(self, body: Callable[[], Network]) -> bool:
        return isinstance(body(), PixelViT)

    @classmethod
    def of(cls, network: Network, *, smoothing: float = 0.0) -> "Segmentation":
        return cls(network.num_classes)

    def student(self, network: Network) -> Network:
        """A Segmenter or an UperNet as it is; a ViT with a decoder in place of its classifier."""
        if isinstance(network, PixelViT):
            self._refuse_head(network)
            return network
        return self._made(network, max(drop_path_rates(network), default=0.0))

    def _made(self, body: Network, drop_path: float) -> Network:
        if body.detections:
            raise UserError(
                "A detector does not label pixels", body.name, "Begin with a ViT, a Segmenter or an UperNet"
            )
        head: Head = self.head or ("upernet" if isinstance(body, UperNetViT) else "mask")
        return HEADS[head](body, self.classes, drop_path=drop_path)

    def _refuse_head(self, network: Network) -> None:
        if self.head is not None:
            raise UserError(
                f"--segments.head makes maps of a ViT; {network.name} labels pixels already",
                self.head,
                "Leave it out, or begin with a ViT",
            )

    def check(self, network: Network) -> None:
        if not isinstance(network, PixelViT):
            raise UserError(
                f"{network.name} does not label pixels",
                remedy="Choose a Segmenter or an UperNet (segmenter_small, upernet_vit_base), or train a ViT for it "
                "with --task segmentation",
            )
        self.names.match(network)
        if self.stride is not None and self.stride > min(network.input.size):
            rule = f"--segments.stride must be at most {min(network.input.size)}, the input of {network.name}"
            raise UserError(rule, self.stride, "Windows farther apart leave pixels out")
        side, patch = max(network.input.size), max(network.net.encoder.patch_embed.patch_size)
        if min(self.ratios) * side < patch:
            rule = f"--segments.test_ratios must leave a patch ({patch} pixels) of the {side} pixels of {network.name}"
            raise UserError(rule, f"{min(self.ratios):g}", f"Use at least {patch / side:g}")

    def tested(self, files: SegmentTest | None = None, at_once: int = 1) -> "Segmentation":
        """With windows that overlap, as finished networks are tested; at several sizes where that is asked for."""
        task = copy(self)
        task.testing, task._first, task.at_once = True, None, at_once
        if files is not None:
            task.stride, task.ratios, task.flip = files.stride, tuple(files.test_ratios or PLAIN), files.test_flip
        return task

    @property
    def one_by_one(self) -> bool:  # type: ignore[override]
        """Whether probabilities are averaged over several sizes, or mirror images."""
        return self.flip or self.ratios != PLAIN

    @property
    def views(self) -> ViewOptions:
        return replace(super().views, ratios=self.ratios)

    @property
    def test(self) -> str:
        if not self.one_by_one:
            return "single scale"
        scales = ", ".join(f"{ratio:g}" for ratio in self.ratios)
        return f"ratios {scales}{' and their mirror images' if self.flip else ''}"

    def read(
        self, network: Network, output: Output, targets: Tensor
    ) -> Float[Tensor, "b c height width"] | Float[Tensor, "b 2 c height width"]:
        """Scores of each pixel; behind them those of an auxiliary head, where the network trains one."""
        assert output.prediction is not None
        prediction = self.names.ordered(network, output.prediction)
        if output.distilled is None:
            return prediction
        return torch.stack((prediction, self.names.ordered(network, output.distilled)), dim=1)

    def predict(
        self, network: Network, inputs: Float[Tensor, "b ch height width"], targets: Shaped[Tensor, "b rows columns"]
    ) -> Tensor:
        """Scores at the size of the inputs; NaN where an image was filled up to the size of its batch.

        In a test at several sizes, logarithms of the mean probabilities at the size of the masks.

        Args:
            network: the student, or its average.
            inputs: at least of the size that the network takes; larger ones are seen through sliding windows. In a test
                at several sizes, the image at each of them, one below another.
            targets: masks at their own size, which tells that of each image in the batch.
        """
        crop = network.input.size
        if self.one_by_one:
            found = inputs.new_full((len(inputs), self.classes, *targets.shape[-2:]), torch.nan)
            for number, (image, mask) in enumerate(zip(inputs, targets, strict=True)):
                height, width = own = own_size(mask)
                images = parted(image[None], [scored_size(own, crop, ratio) for ratio in self.ratios])
                found[number, :, :height, :width] = self.averaged(network, images, own)[0]
            return found
        if tuple(inputs.shape[-2:]) == crop:
            return self.read(network, network(inputs), targets)
        sizes = [scored_size(own_size(mask), crop) for mask in targets]
        return self.slide(network, inputs, sizes)

    @torch.inference_mode()
    def labelled(self, network: Network, image: Image.Image) -> UInt8[np.ndarray, "height width"]:
        """The class number of each pixel of a picture, at its own size.

        Args:
            network: in eval mode.
            image: RGB.
        """
        spec, place = network.input, next(network.parameters()).device
        size = (image.height, image.width)
        pixels = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        on_device = OnDevice(Augment(recipe="none"), spec.mean, spec.std, self.classes)
        images = (on_device.eval(tested(pixels, spec.size, ratio)[None].to(place)) for ratio in self.ratios)
        scores = self.averaged(network, images, size) if self.one_by_one else self.at_size(network, next(images), size)
        return scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    def averaged(
        self, network: Network, images: Iterable[Float[Tensor, "1 ch _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "1 c height width"]:
        """Logarithms of the mean of the probabilities at several sizes, and of mirror images.

        Args:
            network: in eval mode.
            images: one image at each size, one after the other.
            size: height and width at which they are averaged.
        """
        total, count = None, 0
        for image in images:
            for mirrored in (False, True)[: 1 + self.flip]:
                scores = self.at_size(network, image.flip(-1) if mirrored else image, size).log_softmax(dim=1)
                scores = scores.flip(-1) if mirrored else scores
                total, count = scores if total is None else torch.logaddexp(total, scores), count + 1
        assert total is not None
        return total - math.log(count)

    def at_size(
        self, network: Network, image: Float[Tensor, "1 ch _ _"], size: tuple[int, int]
    ) -> Float[Tensor, "1 c height width"]:
        """Scores of one image through sliding windows, brought to another size."""
        own = (image.shape[-2], image.shape[-1])
        return resized_map(self.slide(network, image, [own], self.at_once), size)

    def slide(
        self,
        network: Network,
        inputs: Float[Tensor, "b ch height width"],
        sizes: list[tuple[int, int]],
        at_once: int | None = None,
    ) -> Float[Tensor, "b c height width"]:
        """Scores through sliding windows.

        Args:
            network: in eval mode.
            inputs: filled up to one size.
            sizes: height and width of each without that.
            at_once: windows that are looked at at once; None is as many as there are inputs.
        """

        def scores(windows: Tensor) -> Tensor:
            found = network(windows).prediction
            assert found is not None
            return self.names.ordered(network, found)

        return slide(scores, inputs, sizes, network.input.size, self.stride_of(network), at_once)

    def stride_of(self, network: Network) -> int:
        """Pixels from one window to the next: as given, else by the family's publication."""
        side = min(network.input.size)
        if self.stride is not None:
            return self.stride
        if not self.testing:
            return side
        return round(2 * side / 3) if isinstance(network, UperNetViT) else max(side - OVERLAP, side // 2)

    def loss(self, prediction: Tensor, targets: Shaped[Tensor, "b height width"]) -> dict[str, Float[Tensor, ""]]:
        if prediction.ndim == 5:
            return segmentation_terms(prediction[:, 0], prediction[:, 1], targets)
        return segmentation_terms(prediction, None, targets)

    def validation_loss(
        self, prediction: Float[Tensor, "b c height width"], targets: Shaped[Tensor, "b rows columns"]
    ) -> Float[Tensor, ""]:
        """Over images, the mean over the pixels of each that have a class."""
        total = prediction.new_zeros((), dtype=torch.float32)
        for scores, true in at_their_size(prediction, targets):
            losses = F.cross_entropy(scores.float(), true, ignore_index=IGNORED, reduction="none").flatten(1)
            total = total + (losses.sum(dim=1) / (true != IGNORED).flatten(1).sum(dim=1).clamp_min(1)).sum()
        return total

    def metrics(self) -> "dict[str, Metric]":
        """One that gives all three, since they are of one matrix."""
        scores = PixelScores(self.classes)
        if self._first is None:
            self._first = scores
        return {"miou": scores}

    def details(self) -> "Metric | None":
        """The matrix of the first of `metrics`."""
        return None if self._first is None else MatrixOf(self._first)

    def detail_files(self, details: Tensor, source: DataSource) -> dict[str, str]:
        rows = class_rows(details, source.classes)
        return {PER_CLASS: table(rows, list(rows[0])), FILE: Confusion.of(details, source.classes).csv()}

    def per_class(self, details: Tensor, source: DataSource) -> list[dict[str, Any]]:
        return class_rows(details, source.classes)
