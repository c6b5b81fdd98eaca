"""What MkDocs does beside its plugins: pages and plots from outside of docs/, and the links to them.

The pages are read on GitHub too, so that their links lead to files of the repository. A link to a page or a plot that
the site has leads there; of one to any other file only the text stays, since the site does not have the file, unless
``repo_url`` says where the repository is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "benchmarks/README.md": "benchmarks.md"}
PLOTS = "benchmarks/results"
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`(?!\]))", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")


def _places() -> dict[Path, str]:
    """Path in the site of every file of the repository, outside of docs/, that the site has."""
    plots = {path: f"plots/{path.name}" for path in sorted((ROOT / PLOTS).glob("*.png"))}
    return {ROOT / source: page for source, page in PAGES.items()} | plots


def on_files(files, config):
    for path, place in _places().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    places = _places()
    here = next((path for path, place in places.items() if place == page.file.src_uri), None)
    here = here or Path(config.docs_dir) / page.file.src_uri

    def lead(match: re.Match) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (here.parent / target).resolve()
        if not path.exists():
            raise PluginError(f"{here.relative_to(ROOT)}: the link to {target} leads to no file")
        if path.is_relative_to(config.docs_dir) and path.suffix != ".py":
            place = path.relative_to(config.docs_dir).as_posix()
        elif path in places:
            place = places[path]
        elif config.repo_url:
            address = f"{config.repo_url.rstrip('/')}/blob/HEAD/{path.relative_to(ROOT).as_posix()}"
            return f"{match['image']}[{match['text']}]({address})"
        else:
            return match["text"]
        relative = os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".")
        return f"{match['image']}[{match['text']}]({relative}{match['anchor'] or ''})"

    pieces = CODE.split(markdown)
    return "".join(piece if odd else LINK.sub(lead, piece) for odd, piece in zip([False, True] * len(pieces), pieces))


def on_post_page(output, page, config):
    """Nothing that a page shows or runs is fetched from elsewhere."""
    fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]*", output)
    if fetched:
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {fetched[0]}")
    return output
