"""One file of weights under timm's names, and the line that loads it."""

from pathlib import Path

import timm
import torch

from vitdistill.errors import UserError
from vitdistill.exporting.form import Exported, Student, write_record
from vitdistill.models.backbone import with_tokens
from vitdistill.models.build import build
from vitdistill.models.record import ModelRecord, timm_data_config
from vitdistill.models.surgery.attention_heads import set_heads
from vitdistill.training.train import export_weights


def write_safetensors(student: Student, path: Path) -> Exported:
    """Write the weights with the record beside them, and load them the way a user will: with timm alone.

    Networks over clips, and those of which timm has no kind, are loaded by this package.
    """
    record = student.record
    if record.architecture is None:
        raise UserError("Only architectures of timm can be exported for timm")
    beside = write_record(record, path)
    export_weights({**student.network.fixed(), **student.network.net.state_dict()}, path, record)
    if student.network.input.frames is not None or record.beyond_timm is not None:
        network = build(f"{record.architecture}@{path}").eval()
        load = f"vitdistill.build({f'{record.architecture}@{path}'!r})"
        with torch.inference_mode():
            return Exported(network.net(student.inputs), load, (beside,))
    net = timm.create_model(record.architecture, checkpoint_path=str(path), **record.args).eval()
    if record.heads:
        set_heads(with_tokens(build(net)), record.heads)
    with torch.inference_mode():
        return Exported(net(student.inputs), loading_code(record, path), (beside,))


def loading_code(record: ModelRecord, path: Path) -> str:
    """Python that loads the student with timm alone, and lets timm know how its images are made ready.

    timm has one head count for all blocks, so those of single blocks are set afterwards; the weights are the same.
    """
    arguments = dict(record.args)
    if record.preprocessing:
        arguments["pretrained_cfg_overlay"] = timm_data_config(record.preprocessing)
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    line = f"timm.create_model({record.architecture!r}, checkpoint_path={str(path)!r}{words})"
    return "\n".join([f"model = {line}", *head_lines(record, "model")]) if record.heads else line


def head_lines(record: ModelRecord, model: str) -> list[str]:
    """Python that sets the heads of single blocks."""
    lines = []
    for block, heads in record.heads.items():
        attention = f"{model}.blocks[{block}].attn"
        lines += [
            f"{attention}.num_heads, {attention}.head_dim = {heads}, {attention}.qkv.out_features // 3 // {heads}",
            f"{attention}.scale = {attention}.head_dim ** -0.5",
        ]
    return lines
