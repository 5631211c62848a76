"""A folder of transformers' ASTForAudioClassification, from an AST: what `export --format hub` writes for sound."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdistill.errors import UserError
from vitdistill.exporting.folder import write_folder
from vitdistill.exporting.form import Exported, Student
from vitdistill.models.build import build
from vitdistill.models.sizes import pair
from vitdistill.models.weights.ast import their_names

MODEL = "ASTForAudioClassification"


def write_ast(student: Student, folder: Path) -> Exported:
    """Write the folder, and load it with transformers where that is installed, else with this package.

    Raises:
        UserError: when transformers' network has no place for what this one is, or the folder holds something else.
    """
    config, preparation = _config(student), _preparation(student)
    return write_folder(student, folder, _weights(student), config, preparation, _loaded, MODEL)


def _weights(student: Student) -> dict[str, Tensor]:
    net = student.network.net
    patch = pair(net.patch_embed.patch_size)
    if patch[0] != patch[1] or not student.network.num_classes or net.patch_embed.proj.in_channels != 1:
        raise UserError(
            "transformers has AST with square patches over one channel, and with a classifier",
            f"patches of {patch[0]}x{patch[1]}, {net.patch_embed.proj.in_channels} channels and "
            f"{student.network.num_classes or 'no'} classes",
            "Use --format safetensors, which vitdistill.build loads, or --format onnx",
        )
    if student.record.heads:
        heads = ", ".join(f"block {block} has {count}" for block, count in student.record.heads.items())
        raise UserError("config.json cannot say that single blocks have other attention heads", heads)
    return their_names(net.state_dict())


def _config(student: Student) -> dict[str, Any]:
    """The content of config.json.

    transformers has one epsilon for all norms: the 1e-6 of most, though the classifier's is 1e-5.
    """
    net, spec, names = student.network.net, student.network.input, student.record.classes
    names = names or [str(number) for number in range(student.network.num_classes)]
    (down, across), block = net.patch_embed.stride, net.blocks[0]
    return {
        "architectures": [MODEL],
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": net.embed_dim,
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "qkv_bias": block.attn.qkv.bias is not None,
        "num_mel_bins": spec.size[0],
        "max_length": spec.size[1],
        "patch_size": net.patch_embed.patch_size[0],
        "frequency_stride": down,
        "time_stride": across,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _preparation(student: Student) -> dict[str, Any]:
    """The content of preprocessor_config.json: transformers divides by twice the deviation as well."""
    spec = student.network.input
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "do_normalize": True,
        "mean": spec.mean[0],
        "std": spec.std[0] / 2,
        "num_mel_bins": spec.size[0],
        "max_length": spec.size[1],
        "sampling_rate": 16000,
        "feature_size": 1,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _loaded(student: Student, folder: Path) -> Tensor:
    """Logits as transformers gives them, or, where it is not installed, as `build` does."""
    with torch.inference_mode():
        if find_spec("transformers") is None:
            return build(str(folder)).eval().net(student.inputs)
        from transformers import AutoModelForAudioClassification
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForAudioClassification.from_pretrained(str(folder), local_files_only=True).eval()
        return model(student.inputs[:, 0].transpose(1, 2)).logits  # time first
