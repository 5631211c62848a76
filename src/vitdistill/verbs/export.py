"""`vitdistill export`: a run's student for use elsewhere, checked before it is called done."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdistill.errors import UserError
from vitdistill.runs.directory import list_in_run
from vitdistill.runs.read import Checkpoint, read_run

if TYPE_CHECKING:  # loads torch, and what text decides is refused before
    from vitdistill.exporting.form import Exported, Student


def export(
    run: str,
    *,
    format: Literal["safetensors", "onnx", "hub"] = "safetensors",
    out: str | None = None,
    checkpoint: Checkpoint = "exported",
    dynamic_batch: bool = True,
    json: bool = False,
) -> dict[str, Any]:
    """Write a run's student as safetensors for timm, as ONNX checked against PyTorch, or as a folder for the hub.

    Classes and preprocessing go along: in student.json beside the weights (FILE.json where that belongs to others), in
    the metadata of an ONNX file, and in config.json of a folder for the hub, which has a model card as well.

    Args:
        run: run directory.
        format: safetensors loads with timm.create_model; onnx runs anywhere; hub is a folder that timm and transformers
            load, offline or from the Hugging Face hub.
        out: file, or folder for the hub, to write; by default export/student.FORMAT or export/hub in the run.
        checkpoint: the exported student, the last or best checkpoint, or the averaged weights.
        dynamic_batch: let the ONNX file take any batch size.
        json: print one JSON object in place of text.

    Returns:
        Path, format, the largest difference of logits between PyTorch and what was exported, and the code that loads
        it.

    Raises:
        UserError: when the exported file gives other logits than the student, or the format cannot say what it is.
    """
    ending = f".{format}"
    if out and format != "hub" and (Path(out).suffix != ending or Path(out).expanduser().is_dir()):
        raise UserError(f"--out must be a file that ends in {ending}", out, f"For example {Path(out).stem}{ending}")
    found = read_run(run)

    import torch

    from vitdistill.exporting.form import student_of

    student = student_of(found, found.student(checkpoint))
    default = found.path / "export" / ("hub" if format == "hub" else f"student.{format}")
    path = Path(out).expanduser() if out else default
    with torch.inference_mode():
        expected = student.network.net(student.inputs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exported = _write(student, path, format, dynamic_batch)
    except OSError as error:
        raise UserError(
            "What is exported must be written and read back", f"{path} ({error.strerror or error})"
        ) from error
    difference = float((exported.logits - expected).abs().max())
    scale = float(expected.abs().max())
    if not difference <= 1e-3 * max(scale, 1e-3):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise UserError(
            f"The exported {format} form must give the student's logits", f"a difference of {difference:.2e}"
        )
    list_in_run(path, *exported.files)
    written = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    result = {
        "load": exported.load,
        "path": str(path),
        "format": format,
        "max_difference": difference,
        "megabytes": sum(file.stat().st_size for file in written) / 1e6,
    }
    _show(result, json)
    return result


def _write(student: "Student", path: Path, format: str, dynamic_batch: bool) -> "Exported":
    if format == "onnx":
        from vitdistill.exporting.onnx import write_onnx

        return write_onnx(student, path, dynamic_batch)
    if format == "hub":
        from vitdistill.exporting.hub import write_hub

        return write_hub(student, path)
    from vitdistill.exporting.safetensors import write_safetensors

    return write_safetensors(student, path)


def _show(result: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(result))
        return
    print(f"wrote {result['path']} ({result['megabytes']:.2f} MB)")
    print(f"its logits differ from the student's by at most {result['max_difference']:.1e}")
    code = result["load"]
    print(f"load it with:\n{code}" if "\n" in code else f"load it with: {code}")
