"""The command line: parse, call, print; no logic. One file a command."""

from vitscope.cli.entry import main

__all__ = ["main"]
