"""Tiny random ViTs of every family and checks, for the tests and for people who add an adapter."""

from vitscope.testing.checks import check_adapter
from vitscope.testing.randomize import randomize

__all__ = ["check_adapter", "randomize"]
