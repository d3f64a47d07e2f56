"""Reports: a model as one HTML page, and its pictures as matplotlib axes."""

from mfdmc_fast.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
