"""A real pretrained ViT-S, in the names that Hugging Face files have: skipped where the file is not at hand.

The file, `dinov2_small_hf.safetensors`, is too large for the repository. VITDISTILL_REAL_WEIGHTS names it; without that
it is looked for in a folder `data` of the repository or of one beside it.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.models.weights.positions import resample

transformers = pytest.importorskip("transformers")

FILE = "dinov2_small_hf.safetensors"
ROOT = Path(__file__).parents[3]
NAME = "vit_small_patch14_dinov2"


@pytest.fixture(scope="module")
def file() -> Path:
    named = os.environ.get("VITDISTILL_REAL_WEIGHTS")
    places = [Path(named)] if named else [ROOT / "data" / FILE, *ROOT.parent.glob(f"*/data/{FILE}")]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        pytest.skip(f"{FILE} is not at hand: set VITDISTILL_REAL_WEIGHTS to its path")
    return found


def test_features_are_those_of_transformers(file, tmp_path):
    config = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
    config.patch_size = 14
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(file)
    theirs = transformers.Dinov2Model.from_pretrained(tmp_path, dtype=torch.float32).eval()
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = theirs(images).last_hidden_state
        named = build(f"{NAME}@{file}").eval()
        torch.testing.assert_close(named.net.forward_features(images), wanted, atol=1e-4, rtol=0)
    folder = build(str(tmp_path)).net.state_dict()  # the same without being told the architecture
    assert all(torch.equal(folder[name], value) for name, value in named.net.state_dict().items())


def test_another_image_size_has_a_fixed_grid_by_itself(file):
    backbone = build(f"{NAME}@{file}", image_size=98)
    assert isinstance(backbone, Backbone) and backbone.grid.count == 49
    table = load_file(file)["embeddings.position_embeddings"].float()
    torch.testing.assert_close(backbone.net.pos_embed, resample(table, (37, 37), (7, 7), 1), atol=0, rtol=0)
