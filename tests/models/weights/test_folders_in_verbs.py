"""A folder that transformers saved, where a model is taken: evaluated, as a teacher, and as a student's start."""

import json
from pathlib import Path

import pytest
import torch

import vitdistill
from vitdistill.models.build import build

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT for the bundled digits, untrained."""
    path = tmp_path_factory.mktemp("saved")
    names = {number: str(number) for number in range(10)}
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=12, patch_size=2, id2label=names)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(path)
    images = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 12, "width": 12}, "resample": 2}
    (path / "preprocessor_config.json").write_text(json.dumps(images))
    return path


def test_preparation_of_images(folder):
    network = build(str(folder))
    assert network.net.pretrained_cfg["crop_pct"] == 1.0
    assert network.net.pretrained_cfg["interpolation"] == "bilinear"


def test_evaluate(folder):
    result = vitdistill.evaluate(str(folder), data="digits", batch_size=512, workers=0)
    assert 0 <= result["top1"] <= 100 and result["images"] > 100


def test_a_masked_teacher_and_a_student_that_starts_from_it(folder):
    student = build(str(folder), num_classes=10)
    method = vitdistill.MaskedKD(student, vitdistill.Teacher.of(build(str(folder)), student), keep=0.5)
    step = method(torch.randn(2, 3, 12, 12), torch.tensor([0, 1]))
    assert step.kept.shape == (2, 18) and step.loss.isfinite()
