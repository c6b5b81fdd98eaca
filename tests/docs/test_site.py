"""The site's sources, without the site's tools: every page is in the navigation, every public name has an entry with a
docstring, and the drawings are those that their script makes, with the counts that the page names."""

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())
ENTRIES = [name for page in DOCS.glob("reference/*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(DOCS / "site"))  # where its files find each other
drawings = load(DOCS / "site" / "drawings.py")


def navigated(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in navigated(part)]


def test_every_page_is_in_the_navigation_once():
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.glob("**/*.md")]
    outside = ["benchmarks.md", "changelog.md", "contributing.md"]  # docs/site/hooks.py
    assert sorted(navigated(CONFIG["nav"])) == sorted(pages + outside)


def resolve(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("package", ["ghost_ops", "ghost_ops.functional", "ghost_ops.models", "ghost_ops.nn"])
def test_every_public_name_has_an_entry(package):
    public = [
        (name, getattr(importlib.import_module(package), name)) for name in importlib.import_module(package).__all__
    ]
    found = [resolve(entry) for entry in ENTRIES]
    assert not [name for name, it in public if not inspect.ismodule(it) and not any(it is entry for entry in found)]


def test_every_entry_is_there_once_and_has_a_docstring():
    assert len(ENTRIES) == len(set(ENTRIES))
    assert not [entry for entry in ENTRIES if not inspect.getdoc(resolve(entry))]


def test_the_drawings_are_those_of_the_script():
    files = {path.name: path.read_text() for path in (DOCS / "drawings").iterdir()}
    assert files == drawings.drawings()
    for text in files.values():
        ElementTree.fromstring(text)


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_the_page_names_the_counts_of_the_drawing(name):
    """What the text beside a drawing says, for readers who do not see it."""

    def moved(side) -> str:
        halves, of_input = side.total()
        return f"{halves} + {'r' if of_input == 1 else f'{of_input} r'}"

    (caption,) = re.findall(rf"!\[(.*)\]\(drawings/{name}.svg\)", (DOCS / "how-it-works.md").read_text())
    drawing = drawings.DRAWINGS[name]
    assert f"PyTorch moves {moved(drawing.eager)} maps, ghost_ops {moved(drawing.fused)}" in caption


def test_nothing_is_fetched_from_elsewhere():
    assert CONFIG["theme"]["font"] is False
    assert CONFIG["strict"] is True
    assert not {"extra_javascript", "copyright"} & set(CONFIG)
