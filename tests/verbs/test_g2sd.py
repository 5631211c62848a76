"""G2SD as a user goes: an MAE teacher, the generic stage, the specific stage on labels; exact resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from killed_runs import kill
from run_reports import reports
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.files import WEIGHTS
from vitdistill.methods.g2sd import G2SD
from vitdistill.methods.mae import MAE
from vitdistill.models.build import build
from vitdistill.models.record import record_of
from vitdistill.runs.read import read_run
from vitdistill.training.settings import Optim
from vitdistill.training.train import export_weights
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.g2sd import g2sd
from vitdistill.verbs.mae import mae
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.resume import resume
from vitdistill.verbs.table import verb

pytestmark = pytest.mark.usefixtures("few_digits")

TEACHER: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 6}
STUDENT: dict[str, Any] = {"embed_dim": 12, "depth": 2, "num_heads": 2}
DECODER: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
COMMON: dict[str, Any] = {
    "data": "digits",
    "batch_size": 48,
    "augment": Augment(recipe="none"),
    "optim": Optim(lr=2e-3, lr_batch=0, warmup_epochs=0),
}
GENERIC: dict[str, Any] = {"student": "digits_vit_small", "student_args": STUDENT, **DECODER}
SPECIFIC: dict[str, Any] = {"dist_token": True, "distillation": "hard", "keep": 27, "drop_path": 0.0}
SPECIFIC["teacher_dtype"] = "float32"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A full MAE file of a network that was not trained."""
    torch.manual_seed(0)
    method = MAE(build("digits_vit_base", args=TEACHER, num_classes=0), **{**DECODER, "decoder_depth": 3})
    path = tmp_path_factory.mktemp("mae") / "full.safetensors"
    weights = method.artifacts(method.state_dict())["mae.safetensors"]
    export_weights(weights, path, record_of(method.student.net))
    return f"digits_vit_base@{path}"


@pytest.fixture(scope="module")
def generic(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("g2sd") / "run"
    with reports():
        g2sd(teacher=teacher, teacher_decoder_heads=2, out=str(out), epochs=1, **GENERIC, **COMMON)
    return out


def test_a_run_leaves_an_encoder_and_its_method_is_rebuilt(generic: Path, teacher: str) -> None:
    run = read_run(generic)
    method = run.method()
    assert isinstance(method, G2SD) and set(load_file(generic / WEIGHTS)) == set(method.student.net.state_dict())
    assert run.student().num_classes == 0 and run.info["teacher"]
    assert (generic / "report.html").stat().st_size > 1000
    decoder = method.teachers[0].network.decoder
    assert (decoder.blocks[0].attn.num_heads, len(decoder.blocks)) == (2, 3) and method.targets["hidden"].block == 1
    full = load_file(teacher.partition("@")[2])
    assert torch.equal(decoder.blocks[1].mlp.fc1.weight, full["decoder_blocks.1.mlp.fc1.weight"])
    student, frozen = method.passes(0.0)
    assert frozen.kept == student.kept == 9 and frozen.macs < frozen._replace(capture=type(frozen.capture)()).macs


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("vit_base_patch16_224.mae", {}, "come with its decoder; got vit_base_patch16_224.mae, which is an encoder"),
        ("digits-mae", {}, r"come with its decoder; got digits-mae without mae\.safetensors.*a run of `mae`"),
        ("{generic}", {}, r"come with its decoder; got .* without mae\.safetensors"),
        (
            "digits_vit_small@{generic}/student.safetensors",
            {"teacher_args": STUDENT},
            "encoder-only. Use the full file",
        ),
        ("{teacher}", {}, "has 16 channels.*got 3 heads.*--teacher_decoder_heads"),
        ("{teacher}", {"teacher_decoder_heads": 2, "teacher_block": 4}, "between 1 and 3.*decoder; got 4"),
    ],
    ids=["published encoder", "bundled", "another run", "encoder's file", "heads", "block"],
)
def test_teachers_without_a_fitting_decoder_are_refused(
    spec: str, options: dict[str, Any], words: str, generic: Path, teacher: str, tmp_path: Path
) -> None:
    given = {"teacher_decoder_heads": 3} | options if spec == "{teacher}" else options
    with pytest.raises(UserError, match=words) as error:
        g2sd(
            teacher=spec.format(generic=generic, teacher=teacher),
            out=str(tmp_path / "run"),
            epochs=1,
            **{**GENERIC, **COMMON, **given},
        )
    assert "\n" not in str(error.value)


def test_students_without_a_place_for_the_token_are_refused(generic: Path, tmp_path: Path) -> None:
    options = {"teacher": "digits-teacher", "out": str(tmp_path / "run"), "epochs": 1, **SPECIFIC, **COMMON}
    pooled = {**STUDENT, "global_pool": "avg"}
    with pytest.raises(UserError, match=r"no place for it; got pooling 'avg'.*--dist_token"):
        maskedkd(student="digits_vit_small", student_args=pooled, **options)
    with pytest.raises(UserError, match="--dist_token has no effect unless --alpha is above 0"):
        maskedkd(student=str(generic), alpha=0.0, **options)


@pytest.mark.slow
def test_from_an_mae_over_both_stages_to_an_exported_student(tmp_path: Path) -> None:
    mae(
        student="digits_vit_base",
        student_args=TEACHER,
        out=str(tmp_path / "mae"),
        epochs=2,
        **{**DECODER, "decoder_depth": 2},
        **COMMON,
    )
    finetune(str(tmp_path / "mae"), out=str(tmp_path / "tuned"), epochs=1, **COMMON)
    g2sd(teacher=str(tmp_path / "mae"), out=str(tmp_path / "generic"), epochs=3, **GENERIC, **COMMON)
    rows = (tmp_path / "generic" / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("val/loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0] and "train/hidden" in rows[0]
    out = tmp_path / "specific"
    info = maskedkd(
        student=str(tmp_path / "generic"),
        teacher=str(tmp_path / "tuned"),
        out=str(out),
        epochs=2,
        **SPECIFIC,
        **{**COMMON, "optim": Optim(lr=2e-3, lr_batch=0, warmup_epochs=0, layer_decay=0.75)},
    )
    assert info["tokens"]["kept"] == 27 and info["status"] == "finished"
    student = build(str(out))
    assert student.specials == 2 and student.num_classes == 10
    assert evaluate(str(out))["top1"] == pytest.approx(info["accuracy"]["best_top1"], abs=0.01)
    method = read_run(out).method()
    assert method.student.specials == 2 and method.student.net.distilled_training
    export(str(out), out=str(tmp_path / "student.safetensors"))
    again = build(f"vit_tiny_patch16_224@{tmp_path / 'student.safetensors'}").eval()
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(again(images).prediction, student.eval()(images).prediction)
    with pytest.raises(UserError, match="no networks with a distillation token without a position"):
        export(str(out), format="hub", out=str(tmp_path / "hub"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g2sd", "maskedkd"])
def test_a_killed_run_of_either_stage_resumes_bit_for_bit(
    name: str, teacher: str, generic: Path, tmp_path: Path
) -> None:

    stages = {
        "g2sd": {**GENERIC, "teacher": teacher, "teacher_decoder_heads": 2},
        "maskedkd": {**SPECIFIC, "student": str(generic), "teacher": "digits-teacher"},
    }
    arguments = {
        **stages[name],
        **COMMON,
        "epochs": 3,
        "optim": Optim(lr=1e-3, lr_batch=0, warmup_epochs=1, ema=0.8, accumulate=2, layer_decay=0.75),
        "augment": Augment(recipe="none", scale=0.7),
    }
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    verb(name)(**arguments, out=str(whole))
    kill(name, {**arguments, "out": str(pieced)}, step=8)
    resume(str(pieced))
    for file in ("student.safetensors", "student_ema.safetensors", "metrics.csv", "student.json"):
        assert (whole / file).read_bytes() == (pieced / file).read_bytes(), file
