"""Everything that is worth a look on the day a GPU is there, in one command: see `__main__.py`."""
