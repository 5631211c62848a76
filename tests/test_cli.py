"""The command line: options from signatures, and one clear line for bad input."""

from pathlib import Path

import pytest

from vitdistill.cli import main, usage
from vitdistill.errors import UserError
from vitdistill.verbs.parser import check_yaml, make_parser, normalised, parse
from vitdistill.verbs.table import EXAMPLES, GROUPS, VERBS, function_of, verb


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; its single line on stderr."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_for_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser(name)
    for action in parser._actions:
        if action.option_strings:
            assert action.help and len(action.help) > 5, action.option_strings
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"vitdistill {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_an_example_that_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    parse(name, EXAMPLES[name].split())
    assert f"example: vitdistill {name} {EXAMPLES[name]}\n" in make_parser(name).format_help()


def test_the_list_of_verbs_has_each_once() -> None:
    assert [name for group in GROUPS.values() for name in group] == list(VERBS)
    assert all(f"\n  {name:<17}{VERBS[name].summary}" in usage() for name in VERBS)


def test_verbs_are_python_functions_of_the_same_name() -> None:
    import vitdistill

    for name in VERBS:
        assert getattr(vitdistill, function_of(name)) is verb(name), name


def test_unknown_verb_and_option_name_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'maskedkd'" in error_line(["maskdkd"], capsys)
    line = error_line(["maskedkd", "--student", "x", "--data", "digits", "--out", "y", "--keap", "0.5"], capsys)
    assert "--keap" in line and "'--keep'" in line
    line = error_line(["supervised", "--student", "x", "--data", "digits", "--out", "y", "--optim.lrr", "1"], capsys)
    assert "lrr" in line and "'--optim.lr'" in line


def test_missing_and_ill_typed_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_line(["supervised", "--data", "digits", "--out", "y"], capsys) == "error: --student is required"
    assert error_line(["supervised", "--student", "x"], capsys) == "error: --data and --out are required"
    line = error_line(["supervised", "--student", "x", "--data", "digits", "--out", "y", "--epochs", "many"], capsys)
    assert line == "error: --epochs must be a whole number; got 'many'"
    usage_line = "vitdistill predict MODEL FILES ... [options]"
    assert error_line(["predict", "runs/x"], capsys) == f"error: --files is required. Usage: {usage_line}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("keep: 0.5\nkeep: 0.7\n", "duplicate key 'keep' (line 2 of"),
        ("optim:\n  lr: 1\n  lr: 2\n", "duplicate key 'lr' (line 3 of"),
        ("keep: [0.5\n", "must be YAML"),
        ("{[a, b]: 1}\n", "must be a word or a number; got ['a', 'b'] (line 1 of"),
        ("? {a: b}\n: 1\n", "must be a word or a number"),
        ("title: caf\udce9\n", "must be text in UTF-8"),
    ],
)
def test_bad_yaml(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, errors="surrogateescape")
    line = error_line(["maskedkd", "--config", str(path)], capsys)
    assert expected in line and str(path) in line


@pytest.mark.parametrize(
    ("text", "value"),
    [("8:1", "8:1"), ("8:-1", "8:-1"), ("8", 8), ("4,0,2", "4,0,2")],
)
def test_a_colon_makes_no_number(text: str, value: object, tmp_path: Path) -> None:
    words = ["--student", "digits_vit_small", "--data", "digits", "--out", "x"]
    path = tmp_path / "run.yaml"
    path.write_text(f"teacher_merge: {text}\n")
    assert str(parse("maskedkd", [*words, "--teacher_merge", text])["teacher_merge"]) == text
    with pytest.raises(UserError, match="epochs"):
        parse("maskedkd", [*words, "--epochs", "1:30"])
    assert parse("maskedkd", [*words, "--config", str(path)])["teacher_merge"] == value
    assert check_yaml(path) == {"teacher_merge": value}


def test_numbers_with_exponents_and_words_in_braces(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: 1e-3\nb: .5\nc: 2024-05-06\nd: .inf\ne: 12:30:45.6\n")
    assert check_yaml(path) == {"a": 1e-3, "b": 0.5, "c": "2024-05-06", "d": float("inf"), "e": "12:30:45.6"}
    assert parse("text-embeddings", ["x", "--out", "x.safetensors", "--template", "{}"])["template"] == "{}"


def test_missing_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be readable"):
        check_yaml(tmp_path / "none.yaml")


def test_unknown_key_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("student: digits_vit_small\ndata: digits\nout: x\nkepe: 0.5\n")
    line = error_line(["maskedkd", "--config", str(path)], capsys)
    assert "kepe" in line and "keep" in line


def test_flags_stand_alone_and_runs_are_positional() -> None:
    assert normalised("maskedkd", ["--resume", "--seed", "3"]) == ["--resume=true", "--seed", "3"]
    assert normalised("maskedkd", ["--loader.balance", "--seed", "3"]) == ["--loader.balance=true", "--seed", "3"]
    assert normalised("maskedkd", ["--resume", "false"]) == ["--resume", "false"]
    assert normalised("evaluate", ["runs/x", "--json"]) == ["--json=true", "--model", "runs/x"]
    assert normalised("evaluate", ["--json", "runs/x"]) == ["--json=true", "--model", "runs/x"]
    assert normalised("report", ["runs/a", "runs/b"]) == ["--runs", '["runs/a", "runs/b"]']
    with pytest.raises(UserError, match="Options start with --"):
        normalised("maskedkd", ["runs/x"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--student", "deit_tin_patch16_224"], "deit_tiny_patch16_224"),
        (["--student", "digits_vit_small", "--keep", "0"], "keep"),
        (["--student", "digits_vit_small", "--keep", "37"], "37"),
        (["--student", "digits_vit_small", "--keep", "-3"], "-3"),
        (["--student", "digits_vit_small", "--keep", "nan"], "nan"),
        (["--student", "digits_vit_small", "--teacher", "vit_tiny_patch16_224@missing.pth"], "missing.pth"),
        (["--student", "digits_vit_small", "--image_size", "13"], "multiple of the patch size"),
        (["--student", "digits_vit_small", "--batch_size", "2000"], "1437"),
        (["--student", "digits_vit_small", "--trainer.stratgy", "ddp"], "strategy"),
        (["--student", "digits_vit_small", "--saliency_layer", "lst"], "last"),
        (["--student", "digits_vit_small", "--augment.mixup", "-1"], "mixup"),
    ],
)
def test_bad_values_of_a_training_verb(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["maskedkd", "--teacher", "digits-teacher", "--data", "digits", "--out", str(tmp_path / "run")]
    line = error_line([*base, *options], capsys)
    assert expected in line


def test_class_counts_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vitdistill.models.build import build
    from vitdistill.training.train import export_weights

    other = build("digits_vit_small", num_classes=7)
    export_weights(other.net.state_dict(), tmp_path / "seven.safetensors")
    line = error_line(
        ["maskedkd", "--student", "digits_vit_small", "--teacher", f"digits_vit_small@{tmp_path}/seven.safetensors"]
        + ["--data", "digits", "--out", str(tmp_path / "run")],
        capsys,
    )
    assert "has 7" in line and "has 10" in line


def test_a_word_that_is_no_choice_names_the_choices(capsys):
    assert main(["tinymim", "--target", "clss"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: --target must be relations, features or cls; got 'clss'. Did you mean 'cls'?"
    )
