"""``ghost-ops info``: what is available here."""

from __future__ import annotations

import click

from .console import console, echo_json
from .options import json_flag


@click.command("info")
@json_flag
def command(as_json: bool) -> None:
    """Versions, build, instruction sets, threads, environment variables, processor, GPUs, backends, and why one is
    missing: all that a maintainer would ask for.

    \b
    Examples:
      ghost-ops info
      ghost-ops info --json
    """
    from rich.markup import escape
    from rich.table import Table

    from . import surroundings

    found = surroundings.describe()
    if as_json:
        echo_json(found)
        return
    table = Table(show_header=False, title="ghost_ops on this machine")
    for name, value in surroundings.lines(found):
        table.add_row(escape(name), escape(value))  # [bench] is not markup
    console().print(table)
