"""`vitdistill export`: a run's student for use elsewhere, checked before it is called done."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from vitdistill.errors import UserError
from vitdistill.models.network import Network
from vitdistill.models.record import ModelRecord
from vitdistill.runs.directory import list_in_run
from vitdistill.runs.read import Checkpoint, read_run


def export(
    run: str,
    *,
    format: Literal["safetensors", "onnx"] = "safetensors",
    out: str | None = None,
    checkpoint: Checkpoint = "exported",
    dynamic_batch: bool = True,
    json: bool = False,
) -> dict[str, Any]:
    """Write a run's student as safetensors for timm, or as ONNX checked against PyTorch.

    Args:
        run: run directory.
        format: safetensors loads with timm.create_model; onnx runs anywhere.
        out: file to write; by default export/student.FORMAT in the run.
        checkpoint: the exported student, the last or best checkpoint, or the averaged weights.
        dynamic_batch: let the ONNX file take any batch size.
        json: print one JSON object in place of text.

    Returns:
        Path, format, the largest difference of logits between PyTorch and the exported file, and for safetensors
        the timm call that loads it.

    Raises:
        UserError: when the exported file gives other logits than the student.
    """
    folder = Path(run)
    student = read_run(folder).student(checkpoint).eval()
    path = Path(out) if out else folder / "export" / f"student.{format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.randn(3, *student.input.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = student.net(images)
    result = (
        _safetensors(student, path, images) if format == "safetensors" else _onnx(student, path, images, dynamic_batch)
    )
    got = result.pop("logits")
    difference = float((got - expected).abs().max())
    scale = float(expected.abs().max())
    if not difference <= 1e-3 * max(scale, 1e-3):
        path.unlink(missing_ok=True)
        raise UserError(
            f"The exported {format} file must give the student's logits", f"a difference of {difference:.2e}"
        )
    list_in_run(path)
    result |= {
        "path": str(path),
        "format": format,
        "max_difference": difference,
        "megabytes": path.stat().st_size / 1e6,
    }
    _show(result, json)
    return result


def _safetensors(student: Network, path: Path, images: torch.Tensor) -> dict[str, Any]:
    """Write, then load again the way a user will: with timm alone."""
    import timm

    from vitdistill.models.backbone import with_tokens
    from vitdistill.models.build import build
    from vitdistill.models.record import record_of
    from vitdistill.models.surgery.attention_heads import set_heads
    from vitdistill.training.train import export_weights

    record = record_of(student.net)
    if record.architecture is None:
        raise UserError("Only architectures of timm can be exported for timm")
    export_weights(student.net.state_dict(), path, record)
    net = timm.create_model(record.architecture, checkpoint_path=str(path), **record.args).eval()
    if record.heads:
        set_heads(with_tokens(build(net)), record.heads)
    with torch.inference_mode():
        return {"logits": net(images), "load": loading_code(record, path)}


def loading_code(record: ModelRecord, path: Path) -> str:
    """Python that loads the student with timm alone.

    timm has one head count for all blocks, so those of single blocks are set afterwards; the weights are the same.
    """
    arguments = "".join(f", {key}={value!r}" for key, value in record.args.items())
    lines = [f"timm.create_model({record.architecture!r}, checkpoint_path={str(path)!r}{arguments})"]
    for block, heads in record.heads.items():
        attention = f"model.blocks[{block}].attn"
        lines += [
            f"{attention}.num_heads, {attention}.head_dim = {heads}, {attention}.qkv.out_features // 3 // {heads}",
            f"{attention}.scale = {attention}.head_dim ** -0.5",
        ]
    return lines[0] if len(lines) == 1 else "\n".join([f"model = {lines[0]}", *lines[1:]])


def _onnx(student: Network, path: Path, images: torch.Tensor, dynamic_batch: bool) -> dict[str, Any]:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX export needs its extra", remedy="pip install 'vitdistill[onnx]'") from None
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            student.net,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return {
        "logits": torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        "load": f"onnxruntime.InferenceSession({str(path)!r})",
    }


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    print(f"wrote {result['path']} ({result['megabytes']:.2f} MB)")
    print(f"its logits differ from the student's by at most {result['max_difference']:.1e}")
    code = result["load"]
    print(f"load it with:\n{code}" if "\n" in code else f"load it with: {code}")
