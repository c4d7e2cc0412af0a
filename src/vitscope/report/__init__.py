"""The report: saved results as one self-contained HTML file."""

from vitscope.report.page import write_report

__all__ = ["write_report"]
