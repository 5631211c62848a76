"""Two processes give the gradient of one process with the same global batch, whole or with sharded weights."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

# Processes of one that has imported everything, since that takes longer than all that they do.
SCRIPT = """
import multiprocessing, os, sys, torch, timm
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from vitdistill.data.loader import make_loader
from vitdistill.data.device import OnDevice
from vitdistill.data.images.augment import Augment
from vitdistill.data.images.recipes import train_transform
from vitdistill.data.order import EpochBatchSampler
from vitdistill.data.open import open_source
from vitdistill.methods.maskedkd import MaskedKD
from vitdistill.training.sharding import shard

def vit(width, seed):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", img_size=12, patch_size=2, embed_dim=width, depth=2,
                             num_heads=2, num_classes=10)

def gradients(wrap, rank, world):
    source = open_source("digits")
    augment = Augment(recipe="none", scale=0.6)
    sampler = EpochBatchSampler(len(source.train), 32 // world, seed=3, rank=rank, world=world)
    loader = make_loader(source.train, train_transform(augment, 12), sampler, seed=3)
    method = MaskedKD(vit(12, 0), vit(24, 1), keep=0.5, smoothing=0.1)
    model = wrap(method)
    on_device = OnDevice(augment, method.student.input.mean, method.student.input.std, 10)
    sampler.set_position(0)
    for batch, _ in zip(loader, range(2)):
        step = model(*on_device.train(batch.images, batch.targets))
        step.loss.backward()
    return {name: whole(p.grad) for name, p in method.named_parameters()}

def sharded(method):
    shard(method, init_device_mesh("cpu", (2,)))
    assert all(isinstance(p, DTensor) for p in method.parameters())
    assert not any(isinstance(p, DTensor) for p in method.teachers[0].network.parameters())
    return method

def whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient

def process(rank, world, out):
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    wraps = [DistributedDataParallel, sharded] if world > 1 else [lambda method: method]
    found = [gradients(wrap, rank, world) for wrap in wraps]
    if rank == 0:
        torch.save(found, out)
    if world > 1:
        dist.destroy_process_group()

one, two = sys.argv[1:]
start = multiprocessing.get_context("fork").Process
processes = [start(target=process, args=args) for args in ((0, 1, one), (0, 2, two), (1, 2, two))]
for each in processes:
    each.start()
for each in processes:
    each.join(240)
sys.exit(any(each.exitcode != 0 for each in processes))
"""


def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    files = [tmp_path / "one.pt", tmp_path / "two.pt"]
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, files)], env=environment, timeout=400, check=True)
    (one,), (replicated, sharded) = (torch.load(file, weights_only=True) for file in files)
    assert one.keys() == replicated.keys() == sharded.keys() and len(one) > 20
    for name, gradient in one.items():
        assert gradient.abs().max() > 0, name
        # Averaged over ranks per step; the two steps of each add up.
        for kind, two in (("ddp", replicated), ("fsdp", sharded)):
            torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}")
