"""Manifold distillation of networks that label pixels: the masked teacher's encoder runs, and nothing behind it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.losses.segments import pixel_cross_entropy, segmentation_terms
from vitdistill.methods.dino import DINO
from vitdistill.methods.mae import MAE
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.terms.options import Manifold, Terms
from vitdistill.methods.tinymim import TinyMIM
from vitdistill.models.build import build
from vitdistill.models.families.pixels import PixelViT
from vitdistill.models.network import Network
from vitdistill.tasks.task import Task
from vitdistill.types import Capture, Output

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
LABELS = torch.randint(0, 5, (3, 32, 32), generator=torch.Generator().manual_seed(5)).to(torch.uint8)


class Pixels(Task):
    """Labels of pixels without data: what a method asks of a task in training."""

    score, columns, reads_grid = "ce", {"ce": "loss"}, True

    @classmethod
    def open(cls, data: Any, *, augment: Any, files: Any = None) -> tuple[DataSource, Task]:
        raise NotImplementedError

    @classmethod
    def of(cls, network: Network, *, smoothing: float = 0.0) -> "Pixels":
        return cls()

    def with_head(self, body: Network, **options: Any) -> Network:
        return body

    def check(self, network: Network) -> None:
        assert isinstance(network, PixelViT)

    def read(self, network: Network, output: Output, targets: Tensor) -> Tensor:
        assert output.prediction is not None
        both = [output.prediction, *([] if output.distilled is None else [output.distilled])]
        return torch.stack(both, dim=1)

    def loss(self, prediction: Tensor, targets: Tensor) -> dict[str, Tensor]:
        auxiliary = prediction[:, 1] if prediction.shape[1] == 2 else None
        return segmentation_terms(prediction[:, 0], auxiliary, targets)

    def validation_loss(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return pixel_cross_entropy(prediction[:, 0], targets) * len(targets)

    def metrics(self) -> dict[str, Any]:
        return {}


def network(name: str = "segmenter_tiny", seed: int = 0, **args: Any) -> PixelViT:
    torch.manual_seed(seed)
    found = build(name, args={**TINY, **args}, num_classes=5)
    assert isinstance(found, PixelViT)
    return found


def maskedkd(student: PixelViT, teacher: PixelViT | None = None, **options: Any) -> MaskedKD:
    teacher = teacher or network(seed=1, embed_dim=48, depth=4)
    return MaskedKD(student, teacher, **{"task": Pixels(), "distill": "manifold", "keep": 12, **options}).train()


@pytest.mark.parametrize(
    ("student", "teacher"), [("segmenter_tiny",) * 2, ("upernet_vit_tiny", "segmenter_tiny"), ("upernet_vit_tiny",) * 2]
)
def test_a_step_under_a_masked_teacher_that_never_decodes(images: Tensor, student: str, teacher: str) -> None:
    method = maskedkd(network(student), network(teacher, seed=1, embed_dim=48, depth=4))
    guide, decoded, seen = method.teacher.network, [], []
    for part in guide.net.decoder.modules():
        part.register_forward_hook(lambda *_: decoded.append(1))
    guide.blocks[-1].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    step = method(images, LABELS)
    step.loss.backward()
    assert not decoded and seen == [1 + 12]
    assert step.kept.shape == (3, 12) and bool((step.kept[:, 1:] > step.kept[:, :-1]).all())
    assert step.teacher_prediction is None and step.prediction is not None
    auxiliary = {"auxiliary"} if student.startswith("upernet") else set()
    assert set(step.terms) == {"ce", "manifold_intra", "manifold_inter", "manifold_random"} | auxiliary
    assert all(bool(term.isfinite()) for term in step.terms.values())
    assert not [name for name, p in method.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_labels_count_fully_beside_the_manifold(images: Tensor) -> None:
    """Loss = CE + 4 intra + 0.1 inter + 0.2 random."""
    step = maskedkd(network())(images, LABELS)
    weights = {"ce": 1.0, "manifold_intra": 4.0, "manifold_inter": 0.1, "manifold_random": 0.2}
    torch.testing.assert_close(step.loss.detach(), sum(weights[name] * value for name, value in step.terms.items()))


@pytest.mark.parametrize("kind", ["cls", "patch", "decoder"])
def test_who_ranks_the_patches(images: Tensor, kind: Any) -> None:
    """The student's one pass is all that is needed, its decoder's attention included."""
    student, ran = network(dropout=0.0), []
    student.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    method = maskedkd(student, saliency=kind)
    kept = method(images, LABELS).kept
    assert len(ran) == 1
    with torch.no_grad():
        output = student(images, capture=student.saliency_capture(-1, kind))
    expected = student.saliency(output, -1, kind).topk(12, dim=1).indices.sort(dim=1).values
    assert torch.equal(kept, expected)


def test_the_cost_is_that_of_the_teachers_encoder() -> None:
    method = maskedkd(network())
    student, teacher = method.passes(0.0)
    guide = method.teacher.network
    assert teacher.kept == 12 and not teacher.capture.head
    assert teacher.macs == guide.macs(12, Capture.at(-1, "output", head=False)).total < guide.macs().total
    assert student.macs == method.student.macs().total


def test_blocks_of_both_by_default_and_by_name(images: Tensor) -> None:
    terms = Terms(manifold=Manifold(student_blocks=[0, 2], teacher_blocks=[0, 3]))
    assert maskedkd(network(), terms=terms).terms[0].pairs == [(0, 0), (2, 3)]
    twelve = maskedkd(network(depth=12), network(seed=1, depth=12))
    assert twelve.terms[0].pairs == [(block, block) for block in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert twelve.terms[0].rows == 192


def test_class_scores_of_pixels_are_not_compared_as_those_of_inputs() -> None:
    with pytest.raises(
        UserError, match="class scores of whole inputs; got segmenter_tiny, which labels pixels"
    ) as caught:
        maskedkd(network(), distill="logits+manifold", keep=1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [DINO, MAE, lambda student: TinyMIM(student, network())])
def test_pretraining_is_of_networks_without_such_a_head(method: Any) -> None:
    with pytest.raises(
        UserError, match=r"got segmenter_tiny, which labels pixels\. Choose the ViT that it was made of$"
    ):
        method(network())


def test_masks_that_would_leave_holes_are_refused() -> None:
    with pytest.raises(UserError, match="head of segmenter_tiny reads the whole grid of patches") as caught:
        maskedkd(network(), mask="student")
    assert "\n" not in str(caught.value)
    maskedkd(network(), distill="manifold", keep=1.0, mask="student")


def test_attention_needs_no_decoder(images: Tensor) -> None:
    """The class tokens behind the teacher's final norm are those of a pass up to its head, which does not run."""
    method = maskedkd(network(), distill="attention")
    guide = method.teacher.network
    guide.net.decoder.register_forward_hook(lambda *_: pytest.fail("the teacher's decoder ran"))
    step = method(images, LABELS)
    assert {"ce", "attention", "attention_cls"} == set(step.terms) and step.kept.shape == (len(images), 12)
    step.loss.backward()
    assert method.terms[0].project[1].weight.grad.abs().sum() > 0
    capture = method.terms[0].captures()[1]
    assert not capture.head and method.passes(0.0)[1].macs == guide.macs(12, capture).total < guide.macs().total


@torch.no_grad()
def test_final_tokens_are_those_of_the_whole_pass(images: Tensor) -> None:
    guide = network()
    whole, early = guide(images), guide(images, capture=guide.final_capture())
    assert early.prediction is None and torch.equal(early.final.all, whole.final.all)
    assert set(early.captured) == guide.final_capture().points
    norm = guide.macs(None, guide.final_capture()).total - guide.macs(None, Capture.at(-1, "output", head=False)).total
    assert (
        norm
        == guide.macs(None, guide.final_capture()).layernorm
        - guide.macs(None, Capture.at(-1, "output", head=False)).layernorm
        > 0
    )
    few = torch.arange(12).expand(len(images), -1)
    masked = guide(images, keep=few, capture=guide.final_capture())
    block = guide(images, keep=few, capture=Capture.at(-1, "output", head=False)).tokens(-1)
    assert torch.equal(masked.final.all, guide.net.encoder.norm(block.all))
