import pickle
import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode

from vitdistill.data import Augment, open_source
from vitdistill.data.images.augment import RECIPES, RecipeName, ResolvedAugment
from vitdistill.data.images.recipes import eval_transform, train_transform
from vitdistill.errors import UserError


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def step_names(transform) -> list[str]:
    return [type(step).__name__ for step in transform.steps.transforms]


def test_deit_is_the_published_recipe():
    deit = Augment(recipe="deit").resolved()
    assert (deit.auto_augment, deit.mixup, deit.cutmix, deit.erasing) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.25)
    assert (deit.repeats, deit.smoothing, deit.interpolation) == (3, 0.1, "bicubic")
    assert (deit.scale, deit.hflip, deit.crop_pct) == (0.08, 0.5, 0.875)
    names = step_names(train_transform(deit, 32))
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert Augment(recipe="deit").mixes


def test_tiny_is_crop_and_flip_only():
    tiny = Augment().resolved()
    assert tiny.recipe == "tiny" and tiny.smoothing == 0.1 and tiny.repeats == 1 and not tiny.mixes
    transform = train_transform(tiny, 32)
    assert step_names(transform)[:2] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip"]
    assert len(step_names(transform)) == 3 and transform.random
    assert transform.steps.transforms[0].scale == (0.08, 1.0)


def test_finetune_is_deit_with_every_image_once():
    finetune, deit = Augment(recipe="finetune").resolved(), Augment(recipe="deit").resolved()
    assert replace(finetune, recipe="deit", repeats=3, color_jitter=0.3) == deit
    assert finetune.repeats == 1 and finetune.color_jitter == 0 and finetune.mixes
    assert step_names(train_transform(finetune, 32)) == step_names(train_transform(deit, 32))


def test_pretrain_is_a_crop_and_a_flip_and_needs_no_labels():
    pretrain = Augment(recipe="pretrain").resolved()
    assert pretrain.smoothing == 0 and pretrain.erasing == 0 and pretrain.repeats == 1 and not pretrain.mixes
    crop, flip, _to_tensor = train_transform(pretrain, 32).steps.transforms
    assert crop.scale == (0.2, 1.0) and crop.interpolation == InterpolationMode.BICUBIC and flip.p == 0.5


def test_none_has_nothing_random_and_equals_validation(photo):
    none = Augment(recipe="none")
    assert none.resolved().smoothing == 0 and not none.mixes
    train, val = train_transform(none, 32), eval_transform(none, 32)
    assert not train.random and not val.random
    assert torch.equal(train(photo), val(photo)) and torch.equal(train(photo), train(photo))


def test_none_leaves_images_of_the_right_size_alone():
    source = open_source("digits")
    image, _ = source.train.load(0)
    exact = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for make in (train_transform, eval_transform):
        assert torch.equal(make(Augment(recipe="none"), source.image_size)(image), exact)


def test_options_change_the_recipe_and_nothing_else():
    changed = Augment(recipe="deit", mixup=0.0, cutmix=0.0, auto_augment="none", scale=0.3).resolved()
    assert changed.mixup == 0 and changed.scale == 0.3 and changed.erasing == 0.25 and not changed.mixes
    assert "RandAugment" not in step_names(train_transform(changed, 32))
    assert changed.resolved() == changed and isinstance(changed, ResolvedAugment)


def test_no_crop_with_a_flip_keeps_the_centre(photo):
    transform = train_transform(Augment(recipe="none", hflip=1.0), 32)
    assert transform.random
    assert torch.equal(transform(photo).flip(-1), eval_transform(Augment(recipe="none"), 32)(photo))


def test_jitter_is_used_when_asked_for():
    assert "ColorJitter" in step_names(train_transform(Augment(color_jitter=0.4), 32))


def test_validation_is_timms(photo):
    ours = eval_transform(Augment(), 32)(photo)
    timms = create_transform(32, crop_pct=0.875, interpolation="bicubic", use_prefetcher=True)(photo)
    assert torch.equal(ours, torch.as_tensor(np.asarray(timms)))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", [32, (32, 32), (32, 24)])
def test_transforms_give_uint8_of_the_asked_size(recipe, size, photo):
    height, width = (size, size) if isinstance(size, int) else size
    for make in (train_transform, eval_transform):
        transform = pickle.loads(pickle.dumps(make(Augment(recipe=recipe), size)))
        pixels = transform(photo)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, height, width)


def test_flag_random_is_true_exactly_when_outcomes_differ(photo):
    for options in ({}, {"recipe": "deit"}, {"recipe": "none", "hflip": 0.5}, {"recipe": "none", "color_jitter": 0.4}):
        transform = train_transform(Augment(**options), 32)
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        outcomes = [transform(photo) for _ in range(12)]
        assert transform.random and any(not torch.equal(outcomes[0], other) for other in outcomes)


def test_all_errors_are_reported_together():
    wrong = Augment(scale=0.0, hflip=2.0, mixup=-1.0, repeats=0, smoothing=float("nan"), auto_augment="rnd-m9")
    with pytest.raises(UserError) as error:
        wrong.resolved()
    message = str(error.value)
    for part in ("scale 0.0", "hflip 2.0", "mixup -1.0", "repeats 0", "smoothing nan", "auto_augment 'rnd-m9'"):
        assert part in message
    assert "\n" not in message and "erasing" not in message


@pytest.mark.parametrize("policy", ["rand-m7-n4-mstd0.5-inc1", "augmix-m5-w4-d2", "original-mstd0.5", "3a"])
def test_timm_policies_are_accepted(policy):
    assert Augment(auto_augment=policy).resolved().auto_augment == policy


def test_every_recipe_can_be_named_and_carries_its_name():
    assert set(get_args(RecipeName)) == set(RECIPES)
    assert all(recipe.recipe == name for name, recipe in RECIPES.items())


def test_unknown_recipe_names_what_is_near():
    augment = Augment()
    object.__setattr__(augment, "recipe", "deti")
    with pytest.raises(UserError, match=r"one of tiny, deit, .*, none; got 'deti'\. Did you mean 'deit'"):
        augment.resolved()


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (3, 2)])
@pytest.mark.parametrize("recipe", ["none", "tiny"])
def test_images_of_one_pixel_and_long_strips(size, recipe):
    strip = Image.new("RGB", size, (10, 200, 30))
    for make in (train_transform, eval_transform):
        pixels = make(Augment(recipe=recipe), 32)(strip)
        assert pixels.shape == (3, 32, 32) and pixels.float().mean((1, 2)).tolist() == [10, 200, 30]
