"""Cross-entropy over labelled pixels, against sums written out by hand."""

import torch

from vitdistill.losses.segments import pixel_cross_entropy, segmentation_terms


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 3, 5), dtype=torch.uint8)
    labels[0, 0], labels[1, 2, 1:] = 255, 255
    return torch.randn(2, 4, 3, 5, requires_grad=True), labels


def test_it_is_the_mean_over_labelled_pixels() -> None:
    logits, labels = batch()
    losses = [
        -logits[i, :, y, x].log_softmax(0)[int(labels[i, y, x])]
        for i in range(2)
        for y in range(3)
        for x in range(5)
        if labels[i, y, x] != 255
    ]
    assert len(losses) == 21
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), torch.stack(losses).mean())


def test_ignored_pixels_get_no_gradient_and_nothing_but_them_is_no_loss() -> None:
    logits, labels = batch()
    pixel_cross_entropy(logits, labels).backward()
    assert torch.equal(logits.grad.abs().sum(dim=1) > 0, labels != 255)
    logits.grad = None
    nothing = pixel_cross_entropy(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert not nothing.detach() and not logits.grad.any()


def test_the_auxiliary_head_counts_for_two_fifths() -> None:
    logits, labels = batch()
    auxiliary = torch.randn_like(logits)
    terms = segmentation_terms(logits, auxiliary, labels)
    assert torch.equal(terms["ce"], pixel_cross_entropy(logits, labels))
    assert torch.equal(terms["auxiliary"], 0.4 * pixel_cross_entropy(auxiliary, labels))
    assert set(segmentation_terms(logits, None, labels)) == {"ce"}


def test_halves_are_added_in_single_precision() -> None:
    logits, labels = batch()
    assert pixel_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
