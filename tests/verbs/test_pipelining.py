"""`--pipeline` and `--teacher_device`: what is refused before anything is loaded."""

from pathlib import Path

import pytest

from vitdistill.cli import main

WORDS = ["--student=digits_vit_small", "--teacher=digits-teacher", "--data=digits"]


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("maskedkd", ["--pipeline=9", "--batch_size=8"], "got --pipeline 9 and --batch_size 8"),
        ("tinymim", ["--pipeline=9", "--batch_size=8"], "got --pipeline 9 and --batch_size 8"),
        ("maskedkd", ["--pipeline=0"], "pipeline must be at least 1; got 0"),
        ("maskedkd", ["--pipeline=2", "--keep=mass:0.9"], "got --keep mass:0.9"),
        ("maskedkd", ["--pipeline=2", "--compile=true"], "does not go with --compile on one device"),
        ("maskedkd", ["--pipeline=2", "--trainer.strategy=fsdp"], "does not go with --trainer.strategy fsdp"),
        ("tinymim", ["--pipeline=2", "--teacher_drop_path=0.1"], "does not go with --teacher_drop_path"),
        ("maskedkd", ["--teacher_device=gpu"], "teacher_device must be cpu or a GPU by its number; got 'gpu'"),
        ("maskedkd", ["--teacher_device=cuda:1"], "it needs --trainer.devices 1"),
        ("maskedkd", ["--pipeline=2", "--alpha=0"], "--pipeline has no effect unless --alpha is above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_one_line_names_the_options(
    verb: str, options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *WORDS, f"--out={tmp_path / 'run'}", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "run").exists()
