"""The documentation: links within the repository lead to files and headings that exist, and README stays short."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
README_LINES = 120


def prose(page: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


FOLDERS = "ghost_ops", "csrc", "tests", "benchmarks", "examples", "docs"
FILES = {f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")}


@pytest.mark.parametrize("page", [*ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_source_files_that_are_named_exist(page):
    named = set(re.findall(r"(?<![\w<>*/.-])(\w[\w/]*\.(?:py|cpp|cu|h|inc))\b", page.read_text()))
    missing = {name for name in named - {"setup.py"} if not any(file.endswith("/" + name) for file in FILES)}
    assert not missing


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)]+)\)", prose(index))}
    missing = {page for page in ROOT.glob("docs/**/*.md") if page != index} - linked
    assert not missing


@pytest.mark.parametrize("package", ["ghost_ops", "ghost_ops.functional", "ghost_ops.models"])
def test_every_public_name_is_in_the_api_page(package):
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [n for n in importlib.import_module(package).__all__ if not re.search(rf"\b{n}\b", text)]
    assert not missing


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
