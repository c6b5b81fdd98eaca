"""What Griffe, which reads the package without running it, must be told of the package.

``ghost_ops.functional`` gets its functions from the files of ``ghost_ops/ops``, by their ``__all__``, and
``ghost_ops.profile`` is imported when it is first used. A function with the name of the file that it is in, such as
``fuse``, hides that file from whoever imports it, but not from Griffe. Roles of Sphinx, such as ``:func:`fuse` ``,
become links where the name has an entry in the reference, and code elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

import griffe

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
ENTRY = re.compile(r"^::: ([\w.]+)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([\w.]+)`")


def entries() -> list[str]:
    """Every name that a page of the reference has."""
    return [name for page in sorted(REFERENCE.glob("*.md")) for name in ENTRY.findall(page.read_text())]


class PublicNames(griffe.Extension):
    def on_package(self, *, pkg, loader, **kwargs):
        functional = pkg["functional"]
        for file in pkg["ops"].modules.values():
            for name in file.exports or ():
                name = getattr(name, "name", name)
                functional.set_member(name, griffe.Alias(name, file[name], parent=functional))
        profile = pkg["profiling.run.profile"]
        pkg.set_member("profile", griffe.Alias("profile", profile, parent=pkg))
        for package in (pkg, pkg["models"]):
            for name, path in package.imports.items():
                found = self._function_of(path, name, loader)
                if found is not None:
                    package.set_member(name, griffe.Alias(name, found, parent=package))
        links = {name: name for name in entries()} | {name.rpartition(".")[2]: name for name in reversed(entries())}

        def link(match: re.Match) -> str:
            name = match[1]
            return f"[`{name}`][{links[name]}]" if name in links else f"`{name}`"

        self._replace(pkg, link, set())

    @staticmethod
    def _function_of(path: str, name: str, loader):
        """What a file called ``name`` has under its own name; None where ``path`` leads to no such file."""
        try:
            found = loader.modules_collection[path]
        except KeyError:
            return None
        found = found.final_target if found.is_alias else found
        return found.members.get(path.rpartition(".")[2]) if found.is_module else None

    def _replace(self, of, link, seen):
        if of.is_alias or of.path in seen:
            return
        seen.add(of.path)
        if of.docstring:
            of.docstring.value = ROLE.sub(link, of.docstring.value)
        for member in of.members.values():
            self._replace(member, link, seen)
