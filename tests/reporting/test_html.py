"""The HTML page: what it says, that it stands alone, and that nothing on it is taken for markup."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vitdistill.errors import UserError
from vitdistill.reporting.page import write_report
from vitdistill.verbs.report import report

Make = Callable[..., Path]


class Addresses(HTMLParser):
    """Collects what a browser would request."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def page(paths: list[Path], out: Path, masks: bool = False) -> str:
    return write_report(paths, out, masks=masks).read_text(encoding="utf-8")


def test_names_are_escaped(interrupted_run: Path, tmp_path: Path) -> None:
    html = page([interrupted_run], tmp_path / "r.html")
    assert "&lt;b&gt;half &amp; half" in html and "<b>" not in html


def test_the_page_requests_nothing(make_run: Make, tmp_path: Path) -> None:
    html = page([make_run("half"), make_run("quarter", config={"keep": 0.25})], tmp_path / "r.html")
    reader = Addresses()
    reader.feed(html)
    outside = [a for a in reader.found if not a.split(" ", 1)[1].startswith(("data:", "#"))]
    assert outside == []
    assert "<script" not in html and "@import" not in html and not re.search(r"url\((?!['\"]?#)", html)
    assert 'http-equiv="refresh"' not in html


def test_the_verb_writes_into_the_run_or_beside_the_runs(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make_run("one"), make_run("two", config={"keep": 1.0})
    assert report([str(one)], masks=False)["report"] == str(one / "report.html")
    capsys.readouterr()
    assert report([str(one)], masks=False)["replaced"]
    assert "report.html over 1 run, in place of an earlier one" in " ".join(capsys.readouterr().out.split())
    result = report([str(one), str(two)], masks=False, json=True)
    assert json.loads(capsys.readouterr().out) == result
    assert Path(result["report"]) == tmp_path / "runs" / "report.html"
    assert [row["top1"] for row in result["runs"]] == [91.5, 91.5]


def test_an_earlier_page_among_the_runs_is_left_out(make_run: Make, tmp_path: Path) -> None:
    make_run("one"), make_run("two")
    for _ in range(2):  # runs/* holds runs/report.html the second time
        result = report([str(path) for path in sorted((tmp_path / "runs").iterdir())], masks=False)
        assert len(result["runs"]) == 2


def test_bad_input(make_run: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run"):
        report([])
    with pytest.raises(UserError, match="run.json or config.yaml"):
        report([str(tmp_path)])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="writable"):
        report([str(make_run("one"))], out=str(tmp_path / "file" / "r.html"), masks=False)
