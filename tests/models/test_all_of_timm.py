"""Every module of timm's models gives a network, masked or whole, and docs/models.md says which, and why not.

`python tests/models/test_all_of_timm.py` writes the table of docs/models.md anew, with `src` and `tests` on PYTHONPATH.
"""

import re
from pathlib import Path

import pytest
import timm
import torch

from timm_modules import SMALLEST
from vitdistill.errors import UserError
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.methods.tinymim import check_pair
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.families.eva import RotaryViT
from vitdistill.models.network import Network, Opaque
from vitdistill.models.whole import REASONS, why_whole

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TABLE = re.compile(r"(?<=<!-- table -->\n)(.*?)(?=<!-- end of table -->)", re.DOTALL)
HEAD = """| timm's module | networks | masked teacher | student | TinyMIM | MVD's image teacher |
|---|---|---|---|---|---|
"""
# One of each kind, for every run of the tests; all the others are slow.
QUICK = [
    "vision_transformer",
    "eva",
    "cait",
    "swin_transformer",
    "xcit",
    "beit",
    "naflexvit",
    "hiera",
    "levit",
    "resnet",
]


def row(module: str) -> str:
    """What the methods can do with the networks of a module."""
    network = build(SMALLEST[module], meta=True)
    if network.maskable:
        masked = "yes"
        assert network.macs(1).total < network.macs().total
    else:
        masked = f"no: {why_whole(network.net)}"
        with pytest.raises(UserError, match=re.escape(why_whole(network.net))):
            network(torch.zeros(1, *network.input.shape, device="meta"), keep=torch.zeros(1, 1, dtype=torch.long))
    student = "yes" if isinstance(network, Backbone) else "ranked by others"
    cells = [f"`{module}`", str(len(timm.list_models(module=module))), masked, student]
    return f"| {' | '.join([*cells, imitates(network), 'yes' if network.maskable else 'no'])} |\n"


def imitates(network: Network) -> str:
    try:
        check_pair(network, network)
    except UserError:
        return "no"
    return "yes"


def rows_of_page() -> dict[str, str]:
    lines = TABLE.search(PAGE.read_text()).group().splitlines(keepends=True)
    return {line.split("`")[1]: line for line in lines[2:]}


def test_every_module_has_a_row() -> None:
    """A new version of timm brings new modules: add one of their networks to tests/timm_modules.py."""
    ours = ("video_vit", "convvit", "ast", "segmenter", "upernet")
    modules = {module for module in timm.list_modules() if not module.startswith(ours)}
    assert modules == set(SMALLEST) == set(rows_of_page()) and set(REASONS) <= modules


@pytest.mark.parametrize("module", QUICK)
def test_the_page_says_what_can_be_done(module: str) -> None:
    assert rows_of_page()[module] == row(module)


@pytest.mark.slow
@pytest.mark.parametrize("module", [module for module in SMALLEST if module not in QUICK])
def test_the_page_says_of_all_others_what_can_be_done(module: str) -> None:
    assert rows_of_page()[module] == row(module)


def trains_and_teaches(name: str) -> None:
    """A step in which the network is student and whole teacher of itself."""
    nets = []
    for _ in range(2):
        try:
            nets.append(build(name, num_classes=3, image_size=64))
        except UserError:  # it does not take images of this size
            nets.append(build(name, num_classes=3))
    images = torch.randn(2, *nets[0].input.shape)
    step = MaskedKD(*nets, keep=1.0).train()(images, torch.tensor([0, 2]))
    step.loss.backward()
    assert bool(step.loss.isfinite()) and step.prediction.shape == (2, 3)
    assert any(p.grad is not None and bool(p.grad.any()) for p in nets[0].parameters())


@pytest.mark.parametrize("module", ["resnet", "xcit", "convnext", "vision_transformer"])
def test_networks_train_and_teach(module: str) -> None:
    trains_and_teaches(SMALLEST[module])


@pytest.mark.slow
@pytest.mark.parametrize("module", SMALLEST)
def test_networks_of_all_modules_train_and_teach(module: str) -> None:
    if sum(p.numel() for p in build(SMALLEST[module], meta=True).parameters()) > 30e6:
        pytest.skip("too large to be run here; the test of the page builds it")
    trains_and_teaches(SMALLEST[module])


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models(module="eva"))
def test_every_rotary_network_can_be_masked(name: str) -> None:
    network = build(name, meta=True)
    assert isinstance(network, RotaryViT)
    assert network.macs(network.grid.count // 2).total < network.macs().total
    capture = network.saliency_capture()
    images = torch.empty(1, *network.input.shape, device="meta")
    output = network(images, keep=torch.zeros(1, 5, dtype=torch.long, device="meta"), capture=capture)
    assert network.saliency(output).shape == (1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("xcit_*"))
def test_every_xcit_is_built(name: str) -> None:
    assert isinstance(build(name, meta=True), Opaque)


def write() -> None:
    """Write the table anew."""
    table = HEAD + "".join(row(module) for module in SMALLEST)
    PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    write()
