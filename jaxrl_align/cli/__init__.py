"""The command line `jaxrl-align`: a model and rows in, an aligned model out."""

from jaxrl_align.cli.commands import run_command

__all__ = ["run_command"]
