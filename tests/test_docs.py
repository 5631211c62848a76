"""What README and documentation show exists and works: commands, code, messages, links."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vitdistill.cli import main
from vitdistill.verbs.parser import parse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A command line shown on a page, without what starts several processes of it."""

    page: str
    line: str


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks whose info string is exactly `language`."""
    return [body for info, body in FENCE.findall(path.read_text()) if info.strip() == language]


def commands() -> list[Command]:
    found = []
    for path in PAGES:
        for body in blocks(path, "bash"):
            lines = re.sub(r"\\\n\s*", "", body).splitlines()
            lines = [re.sub(r"^\s*(srun|torchrun) .*?(?=vitdistill )", "", line).strip() for line in lines]
            found += [Command(path.name, line) for line in lines if line.startswith("vitdistill ")]
    return found


def load_builder() -> Any:
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- commands ----------------------------------------------------------------------------------------------------


def test_pages_show_commands() -> None:
    assert len(commands()) > 30
    assert {command.line.split()[1] for command in commands()} >= {"maskedkd", "cost", "resume", "evaluate", "export"}


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.page}: {command.line[:60]}")
def test_command_parses(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command.line, comments=True)[1:]
    parse(name, arguments)


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = re.findall(r"^make ([\w-]+)", "\n".join(blocks(README, "bash")), re.MULTILINE)
    assert shown and set(shown) <= set(targets)


# --- code --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=lambda path: path.name)
def test_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, body in enumerate(blocks(path, "python")):
        exec(compile(body, f"{path.name}, python block {number}", "exec"), namespace)


def test_only_known_kinds_of_code_blocks() -> None:
    """A typo in an info string would silently leave a block unchecked."""
    known = {"bash", "python", "python no-run", "console", "text", "bibtex"}
    for path in PAGES:
        assert {info.strip() for info, _ in FENCE.findall(path.read_text())} <= known, path.name


# --- messages ----------------------------------------------------------------------------------------------------


def sessions() -> list[tuple[str, str]]:
    found = []
    for body in blocks(DOCS / "errors.md", "console"):
        found += re.findall(r"^\$ vitdistill (.*)\n(error: .*)$", body, re.MULTILINE)
    return found


@pytest.mark.parametrize(("arguments", "message"), sessions())
def test_shown_error_is_the_real_one(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(arguments)) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(message) and "\n" not in printed


def test_there_are_shown_errors() -> None:
    assert len(sessions()) >= 4


# --- links -------------------------------------------------------------------------------------------------------


def test_site_builds_without_broken_links(tmp_path: Path) -> None:
    builder = load_builder()
    assert builder.build(DOCS, tmp_path) == []
    index = (tmp_path / "index.html").read_text()
    assert 'href="maskedkd.html"' in index and ".md" not in re.findall(r'href="([^"]*)"', index)
    assert len(list(tmp_path.glob("*.html"))) == len(list(DOCS.glob("*.md")))
    for path in DOCS.glob("*.md"):
        rendered = (tmp_path / f"{path.stem}.html").read_text()
        assert rendered.count("<pre>") >= len(FENCE.findall(path.read_text())) and "```" not in rendered, path.name


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# A\n\n[b](b.md#there)", ""),
        ("# A\n\n[out](https://example.org/x.md)", ""),
        ("# A\n\n[b](c.md)", "link to c.md"),
        ("# A\n\n[b](b.md#gone)", "no heading"),
        ("# A\n\n[b](#gone)", "no heading"),
        ("# A\n\n[b](../README.md)", "no page"),
    ],
)
def test_broken_links_are_found(text: str, problem: str, tmp_path: Path) -> None:
    builder = load_builder()
    (tmp_path / "a.md").write_text(text)
    (tmp_path / "b.md").write_text("# B\n\n## There\n")
    found = builder.build(tmp_path, tmp_path / "site", order=("a", "b"))
    assert (problem in found[0] and len(found) == 1) if problem else found == []
    assert (tmp_path / "site").exists() is not bool(problem)


def test_unlisted_page_is_found(tmp_path: Path) -> None:
    builder = load_builder()
    (tmp_path / "a.md").write_text("# A")
    assert builder.build(tmp_path, tmp_path / "site", order=("b",)) == [
        "a.md is not listed in ORDER",
        "b.md is listed in ORDER but does not exist",
    ]


def test_readme_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text()) if "://" not in link]
    assert links and [path for path in links if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_files_exist(path: Path) -> None:
    """Files of the repository in code type; in a table under a heading "under `src/vitdistill/`", files below that."""
    text = path.read_text()
    named = re.findall(r"`((?:src|docs|recipes|tests|benchmarks)/[\w/.]+)`", text)
    for body in re.findall(r"^\| under `src/vitdistill/` .*\n((?:\|.*\n)+)", text, re.MULTILINE):
        named += [f"src/vitdistill/{name}" for name in re.findall(r"`([\w/]+(?:/|\.py))`", body)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_map_of_the_code_leaves_out_no_folder() -> None:
    shown = README.read_text().partition("| under `src/vitdistill/`")[2].partition("\n\n")[0]
    folders = {path.parent.name for path in (ROOT / "src/vitdistill").glob("*/__init__.py")} - {"assets"}
    assert folders and [name for name in sorted(folders) if f"`{name}/" not in shown] == []


# --- results -----------------------------------------------------------------------------------------------------

RESULTS = re.compile(r"<!-- results:([\w-]+) -->\n(.*?)<!-- /results:\1 -->", re.DOTALL)
SPREAD = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
FACTOR = re.compile(r"\d+\.\d+x")


def results() -> dict[str, str]:
    """The blocks of measured numbers in README and results, by name."""
    return {name: body for path in (README, DOCS / "results.md") for name, body in RESULTS.findall(path.read_text())}


def test_every_block_of_results_is_closed() -> None:
    marks = sum(path.read_text().count("<!-- results:") for path in PAGES)
    assert marks == len(results()) > 8


@pytest.mark.parametrize("name", results())
def test_results_are_those_of_the_benchmarks(name: str) -> None:
    """Means with their spread are those of a committed table, rounded; factors of speed stand in it as they are."""
    body = results()[name]
    files = re.findall(r"`(benchmarks/results/\w+\.md)`", body) or sorted((ROOT / "benchmarks/results").glob("*.md"))
    measured = "".join((ROOT / file).read_text() for file in files)
    pairs = [(float(mean), float(spread)) for mean, spread in SPREAD.findall(measured)]
    for mean, spread in SPREAD.findall(body):
        near = [abs(float(mean) - a) < 0.051 and abs(float(spread) - b) < 0.051 for a, b in pairs]
        assert any(near), f"{mean} ± {spread}"
    assert [factor for factor in FACTOR.findall(body) if factor not in measured] == []
