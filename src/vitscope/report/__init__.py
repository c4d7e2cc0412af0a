"""The report a person reads: saved results as one HTML file that loads nothing."""

from vitscope.report.page import write_report

__all__ = ["write_report"]
