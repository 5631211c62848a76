"""Masked methods on two processes: masks of their own on each, and the weights of one process that draws the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdistill.files import FULL
from vitdistill.methods.mae import MAE
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.training.train import export_weights

# A run as a user starts it that also tells its masks and the weights of every process. A single process asked to stand
# for several draws, step by step, what each of them would draw, one after the other: their batches are so ordered.
SCRIPT = """
import sys
import torch
from vitdistill.cli import main
from vitdistill.data.order import seed_everything_at
from vitdistill.methods import tinymim
from vitdistill.tokens import masking
from vitdistill.training import train as run
from vitdistill.training.module import TrainingModule

told, processes, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
draw, step, finish = masking.random_mask, TrainingModule.training_step, run._finish
place, masks, before = [], [], {}

def drawn(b, patches, visible, *, device=None):
    if not place:
        return draw(b, patches, visible, device=device)
    parts = []
    for rank in range(processes):
        if processes > 1:
            seed_everything_at(*place, rank)
        parts.append(draw(b // processes, patches, visible, device=device))
    kept, masked = (torch.cat(part) for part in zip(*parts))
    masks.append(kept)
    return kept, masked

def stepping(self, batch, batch_idx):
    before.update({} if before else {k: v.clone() for k, v in self.method.state_dict().items()})
    place[:] = [self.settings.seed, "step", self.current_epoch, batch_idx]
    try:
        return step(self, batch, batch_idx)
    finally:
        place.clear()

def finished(parts, method, directory):
    found = {"masks": torch.stack(masks), "weights": method.state_dict(), "before": before}
    torch.save(found, f"{told}.{parts.trainer.global_rank}")
    return finish(parts, method, directory)

masking.random_mask = tinymim.random_mask = drawn
TrainingModule.training_step, run._finish = stepping, finished
sys.exit(main(arguments))
"""

# Plain gradient descent: Adam blows rounding up where the gradient is nothing else (the keys' bias under a softmax).
COMMON = [
    *("--epochs", "2", "--augment.recipe", "none", "--trainer.accelerator", "cpu"),
    *("--optim.name", "sgd", "--optim.lr", "0.05", "--optim.lr_batch", "0", "--optim.warmup_epochs", "0"),
]
IMAGES = [
    *("--data", "digits", "--student", "digits_vit_small"),
    *("--student_args.embed_dim", "12", "--student_args.depth", "2", "--student_args.num_heads", "2"),
]
CLIPS = [
    *("--data", "moving_digits", "--student", "moving_digits_vit_small", "--drop_path", "0"),
    *("--decoder.width", "16", "--decoder.depth", "1", "--decoder.heads", "2", "--decoder.drop_path", "0"),
]
VERBS = {
    "mae": [*IMAGES, "--decoder_width", "16", "--decoder_depth", "1", "--decoder_heads", "2"],
    "g2sd": [
        *(*IMAGES, "--teacher", "digits_vit_base@{mae}", "--teacher_decoder_heads", "2"),
        *("--decoder_width", "16", "--decoder_depth", "1", "--decoder_heads", "2"),
    ],
    "tinymim": [
        *(*IMAGES, "--teacher", "digits-mae", "--color_jitter", "0", "--drop_path", "0"),
        *("--mask_ratio", "0.75", "--pixels", "--pixel_decoder.width", "16", "--pixel_decoder.depth", "1"),
        *("--pixel_decoder.heads", "2"),
    ],
    "mvd": [*CLIPS, "--image_teacher", "moving-digits-mae", "--video_teacher", "moving-digits-videomae"],
    # The student's own average is updated once per optimizer step, not once per batch.
    "mvd, own average": [*CLIPS, "--bootstrap", "0.9", "--masks_per_clip", "2", "--optim.accumulate", "2"],
}


def run(folder: Path, processes: int, *arguments: str) -> list[dict[str, Any]]:
    """What each process told of itself."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    emulated = "1" if processes > 1 else "2"
    command = [sys.executable, str(folder / "script.py"), str(folder / "told"), emulated, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--out", str(folder / "run")], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run" / "run.json").read_text())["status"] == "finished"
    return [torch.load(folder / f"told.{rank}", weights_only=True) for rank in range(processes)]


def full_mae(folder: Path) -> Path:
    """A file with encoder and decoder of an MAE that was not trained."""
    path = folder / "mae.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        encoder = build("digits_vit_base", num_classes=0)
        method = MAE(encoder, decoder_width=16, decoder_depth=2, decoder_heads=2)
        export_weights(method.artifacts(method.state_dict())[FULL], path, record_of(encoder.net))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_two_processes_mask_for_themselves_and_train_together(verb: str, tmp_path: Path) -> None:
    options = [verb.split(",")[0], *(option.format(mae=full_mae(tmp_path)) for option in VERBS[verb]), *COMMON]
    batch = 60 if verb.startswith("mvd") else 128
    two = ["--batch_size", str(batch), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    first, second = run(tmp_path / "two", 2, *options, *two)
    assert len(first["masks"]) == len(second["masks"]) > 4
    assert all((a != b).any() for a, b in zip(first["masks"], second["masks"], strict=True))
    for name, tensor in first["weights"].items():
        assert tensor.isfinite().all() and torch.equal(second["weights"][name], tensor), name
    (alone,) = run(tmp_path / "one", 1, *options, "--batch_size", str(2 * batch))
    assert torch.equal(alone["masks"], torch.cat([first["masks"], second["masks"]], dim=1))
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    moved = max(float((tensor - alone["before"][name]).abs().max()) for name, tensor in alone["weights"].items())
    assert moved > 1e-2
