"""The `mfdmc` command."""

from mfdmc_fast.cli import signals


def main() -> None:
    """Entry point of the `mfdmc` command."""
    signals.while_loading()
    from mfdmc_fast.cli import commands

    signals.while_running()
    commands.app()
