"""Tiny random ViTs of every family and adapter checks, for the tests and for adapter authors."""

from vitscope.testing.checks import check_adapter
from vitscope.testing.randomize import randomize

__all__ = ["check_adapter", "randomize"]
