"""Every recipe parses, opens with what its reader needs to know, and states costs that the cost model confirms."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitdistill.cli import check_yaml, make_parser, normalised, verb
from vitdistill.costing.macs import backbone_macs
from vitdistill.data.recipes import Augment
from vitdistill.models.backbone import Backbone
from vitdistill.models.build import build
from vitdistill.tokens.keep import keep_count

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAPER = [path for path in RECIPES if path.parent.name == "maskedkd"]
KEYS = ("command", "hardware", "time", "score")
# One row of the table in a header: option, patches seen, accuracy, PFLOPs; "-" where the paper prints none.
ROW = re.compile(r"^\s*--keep (\S+)\s+(\d+) of (\d+)\s+([\d.]+)\s+(\d+|-)$", re.MULTILINE)


def recipe(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}")


def header(path: Path) -> str:
    """The opening comment without its marks, continued lines joined."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))


def stated(path: Path, key: str) -> str:
    found = re.search(rf"^{key}:\s+(\S.*)$", header(path), re.MULTILINE)
    assert found, f"the header of {path} lacks a line '{key}:'"
    return found[1]


@cache
def parser_of(name: str) -> Any:
    return make_parser(name, verb(name))


@cache
def teacher_of(name: str) -> Backbone:
    """A teacher without weights."""
    return build(name, meta=True)


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """Verb and values of a command line, read as the command itself reads it."""
    program, name, *arguments = shlex.split(command)
    assert program == "vitdistill"
    parser = parser_of(name)
    options = [string for action in parser._actions for string in action.option_strings]
    values = parser.parse_args(normalised(verb(name), arguments, options)).as_dict()
    values.pop("config", None)
    return name, values


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Header commands name recipes relative to the repository."""
    monkeypatch.chdir(ROOT)


def test_there_are_recipes() -> None:
    assert len(PAPER) >= 8 and len(RECIPES) > len(PAPER)


@recipe(RECIPES)
def test_header_says_what_a_reader_needs(path: Path) -> None:
    for key in KEYS:
        assert stated(path, key)
    assert header(path).splitlines()[0].endswith(".")


@recipe(RECIPES)
def test_command_of_the_header_runs_this_file(path: Path) -> None:
    check_yaml(path)
    command = stated(path, "command")
    assert f"--config {path.relative_to(ROOT)} " in command
    _, values = parsed(command)
    for key, value in yaml.safe_load(path.read_text()).items():
        got = values[key]
        assert value.items() <= got.items() if isinstance(value, dict) else got == value, key
    assert values["out"].startswith("runs/")
    Augment(**values["augment"]).resolved()


@recipe([path for path in RECIPES if "cost:" in path.read_text()])
def test_cost_command_is_about_the_same_training(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    name, cost = parsed(stated(path, "cost"))
    assert name == "cost"
    assert (cost["student"], cost["epochs"]) == (training["student"], training["epochs"])
    if path in PAPER:
        assert (cost["teacher"], cost["keep"]) == (training["teacher"], training["keep"])
        assert cost["images"] == 1_281_167


@recipe(PAPER)
def test_published_cost_is_what_the_cost_command_says(path: Path) -> None:
    _, options = parsed(stated(path, "cost"))
    rows = ROW.findall(header(path))
    teacher = teacher_of(options["teacher"])
    published = {}
    for keep, count, patches, _, pflops in rows:
        assert int(patches) == teacher.grid.count
        assert keep_count(keep, teacher.grid.count) == int(count)
        if pflops != "-":
            published[int(count)] = float(pflops)
            counted = backbone_macs(teacher, int(count)).total * options["epochs"] * options["images"] / 1e15
            assert counted == pytest.approx(float(pflops), rel=0.003)
    said = verb("cost")(**{**options, "student": None, "json": True})["teacher_pflops"]
    assert said == pytest.approx(published[options["keep"]], rel=0.003)


@recipe(PAPER)
def test_score_is_that_of_the_row_trained(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    score = {int(count): top1 for _, count, _, top1, _ in ROW.findall(header(path))}[training["keep"]]
    assert stated(path, "score").startswith(f"{score}% top-1, published")


@recipe(PAPER)
def test_networks_exist_and_have_the_same_classes(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    student = build(training["student"], args=training["student_args"], num_classes=1000, meta=True)
    teacher = teacher_of(training["teacher"])
    assert training["teacher_args"] is None
    assert student.num_classes == 1000
    assert teacher.num_classes == (512 if training["teacher_text"] else 1000)
    assert teacher.maskable


@recipe(PAPER)
def test_global_batch_is_that_of_the_papers(path: Path) -> None:
    _, training = parsed(stated(path, "command"))
    assert 8 * training["batch_size"] * training["optim"]["accumulate"] == 1024
