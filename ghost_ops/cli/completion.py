"""``ghost-ops completion``: what makes a shell complete commands, options and names of nets."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .console import echo_json
from .options import json_flag

PROGRAM, VARIABLE = "ghost-ops", "_GHOST_OPS_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_flag
def command(shell: str, as_json: bool) -> None:
    """Print the script that makes SHELL complete commands, options and names of nets.

    \b
    Examples:
      ghost-ops completion bash >> ~/.bashrc
      ghost-ops completion zsh >> ~/.zshrc
      ghost-ops completion fish > ~/.config/fish/completions/ghost-ops.fish
    """
    root = click.get_current_context().find_root().command
    complete = get_completion_class(shell)
    assert complete is not None  # click has those of the choice
    script = complete(root, {}, PROGRAM, VARIABLE).source()
    if as_json:
        echo_json({"shell": shell, "script": script})
    else:
        click.echo(script)
