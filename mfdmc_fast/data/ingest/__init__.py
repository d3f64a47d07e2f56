"""From files of ratings to a store, in bounded memory."""

from mfdmc_fast.data.ingest.preparation import PrepareProgress, prepare

__all__ = ["PrepareProgress", "prepare"]
