"""`completion`: the script that makes a shell complete verbs, options and names of checkpoints."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ckptfs.cli.caller import Caller, verb
from ckptfs.cli.rendering import emit


@click.command(
    "completion",
    short_help="The completion script for your shell.",
    epilog="""\b
Examples:
  eval "$(ckptfs completion bash)"                            in ~/.bashrc
  eval "$(ckptfs completion zsh)"                             in ~/.zshrc
  ckptfs completion fish > ~/.config/fish/completions/ckptfs.fish
""",
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@verb
def completion_command(caller: Caller, shell: str) -> None:
    """Print the script that completes ckptfs in SHELL, names of checkpoints included."""
    root = click.get_current_context().find_root().command
    complete = get_completion_class(shell)
    assert complete is not None, shell  # one of the three above
    script = complete(root, {}, "ckptfs", "_CKPTFS_COMPLETE").source()
    if caller.json:
        return emit({"shell": shell, "script": script})
    click.echo(script)
