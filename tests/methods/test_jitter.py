import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vitdistill.errors import UserError
from vitdistill.methods.jitter import Jitter, apply_jitter, color_jitter, draw_jitter

TORCHVISION = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.rand(5, 3, 12, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ORDERS)
def test_every_image_equals_torchvisions_with_the_same_factors(order, batch):
    # 0 and 2 are the ends of strength 1; 1 changes nothing.
    factors = torch.tensor([[0.0, 0.6, 1.0, 1.4, 2.0], [1.4, 0.0, 0.6, 2.0, 1.0], [2.0, 1.0, 0.3, 0.0, 1.4]])
    before = batch.clone()
    ours = apply_jitter(batch, Jitter(factors, order))
    for number, image in enumerate(batch):
        for step in order:
            image = TORCHVISION[step](image, factors[step, number].item())
        torch.testing.assert_close(ours[number], image, rtol=1e-5, atol=1e-6)
    assert torch.equal(batch, before), "the teacher sees the same batch without jitter"


def test_factors_are_uniform_and_differ_by_image_and_operation():
    torch.manual_seed(0)
    factors, _ = draw_jitter(torch.zeros(4000, 3, 1, 1), 0.4)
    assert factors.shape == (3, 4000) and 0.6 <= factors.min() < 0.602 and 1.398 < factors.max() <= 1.4
    torch.testing.assert_close(factors.mean(1), torch.ones(3), rtol=0, atol=0.02)
    torch.testing.assert_close(factors.std(1), torch.full((3,), 0.8 / 12**0.5), rtol=0, atol=0.01)
    assert factors.unique().numel() > 10_000


def test_every_order_occurs(batch):
    torch.manual_seed(0)
    assert {draw_jitter(batch, 0.4).order for _ in range(100)} == set(ORDERS)


def test_on_average_as_torchvisions_transform(batch):
    image = batch[:1] * 0.8
    torch.manual_seed(0)
    ours = color_jitter(image.expand(2000, -1, -1, -1), 0.4)
    transform = v2.ColorJitter(0.4, 0.4, 0.4)
    theirs = torch.stack([transform(image[0]) for _ in range(2000)])
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.02
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.02


def test_seeding_repeats_it_and_nothing_leaves_the_range(batch):
    def jittered(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return color_jitter(batch, 1.0)

    first = jittered(1)
    assert torch.equal(first, jittered(1)) and not torch.equal(first, jittered(2))
    assert first.min() >= 0 and first.max() <= 1 and first.shape == batch.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_stays(dtype, batch):
    jitter = draw_jitter(batch, 0.4)
    ours = apply_jitter(batch.to(dtype), Jitter(jitter.factors.to(dtype), jitter.order))
    assert ours.dtype == dtype == color_jitter(batch.to(dtype), 0.4).dtype
    torch.testing.assert_close(ours.float(), apply_jitter(batch, jitter), rtol=0, atol=0.03)


def test_strength_zero_returns_the_same_tensor_and_draws_nothing(batch):
    state = torch.get_rng_state()
    assert color_jitter(batch, 0.0) is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch_stays_empty(batch):
    assert color_jitter(batch[:0], 0.4).shape == (0, 3, 12, 9)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), float("inf")])
def test_strength_out_of_range_is_refused(strength, batch):
    for function in (color_jitter, draw_jitter):
        with pytest.raises(UserError, match=rf"between 0 \(off\) and 1; got {strength}"):
            function(batch, strength)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_repeats_and_never_waits_for_the_device(batch):
    images = batch.cuda()
    color_jitter(images, 0.4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes = []
        for _ in range(2):
            torch.manual_seed(3)
            outcomes.append(color_jitter(images, 0.4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(outcomes[0], outcomes[1]) and outcomes[0].device == images.device


def test_grey_images_have_no_saturation_and_keep_their_shape():
    images = torch.rand(4, 1, 6, 5)
    torch.manual_seed(0)
    jittered = color_jitter(images, 0.4)
    assert jittered.shape == images.shape and not torch.equal(jittered, images)
    grey = Jitter(torch.tensor([[1.0] * 4, [1.0] * 4, [0.3] * 4]), (0, 1, 2))
    assert torch.allclose(apply_jitter(images, grey), images)
