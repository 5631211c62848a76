"""Renders docs/*.md to self-contained pages in site/, and refuses links that lead nowhere.

Usage: python docs/build.py [--out site]
"""

import argparse
import html
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown import Markdown

HERE = Path(__file__).resolve().parent

# Pages in reading order; a page that is not listed is an error, so that none is left out of the navigation.
ORDER = (
    "index",
    "maskedkd",
    "masking",
    "linear_only",
    "analyses",
    "merging",
    "tinymim",
    "video",
    "actions",
    "audio",
    "segments",
    "boxes",
    "mae",
    "dino",
    "g2sd",
    "evaluation",
    "robustness",
    "using",
    "data",
    "models",
    "weights",
    "training",
    "sweep",
    "scale",
    "cost",
    "results",
    "python",
    "extending",
    "errors",
)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #2563c4; }
@media (prefers-color-scheme: dark) { :root { --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.6 system-ui, sans-serif; display: flex; min-height: 100vh; }
nav { flex: 0 0 13rem; padding: 2rem 1.2rem; border-right: 1px solid var(--line); }
nav a { display: block; padding: .2rem .5rem; border-radius: 4px; text-decoration: none; }
nav a[aria-current] { background: var(--soft); font-weight: 600; }
nav strong { display: block; padding: 0 .5rem .6rem; }
main { flex: 1; min-width: 0; max-width: 54rem; padding: 1.2rem 2.5rem 4rem; }
a { color: var(--link); }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 .6em; } h1 { margin-top: .6em; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; line-height: 1.45; }
code { font: .875em ui-monospace, monospace; background: var(--soft); padding: .1em .25em; border-radius: 3px; }
pre code { background: none; padding: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
@media (max-width: 50rem) { body { display: block; } nav { border: 0; padding-bottom: 0; } main { padding: 1rem; } }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - vitdistill</title>
<style>{style}</style>
</head>
<body>
<nav><strong>vitdistill</strong>
{nav}
</nav>
<main>
{body}
</main>
</body>
</html>
"""


@dataclass
class Page:
    """One rendered page.

    Attributes:
        name: file name without suffix.
        title: text of the first heading.
        body: HTML, links still pointing to .md files.
        anchors: ids of its headings.
        links: targets of its links, as written.
    """

    name: str
    title: str
    body: str
    anchors: set[str]
    links: list[str]


def read_page(path: Path) -> Page:
    """Render one Markdown file."""
    # The fences' second word ("python no-run") is for the tests; Markdown would not see a fence in it.
    text = re.sub(r"^```(\w+) .*$", r"```\1", path.read_text(), flags=re.MULTILINE)
    body = Markdown(extensions=["fenced_code", "tables", "toc", "sane_lists"]).convert(text)
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", body)
    title = html.unescape(re.sub(r"<[^>]+>", "", heading[1])) if heading else path.stem
    anchors = set(re.findall(r'\bid="([^"]+)"', body))
    return Page(path.stem, title, body, anchors, [html.unescape(link) for link in re.findall(r'href="([^"]+)"', body)])


def problems(pages: dict[str, Page], order: tuple[str, ...] = ORDER) -> list[str]:
    """What is wrong with a set of pages: broken links, and pages that are missing from the order or from disk."""
    found = [f"{name}.md is not listed in ORDER" for name in pages if name not in order]
    found += [f"{name}.md is listed in ORDER but does not exist" for name in order if name not in pages]
    for page in pages.values():
        found += [f"{page.name}.md: {problem}" for link in page.links if (problem := _problem(link, page, pages))]
    return found


def _problem(link: str, page: Page, pages: dict[str, Page]) -> str:
    """Why a link leads nowhere; empty when it leads somewhere. Links to other sites are not followed."""
    if re.match(r"[a-z]+:", link):
        return ""
    file, _, anchor = link.partition("#")
    target = page if not file else pages.get(file.removesuffix(".md"))
    if target is None or (file and not file.endswith(".md")):
        return f"link to {link}, which is no page of the documentation"
    if anchor and anchor not in target.anchors:
        return f"link to {link}, but {target.name}.md has no heading with that name"
    return ""


def render(page: Page, pages: dict[str, Page], order: tuple[str, ...] = ORDER) -> str:
    """The whole HTML file of a page."""
    entries = []
    for name in order:
        current = ' aria-current="page"' if name == page.name else ""
        entries.append(f'<a href="{name}.html"{current}>{html.escape(pages[name].title)}</a>')
    body = re.sub(r'href="([\w-]+)\.md(#[^"]*)?"', lambda m: f'href="{m[1]}.html{m[2] or ""}"', page.body)
    return TEMPLATE.format(title=html.escape(page.title), style=STYLE, nav="\n".join(entries), body=body)


def build(source: Path, out: Path, order: tuple[str, ...] = ORDER) -> list[str]:
    """Render every page of a folder, unless something is wrong with them.

    Args:
        source: folder with the Markdown files.
        out: folder for the HTML files; made when missing.
        order: page names in the order of the navigation.

    Returns:
        The problems found; nothing is written unless this is empty.
    """
    pages = {path.stem: read_page(path) for path in sorted(source.glob("*.md"))}
    found = problems(pages, order)
    if not found:
        out.mkdir(parents=True, exist_ok=True)
        for page in pages.values():
            (out / f"{page.name}.html").write_text(render(page, pages, order))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "site", help="folder for the pages")
    options = parser.parse_args()
    found = build(HERE, options.out)
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(f"wrote {options.out}/index.html")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
