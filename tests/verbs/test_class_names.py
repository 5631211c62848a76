"""Runs and models meet data with other class names, or the same in another order."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from colours import COLOURS, NETWORK, colours, options, renamed
from vitdistill.data.images.folder import image_folder
from vitdistill.data.source import DataSource
from vitdistill.errors import UserError
from vitdistill.models.build import build
from vitdistill.models.record import ModelRecord
from vitdistill.runs.read import read_run
from vitdistill.training.train import export_weights
from vitdistill.verbs.evaluate import evaluate
from vitdistill.verbs.finetune import finetune
from vitdistill.verbs.maskedkd import maskedkd
from vitdistill.verbs.supervised import supervised

VIT = "vit_tiny_patch16_224"


def reversed_source(data: Path) -> DataSource:
    """The same data with its classes numbered from the other end."""
    source = image_folder(data)
    last = len(source.classes) - 1
    for samples in (source.train, source.val):
        samples._labels = last - samples._labels
    return replace(source, classes=source.classes[::-1])


@pytest.fixture
def others(colour_run: Path, tmp_path: Path) -> Path:
    return renamed(colour_run.parent / "data", tmp_path / "autre", {"blue": "bleu", "green": "vert", "red": "rouge"})


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def lines(heard: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [message for message in heard.messages if words in message]


# --- evaluate --------------------


def test_evaluation_goes_by_name(colour_run: Path, others: Path, tmp_path: Path, heard, capsys) -> None:
    run, data = str(colour_run), colour_run.parent / "data"
    assert evaluate(run)["top1"] == 100 and not heard.messages
    for checkpoint in ("last", "best"):
        with pytest.raises(UserError, match="has 'blue', 'green', 'red' and autre has 'bleu', 'rouge', 'vert'"):
            evaluate(run, data=str(others), checkpoint=checkpoint)
    # One class of another name, in the same place.
    with pytest.raises(UserError, match="has 'red' and 2 more and one has 'rouge' and 2 more"):
        evaluate(run, data=str(renamed(data, tmp_path / "one", {"red": "rouge"})))
    # Fewer classes than the model has.
    two = colours(tmp_path / "two", {"blue": "blue", "red": "red"})
    assert evaluate(run, data=str(two))["top1"] == 100
    assert len(lines(heard, "has 2 of the 3 classes")) == 1
    # Folders that are numbered are not known to be the same.
    numbered = colours(tmp_path / "numbered", dict(zip("012", COLOURS, strict=True)))
    assert evaluate(run, data=str(numbered))["top1"] == 100
    assert len(lines(heard, "matched by number")) == 1


def test_weights_that_do_not_say_their_classes(colour_run: Path, others: Path, tmp_path: Path, heard) -> None:
    export_weights(build(str(colour_run)).net.state_dict(), tmp_path / "bare.safetensors")
    model = f"{VIT}@{tmp_path / 'bare.safetensors'}"
    evaluate(model, data=str(others), model_args=dict(NETWORK), image_size=16)
    assert len(lines(heard, "names of the 3 classes")) == 1
    # A file with a record says them.
    with pytest.raises(UserError, match="has 'blue', 'green', 'red' and autre"):
        evaluate(f"{VIT}@{colour_run / 'student.safetensors'}", data=str(others))


def test_a_part_of_imagenet_by_number_and_by_word(tmp_path: Path, heard) -> None:
    """1000 scores, of which the data has three: tench, goldfish, great white shark."""
    torch.manual_seed(0)
    net = timm.create_model(VIT, **NETWORK, num_classes=1000)
    with torch.no_grad():  # colours decide: red is the tench, and so on
        net.head.bias.fill_(-1e4)
        net.head.bias[[0, 1, 2]] = torch.tensor([5.0, 3.0, 0.0])
    export_weights(net.state_dict(), tmp_path / "w.safetensors")
    model = f"{VIT}@{tmp_path / 'w.safetensors'}"
    data = colours(tmp_path / "in", {"n01443537": "red", "n01440764": "green", "n01484850": "blue"})
    result = evaluate(model, data=str(data), model_args=dict(NETWORK), image_size=16)
    assert result["top1"] == pytest.approx(100 / 3, abs=0.01) and result["classes"] == 3
    words = colours(tmp_path / "words", {"goldfish": "red", "tench": "green", "great white shark": "blue"})
    again = evaluate(model, data=str(words), model_args=dict(NETWORK), image_size=16)
    assert again["top1"] == result["top1"]  # always tench, which comes last here and first there
    assert len(lines(heard, "3 of the 1000 classes")) == 2
    with pytest.raises(UserError, match="has 1000 and"):
        evaluate(
            model, data=str(colours(tmp_path / "no", {"tench": "red", "my cat": "blue"})), model_args=dict(NETWORK)
        )


def test_numbers_of_classes_that_would_make_new_heads_are_refused(colour_run: Path, tmp_path: Path) -> None:
    data = colour_run.parent / "data"
    with pytest.raises(UserError, match=r"--model_args.num_classes would replace.*random weights; got 3"):
        evaluate(VIT, data=str(data), model_args={"num_classes": 3})
    with pytest.raises(UserError, match=r"--teacher_args.num_classes would replace"):
        maskedkd(
            student=VIT, student_args=NETWORK, teacher=VIT, teacher_args={"num_classes": 3}, **options(data, tmp_path)
        )
    with pytest.raises(UserError, match=r"--student_args.num_classes would not be used.* 3 classes of the data; got 7"):
        supervised(student=VIT, student_args={**NETWORK, "num_classes": 7}, **options(data, tmp_path))
    with pytest.raises(UserError, match=r"--model_args.num_classes would not be used"):
        finetune(str(colour_run), model_args={"num_classes": 7}, **options(data, tmp_path))


# --- teachers --------------------


def test_a_teacher_goes_by_name(colour_run: Path, others: Path, tmp_path: Path, heard) -> None:
    def teacher_top1(data, **more) -> float:
        out = tmp_path / "run"
        given = {"student": VIT, "student_args": NETWORK, "teacher": str(colour_run), **more}
        maskedkd(**given, **options(data, out, epochs=1))
        return read_run(out).metrics["teacher/top1"][-1]

    with pytest.raises(UserError, match="The teacher must have the classes of the data.*'bleu', 'rouge', 'vert'"):
        teacher_top1(others)
    with pytest.raises(UserError, match="The teacher must have the classes"):
        teacher_top1(others, distill="logits+attention")
    assert teacher_top1(reversed_source(colour_run.parent / "data")) == 100
    assert len(lines(heard, "another order")) == 1
    # What is built again from the run's record answers in the same order.
    assert ModelRecord.read(tmp_path / "run").classes == ["red", "green", "blue"]
    assert read_run(tmp_path / "run").method().teacher.order.tolist() == [2, 1, 0]


# --- starts --------------------


@pytest.mark.parametrize("verb", ["finetune", "supervised"])
def test_a_start_goes_by_name(verb: str, colour_run: Path, others: Path, tmp_path: Path, heard) -> None:
    def first_epoch(data, name: str, lr: float = 1e-9) -> float:
        given = options(data, tmp_path / name, epochs=1)
        given["optim"] = replace(given["optim"], lr=lr, min_lr=0.0)
        if verb == "finetune":
            return finetune(str(colour_run), **given)["accuracy"]["top1"]
        return supervised(student=str(colour_run), **given)["accuracy"]["top1"]

    assert first_epoch(colour_run.parent / "data", "same") == 100 and not lines(heard, "classes")
    assert first_epoch(reversed_source(colour_run.parent / "data"), "reversed") == 100
    assert len(lines(heard, "another order")) == 1
    assert ModelRecord.read(tmp_path / "reversed").classes == ["red", "green", "blue"]
    assert evaluate(str(tmp_path / "reversed"), data=str(colour_run.parent / "data"))["top1"] == 100
    assert len(lines(heard, "another order")) == 2
    first_epoch(others, "others")
    assert len(lines(heard, "other classes, so the classifier starts with new weights")) == 1
    fresh, trained = build(str(tmp_path / "others")).net.head.weight, build(str(colour_run)).net.head.weight
    assert not torch.allclose(fresh, trained, atol=1e-3)
    assert ModelRecord.read(tmp_path / "others").classes == ["bleu", "rouge", "vert"]


def test_finetuning_on_a_part_of_the_classes_keeps_their_rows(colour_run: Path, tmp_path: Path) -> None:
    two = colours(tmp_path / "two", {"red": "red", "blue": "blue"})
    given = options(two, tmp_path / "run", epochs=1)
    given["optim"] = replace(given["optim"], lr=1e-9, min_lr=0.0)
    assert finetune(str(colour_run), **given)["accuracy"]["top1"] == 100
    assert evaluate(str(tmp_path / "run"))["top1"] == 100
