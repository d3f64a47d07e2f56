"""The `mfdmc` command."""

from mfdmc_fast.cli.commands import main

__all__ = ["main"]
