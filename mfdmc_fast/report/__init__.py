"""Reports: a model as one HTML page, and its pictures as matplotlib axes; a run on images as such a page."""

from mfdmc_fast.report.images import write_images
from mfdmc_fast.report.page import render_report, write_report

__all__ = ["render_report", "write_images", "write_report"]
