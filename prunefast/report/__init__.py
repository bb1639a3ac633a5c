"""The report of a run: one static HTML file."""

from prunefast.report.page import report

__all__ = ["report"]
