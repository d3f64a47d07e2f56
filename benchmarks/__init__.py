"""Benchmarks: every public figure of the project is produced by a script in this folder."""
