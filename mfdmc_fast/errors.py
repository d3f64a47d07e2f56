"""The package's own exceptions: few kinds, each with a message a person can act on."""

from __future__ import annotations


class MFDMCError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(MFDMCError, ValueError):
    """A setting has a wrong type or value, or two settings contradict each other."""


class DataError(MFDMCError, ValueError):
    """A ratings source cannot be used; the message names source, row, column, value and the fix where they are known.

    Attributes:
        source: path or description of the input, or None.
        row: 1-based row of the offending record (for text files the line number in the file), or None.
        column: name or 1-based position of the offending column, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        where = [
            text
            for text in (
                source,
                f"row {row}" if row is not None else None,
                f"column {column}" if column is not None else None,
            )
            if text
        ]
        super().__init__(f"{', '.join(where)}: {message}" if where else message)
        self.source = source
        self.row = row
        self.column = column


class ModelFileError(MFDMCError, ValueError):
    """A model file is missing, truncated, of a newer format, or not a model of this package."""


class BackendUnavailable(MFDMCError, RuntimeError):
    """An explicitly requested backend cannot run here; the message says why and what is available."""


class ClustersCollapsed(UserWarning):
    """Views lost all clusters that may go as soon as pruning began; the message names them and what to change."""


class TrainingDiverged(MFDMCError, RuntimeError):
    """The loss became NaN or infinite; the message names epoch, batch and the likely cause."""


class ProcessEnded(MFDMCError, RuntimeError):
    """Another of the processes that train a model together has ended; the message says how to continue."""


class DamagedCheckpoint(UserWarning):
    """A checkpoint cannot be read and is passed over; the message names the file and says why."""
