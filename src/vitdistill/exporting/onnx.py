"""ONNX, with classes and preprocessing in the file's metadata."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from vitdistill.errors import UserError, error_words
from vitdistill.exporting.form import Exported, Student, write_record


class _OfImages(nn.Module):
    """A network whose `forward` takes images alone: torch traces other arguments with their defaults as tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def write_onnx(student: Student, path: Path, dynamic_batch: bool) -> Exported:
    """Write the network, and run it with onnxruntime.

    Raises:
        UserError: when the packages for it are not installed, or have no such operation.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX export needs its extra", remedy="pip install 'vitdistill[onnx]'") from None
    beside = write_record(student.record, path)
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _OfImages(student.network.net).eval(),
                (student.inputs,),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=17,
                dynamo=False,
            )
        _add_metadata(student, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(session.run(None, {"images": student.inputs.numpy()})[0])
    except OSError:  # no room, no permission
        raise
    except Exception as error:  # of either package, which have many kinds
        path.unlink(missing_ok=True)
        raise UserError(
            f"{student.network.name} must be made of operations that ONNX has",
            error_words(error)[:200],
            "Try --dynamic_batch false, or --format safetensors" if dynamic_batch else "Use --format safetensors",
        ) from error
    return Exported(logits, f"onnxruntime.InferenceSession({str(path)!r})", (beside,))


def _add_metadata(student: Student, path: Path) -> None:
    """`classes`, and every part of the preprocessing by its name (`size`, `mean`, `std`, ...), each as JSON.

    onnxruntime gives them as `session.get_modelmeta().custom_metadata_map`.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)  # weights of big models lie beside the file and stay there
    entries = {"classes": student.record.classes, **student.record.preprocessing}
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    onnx.save(model, str(path))
