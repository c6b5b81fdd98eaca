"""The command line ``ghost-ops``: one file a command.

Errors are one line on standard error that says what to do, and the exit code is 1; a command that is written wrongly
exits with 2. What takes time is imported when a command runs.
"""

from __future__ import annotations

import click

from .. import __version__
from . import bench, completion, convert, demo, explain, export, freeze, ghosts, info, profile, verify

COMMANDS = (info, verify, bench, profile, explain, ghosts, freeze, export, convert, demo, completion)


class _InOrder(click.Group):
    """Lists its commands in the order in which they were added."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Fused kernels for GhostNet's Ghost modules in PyTorch.

    Exit codes: 0; 1 for an error, which is one line on standard error, and where verify finds one; 2 for a command that
    is written wrongly.
    """


for module in COMMANDS:
    main.add_command(module.command)
