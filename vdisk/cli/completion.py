"""`vdisk completion`."""

from __future__ import annotations

import click


@click.command(
    epilog="""\b
Examples:
  vdisk completion bash > ~/.local/share/bash-completion/completions/vdisk
  vdisk completion zsh > ~/.zfunc/_vdisk
  vdisk completion fish > ~/.config/fish/completions/vdisk.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL."""
    from click.shell_completion import get_completion_class

    from vdisk.cli import _vdisk

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(_vdisk, {}, "vdisk", "_VDISK_COMPLETE").source())
