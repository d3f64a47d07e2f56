"""The Triton kernels and their launchers, one file for each pass or op; `ops/README.md` says how they work together.

Importing this package imports Triton: `mfdmc_fast.ops.triton_backend` does so on first use.
"""
