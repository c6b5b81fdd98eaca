"""``ghost-ops info``: what is available here."""

from __future__ import annotations

import click

from .console import console, echo_json
from .options import json_flag


@click.command("info")
@json_flag
def command(as_json: bool) -> None:
    """Versions, instruction sets, backends, and why one is missing.

    \b
    Examples:
      ghost-ops info
      ghost-ops info --json
    """
    from rich.markup import escape
    from rich.table import Table

    from ..bench import machine

    found = machine.describe()
    if as_json:
        echo_json(found)
        return
    table = Table(show_header=False, title="ghost_ops on this machine")
    commit = f", commit {found['commit']}" if found["commit"] else ""
    table.add_row("ghost_ops", f"{found['ghost_ops']}{commit}")
    table.add_row("processor", f"{found['cpu']} ({found['architecture']}), {found['cores']} cores")
    table.add_row("caches", ", ".join(f"{name} {size >> 10} KiB" for name, size in found["caches"].items()))
    table.add_row("kernels", f"{found['isa']} (of {', '.join(found['isas']) or 'none'})")
    for name, state in found["backends"].items():
        table.add_row(f"backend {name}", escape(state))
    for name, version in found["versions"].items():
        table.add_row(name, version or escape("not installed" + _how(name, machine.ENGINES)))  # [bench] is not markup
    console().print(table)


def _how(package: str, engines: dict[str, str]) -> str:
    return ': pip install "ghost-ops[bench]"' if package in engines else ""
