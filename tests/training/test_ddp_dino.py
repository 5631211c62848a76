"""DINO on two processes, whole or with sharded weights, is DINO on one with both batches: weights, average, centre."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

SCRIPT = """
import sys, torch, timm
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from vitdistill.methods.dino import DINO
from vitdistill.methods.options import DinoHead
from vitdistill.training.optim import clip_each
from vitdistill.training.sharding import shard

rank, world, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", rank=rank, world_size=world)
whole = lambda value: value.full_tensor() if isinstance(value, DTensor) else value

def sharded(method):
    shard(method, init_device_mesh("cpu", (world,)))
    return method

def trained(wrap):
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=12, patch_size=2, embed_dim=12, depth=2, num_heads=2,
                            num_classes=0)
    method = DINO(net, locals=2, local_size=(6, 6), keep=20, head=DinoHead(32, 16, 8), freeze_last=0.3, momentum=0.9)
    model = wrap(method.train())
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
    noise = torch.Generator().manual_seed(1)
    rows = slice(rank * 4, rank * 4 + 4) if world > 1 else slice(None)
    gradients = {}
    for step in range(3):
        views = tuple(torch.randn(8, 3, size, size, generator=noise)[rows] for size in (12, 12, 6, 6))
        made = model(views, None, step / 2)
        optimizer.zero_grad()
        made.loss.backward()
        clip_each(method.parameters(), 0.05)
        method.after_backward(step / 2)
        gradients |= {f"gradient {step} {n}": whole(p.grad) for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_step(step / 2)
    state = {name: whole(value).clone() for name, value in method.state_dict().items()}
    return {**state, **gradients, **{name: made.measured[name] for name in ("teacher/entropy", "teacher/kl_uniform")}}

found = [trained(wrap) for wrap in ([DistributedDataParallel, sharded] if world > 1 else [lambda method: method])]
if rank == 0:
    torch.save(found, out)
if world > 1:
    dist.destroy_process_group()
"""


def run(world: int, out: Path) -> list[dict[str, Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(rank), str(world), str(out)], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0] * world
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    (one,), (replicated, sharded) = run(1, tmp_path / "one.pt"), run(2, tmp_path / "two.pt")
    assert one.keys() == replicated.keys() == sharded.keys()
    assert one["average.centre"].abs().max() > 0
    assert "gradient 2 head.last_layer.weight_v" in one and "gradient 0 head.last_layer.weight_v" not in one
    for name, value in one.items():
        for kind, two in (("ddp", replicated), ("fsdp", sharded)):
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}")
