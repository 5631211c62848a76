"""The package's architectures in timm's registry."""

from typing import Any

import pytest
import timm
import torch

from vitdistill.models.names import REGISTERED

SIZES: dict[str, tuple[int, ...]] = {
    **{"ast_tiny": (1, 128, 512), "yolos_small": (3, 512, 864), "convvit_base_patch16_224": (3, 224, 224)},
    **{"segmenter_tiny": (3, 512, 512), "upernet_vit_tiny_star": (3, 512, 512)},
}


def test_the_names_told_without_torch_are_those_that_are_registered() -> None:
    assert all(timm.is_model(name) for name in REGISTERED)


@pytest.mark.parametrize("name", SIZES)
def test_what_timm_passes_on_is_left_out_and_a_size_that_is_not_given_is_the_architectures(name: str) -> None:
    passed: dict[str, Any] = {"img_size": None, "cache_dir": "nowhere", "pretrained_cfg_overlay": {"mean": (9, 9, 9)}}
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=2, **passed)
    config: Any = net.pretrained_cfg
    assert (config["architecture"], config["input_size"]) == (name, SIZES[name])
    assert config["mean"][0] != 9
