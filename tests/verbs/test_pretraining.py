"""From a pre-trained teacher over a distilled student to a fine-tuned one, as a user would go; exact resumption."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from killed_runs import kill
from run_reports import reports
from vitdistill.data.images.augment import Augment
from vitdistill.errors import UserError
from vitdistill.methods.options import PixelDecoder
from vitdistill.models.build import build
from vitdistill.models.record import ModelRecord
from vitdistill.models.surgery.attention_heads import head_count
from vitdistill.runs.read import read_run
from vitdistill.training.checkpoints import read_checkpoint
from vitdistill.training.settings import Optim
from vitdistill.training.train import export_weights
from vitdistill.types import Capture
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.export import export
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.knn import knn
from vitdistill.verbs.mae import mae
from vitdistill.verbs.resume import resume
from vitdistill.verbs.tinymim import tinymim

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


def pretrain(out: Path, **options: Any) -> dict[str, Any]:
    arguments = {"student": "digits_vit_small", "student_args": TEACHER, "epochs": 1, **COMMON, **DECODER, **options}
    return mae(out=str(out), **arguments)


def distil(out: Path, teacher: Path | str, **options: Any) -> dict[str, Any]:
    arguments = {"student": "digits_vit_small", "student_args": STUDENT, "epochs": 1, **COMMON, **options}
    return tinymim(out=str(out), teacher=str(teacher), **arguments)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mae") / "run"
    with reports():
        pretrain(out, epochs=2)
    return out


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tinymim") / "run"
    with reports():
        distil(out, teacher, epochs=2)
    return out


@pytest.fixture(scope="module")
def tuned(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    with reports():
        finetune(str(student), out=str(out), epochs=2, drop_path=0.1, **COMMON)
    return out


# --- mae --------------------


def test_pretraining_learns_and_is_recorded_without_labels(teacher: Path) -> None:
    info = json.loads((teacher / "run.json").read_text())
    record = json.loads((teacher / "student.json").read_text())
    rows = (teacher / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("val/loss")]) for row in rows[1:]]
    assert losses[1] < losses[0] and info["accuracy"]["best_loss"] == losses[1]
    assert "top1" not in info["accuracy"] and "val/top1" not in rows[0] and "train/pixels" in rows[0]
    assert info["status"] == "finished" and info["teacher"] is None
    assert record["args"]["num_classes"] == 0 and record["classes"] == []
    assert (teacher / "report.html").stat().st_size > 1000
    encoder = build(str(teacher))
    assert encoder.num_classes == 0 and not any(name.startswith("head") for name in encoder.net.state_dict())


def test_a_run_begins_again_from_its_own_full_weights(teacher: Path, tmp_path: Path) -> None:
    full = load_file(teacher / "mae.safetensors")
    assert {"mask_token", "decoder_pred.weight", "blocks.0.attn.qkv.weight"} <= set(full)
    # A step that changes nothing: what is saved is what was loaded.
    still = Optim(lr=1e-30, lr_batch=0, warmup_epochs=0, weight_decay=0.0, min_lr=0.0)
    pretrain(tmp_path / "again", init=str(teacher), optim=still)
    again = load_file(tmp_path / "again" / "mae.safetensors")
    assert set(again) == set(full)
    for name, tensor in full.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-6)


def test_an_encoder_only_file_is_refused_where_the_decoder_is_needed(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this file is encoder-only.*mae_pretrain_\\*_full"):
        pretrain(tmp_path / "a", init=str(teacher / "student.safetensors"))
    with pytest.raises(UserError, match="width, depth and patches of this one.*of another shape"):
        pretrain(tmp_path / "b", init=str(teacher), decoder_width=32)


def test_official_files_load_as_encoders_with_and_without_their_decoder(teacher: Path, tmp_path: Path) -> None:
    full = load_file(teacher / "mae.safetensors")
    torch.save({"model": full}, tmp_path / "full.pth")
    torch.save({"model": load_file(teacher / "student.safetensors")}, tmp_path / "encoder.pth")
    expected = build(str(teacher))(torch.ones(1, 3, 12, 12)).final.all
    for name in ("full", "encoder"):
        backbone = build(f"digits_vit_small@{tmp_path / name}.pth", args=TEACHER)
        assert backbone.num_classes == 0
        assert torch.equal(backbone(torch.ones(1, 3, 12, 12)).final.all, expected)


@pytest.mark.parametrize("old", [False, True], ids=["record in the file", "record beside the file"])
def test_beginning_from_a_run_takes_its_heads_and_statistics(teacher: Path, tmp_path: Path, old: bool) -> None:
    source = shutil.copytree(teacher, tmp_path / "source")
    record = ModelRecord.read(source)
    record.args["num_heads"], record.mean, record.std = 4, [0.4] * 3, [0.2] * 3
    record.write(source)
    export_weights(load_file(source / "mae.safetensors"), source / "mae.safetensors", None if old else record)
    sizes = {key: value for key, value in TEACHER.items() if key != "num_heads"}
    pretrain(tmp_path / "next", init=str(source), student_args=sizes)
    after = ModelRecord.read(tmp_path / "next")
    assert after.args["num_heads"] == 4 and (after.mean, after.std) == ([0.4] * 3, [0.2] * 3)
    assert build(str(tmp_path / "next")).input.mean == (0.4,) * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_args": {**TEACHER, "num_heads": 3}}, "trained with 6 heads; got --student_args.num_heads 3. Use"),
        ({"decoder_heads": 4}, "trained with 2 heads; got --decoder_heads 4. Use --decoder_heads 2"),
        (
            {"student": "digits-mae", "student_args": None},
            "--init replaces the weights that --student brings; got digi",
        ),
    ],
)
def test_what_weights_to_begin_with_overrule_is_refused(
    teacher: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pretrain(tmp_path / "out", init=str(teacher), **options)
    assert not (tmp_path / "out").exists()


def test_a_mean_pooled_student_is_normalised_in_front_of_the_decoder(teacher: Path, tmp_path: Path) -> None:
    pretrain(tmp_path / "run", student_args={**TEACHER, "global_pool": "avg", "class_token": False})
    weights = load_file(tmp_path / "run" / "student.safetensors")
    assert not (weights["norm.weight"] == 1).all() and "fc_norm.weight" not in weights
    assert build(str(tmp_path / "run")).net.global_pool == "avg"
    args = {**TEACHER, "global_pool": "avg"}
    pretrain(tmp_path / "from_official", student_args=args, init=str(teacher))  # whose file holds the norm


# --- tinymim --------------------


def test_the_weights_file_alone_knows_the_heads(student: Path, tuned: Path, tmp_path: Path) -> None:
    for run in (student, tuned):
        images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        backbone = build(f"digits_vit_small@{run / 'student.safetensors'}", args=STUDENT).eval()
        assert [head_count(backbone, block) for block in range(2)] == [2, 6]
        assert torch.equal(backbone(images).final.all, build(str(run)).eval()(images).final.all)
    exported = export(str(tuned), out=str(tmp_path / "exported.safetensors"))["path"]
    assert head_count(build(f"digits_vit_small@{exported}"), 1) == 6


def test_the_student_stores_its_head_count_and_stops_before_its_head(student: Path) -> None:
    record = json.loads((student / "student.json").read_text())
    assert record["heads"] == {"1": 6} and record["args"]["num_heads"] == 2
    backbone = build(str(student))
    assert [head_count(backbone, block) for block in range(2)] == [2, 6]
    info = json.loads((student / "run.json").read_text())
    assert info["cost"]["teacher_gmacs_per_image"] < info["cost"]["teacher_gmacs_full_per_image"]


def test_a_distilled_student_teaches_the_next(student: Path, tmp_path: Path) -> None:
    args = {"embed_dim": 24, "depth": 1, "num_heads": 1}
    distil(tmp_path / "next", student, student_args=args)
    # With one block the last is all of them, so the architecture's own argument says it.
    record = json.loads((tmp_path / "next" / "student.json").read_text())
    assert record["heads"] == {} and record["args"]["num_heads"] == 6
    assert head_count(build(str(tmp_path / "next")), 0) == 6


def test_an_unfinished_teacher_is_refused(student: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "student.json").write_text((student / "student.json").read_text())
    with pytest.raises(UserError, match=f"must be finished; .*vitdistill resume {unfinished}"):
        distil(tmp_path / "out", unfinished)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relations": ""}, "at least one of qk, vv, qq, kk"),
        ({"relations": "qk+vw"}, "Did you mean 'vv'"),
        ({"teacher_block": 3}, "between 1 and 2"),
        ({"student_args": {**STUDENT, "embed_dim": 16}}, r"16 channels.*got 6 heads\. 1, 2, 4, 8, 16 would do"),
        ({"image_size": 16}, r"8x8 at 16x16 pixels.*6x6 at 12x12.*--student_args.img_size 12"),
        ({"target": "cls", "relations": "vv"}, "--relations has no effect unless --target is relations"),
        ({"feature": "q"}, "--feature has no effect unless --target is features"),
        ({"augment": Augment(recipe="deit")}, "Only labelled images can be mixed"),
        (
            {"augment": Augment(recipe="none", smoothing=0.1)},
            "--augment.smoothing has no effect in training without labels",
        ),
        ({"pixel_decoder": PixelDecoder(width=8)}, "--pixel_decoder has no effect unless --pixels is true"),
        (
            {"student_args": {**STUDENT, "drop_path_rate": 0.2}},
            "--student_args.drop_path_rate is set by --drop_path; got 0.2",
        ),
    ],
)
def test_bad_input_is_one_line(teacher: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        distil(tmp_path / "out", teacher, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("all_digits")
def test_a_pretrained_student_has_no_accuracy_but_neighbours(student: Path) -> None:
    with pytest.raises(UserError, match="no classifier to evaluate.*knn or probe"):
        evaluate(str(student))
    assert knn(str(student), k=[10])["scores"][0]["top1"] > 20  # 10 is chance
    with pytest.raises(UserError, match=r"best\.ckpt.*validate on labels.*Use --checkpoint last or exported"):
        knn(str(student), checkpoint="best")


def test_the_cost_is_that_of_the_tokens_and_blocks_that_a_step_runs(teacher: Path, student: Path) -> None:
    for run in (teacher, student):
        cost = json.loads((run / "run.json").read_text())["cost"]
        backbone = build(str(run))
        full = backbone.macs().total / 1e9
        capture = Capture.at(1, "qkv", head=False) if run == student else Capture()
        computed = backbone.macs(9 if run == teacher else None, capture=capture).total / 1e9
        assert cost["student_gmacs_full_per_image"] == full
        assert cost["student_gmacs_per_image"] == computed < full


# --- finetune --------------------


def test_the_fine_tuned_student_keeps_its_heads_and_its_body(student: Path, tuned: Path) -> None:
    record = json.loads((tuned / "student.json").read_text())
    assert record["heads"] == {"1": 6} and record["args"]["num_classes"] == 10
    assert record["args"]["global_pool"] == "avg" and len(record["classes"]) == 10
    names = set(load_file(tuned / "student.safetensors"))
    assert "fc_norm.weight" in names and "norm.weight" not in names
    assert json.loads((tuned / "run.json").read_text())["accuracy"]["top1"] == pytest.approx(
        evaluate(str(tuned))["top1"], abs=1e-3
    )


def test_the_fine_tuned_student_reloads_in_timm_with_identical_logits(tuned: Path) -> None:
    result = export(str(tuned))
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    scope: dict[str, Any] = {"timm": timm}
    exec(result["load"], scope)
    assert torch.equal(scope["model"].eval()(images), build(str(tuned)).eval()(images).prediction)
    # Without the head count the same weights give other logits: it has to be said.
    record = json.loads((tuned / "student.json").read_text())
    naive = timm.create_model(record["architecture"], checkpoint_path=result["path"], **record["args"]).eval()
    assert not torch.allclose(naive(images), build(str(tuned)).eval()(images).prediction)
    assert export(str(tuned), checkpoint="last")["max_difference"] == 0.0


def test_fine_tuning_starts_from_the_pretrained_body(student: Path, tmp_path: Path) -> None:
    still = Optim(lr=1e-30, lr_batch=0, warmup_epochs=0, weight_decay=0.0, min_lr=0.0)
    finetune(str(student), out=str(tmp_path / "run"), epochs=1, **{**COMMON, "optim": still})
    before, after = load_file(student / "student.safetensors"), load_file(tmp_path / "run" / "student.safetensors")
    for name, tensor in before.items():
        if not name.startswith("norm."):
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    assert float(after["head.weight"].abs().max()) < 1e-3


def test_a_stored_head_of_other_classes_is_refused_unless_it_is_to_be_replaced(tuned: Path, tmp_path: Path) -> None:
    state = load_file(tuned / "student.safetensors")
    state["head.weight"], state["head.bias"] = state["head.weight"][:7].clone(), state["head.bias"][:7].clone()
    other = tmp_path / "seven"
    other.mkdir()
    record = json.loads((tuned / "student.json").read_text())
    record["args"]["num_classes"], record["classes"] = 7, list("abcdefg")
    (other / "student.json").write_text(json.dumps(record))
    save_file(state, other / "student.safetensors")
    with pytest.raises(UserError, match=r"has 7 and the data 10\. Replace it with --new_head"):
        finetune(str(other), out=str(tmp_path / "out"), epochs=1, **COMMON)
    info = finetune(str(other), out=str(tmp_path / "out"), epochs=1, new_head=True, **COMMON)
    assert info["accuracy"]["top1"] >= 0
    with pytest.raises(UserError, match="belongs to its pooling 'avg'; got 'token'"):
        finetune(str(tuned), out=str(tmp_path / "cls"), epochs=1, pool="cls", **COMMON)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_init": 0.5}, "--head_init has no effect on a classifier that is kept: --new_head"),
        ({"model_args": {"drop_path_rate": 0.2}}, "--model_args.drop_path_rate is set by --drop_path; got 0.2"),
    ],
)
def test_options_without_effect_are_refused(tuned: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        finetune(str(tuned), out=str(tmp_path / "out"), epochs=1, **options, **COMMON)
    assert not (tmp_path / "out").exists()


def test_a_headless_module_is_fine_tuned(tmp_path: Path) -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=12, patch_size=2, **STUDENT, num_classes=0)
    info = finetune(net, out=str(tmp_path / "run"), epochs=1, drop_path=0.0, **COMMON)
    assert info["accuracy"]["top1"] > 0 and net.num_classes == 10


def test_a_module_without_drop_path_is_fine_tuned_by_default_and_refused_a_rate(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    net.num_classes = 10
    with pytest.raises(UserError, match="^Sequential has no drop path that could be set; got 0.2"):
        finetune(net, out=str(tmp_path / "run"), epochs=1, drop_path=0.2, **COMMON)
    assert finetune(net, out=str(tmp_path / "other"), epochs=1, **COMMON)["status"] == "finished"


# --- resuming --------------------

OPTIM = Optim(lr=1e-3, lr_batch=0, warmup_epochs=1, ema=0.8, accumulate=2)
EVERYTHING: dict[str, dict[str, Any]] = {
    # Random masks, jitter, random crops, drop path of both networks, a decoder, a projection.
    "tinymim": {
        "student": "digits_vit_small",
        "student_args": STUDENT,
        "target": "features",
        "feature": "qkv",
        "mask_ratio": 0.5,
        "pixels": True,
        "pixel_decoder": PixelDecoder(width=16, depth=1, heads=2),
        "drop_path": 0.2,
        "teacher_drop_path": 0.2,
    },
    "mae": {"student": "digits_vit_small", "student_args": TEACHER, **DECODER},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in EVERYTHING])
def test_a_killed_run_resumes_bit_for_bit(name: str, teacher: Path, tmp_path: Path) -> None:
    from vitdistill.verbs.table import verb

    arguments = {
        **EVERYTHING[name],
        **COMMON,
        "epochs": 3,
        "optim": OPTIM,
        "augment": Augment(recipe="none", scale=0.7),
    }
    arguments |= {"teacher": str(teacher)} if name == "tinymim" else {}
    whole, pieced = tmp_path / "whole", tmp_path / "pieced"
    verb(name)(**arguments, out=str(whole))
    kill(name, {**arguments, "out": str(pieced)}, step=8)
    resume(str(pieced))
    files = ["student.safetensors", "student_ema.safetensors", "metrics.csv", "student.json"]
    for file in [*files, *(["mae.safetensors"] if name == "mae" else [])]:
        assert (whole / file).read_bytes() == (pieced / file).read_bytes(), file


# --- rebuilding --------------------


@pytest.mark.parametrize("name", ["mae", "tinymim", "finetune"])
def test_the_method_of_a_run_is_rebuilt_as_training_left_it(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue({"mae": "teacher", "tinymim": "student", "finetune": "tuned"}[name])
    run = read_run(path)
    method = run.method()
    assert type(method).__name__ == {"mae": "MAE", "tinymim": "TinyMIM", "finetune": "Supervised"}[name]
    assert not method.training
    trained = read_checkpoint(run.last_checkpoint)["state_dict"]
    for key, value in method.state_dict().items():
        assert torch.equal(value, trained[f"method.{key}"]), key
    if name == "tinymim":
        assert tuple(method.blocks) == (1, 1)
        assert [head_count(method.student, block) for block in range(2)] == [2, 6]


def test_the_students_of_a_run_are_those_of_its_checkpoints(tuned: Path) -> None:
    run = read_run(tuned)
    exported, last = run.student(), run.student("last")
    for key, value in exported.state_dict().items():
        assert torch.equal(value, last.state_dict()[key]), key
    assert run.source().name == "digits" and run.verb == "finetune" and run.objects == []
    with pytest.raises(UserError, match="Averaged weights exist only for runs with --optim.ema"):
        run.student("ema")


def test_a_run_of_module_objects_is_rebuilt_in_python_only(tmp_path: Path) -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=12, patch_size=2, **STUDENT, num_classes=0)
    finetune(net, out=str(tmp_path / "run"), epochs=1, drop_path=0.0, **COMMON)
    run = read_run(tmp_path / "run")
    assert run.objects == ["model"]
    with pytest.raises(UserError, match="trained from a module object, so it can only be rebuilt in Python"):
        run.method()
