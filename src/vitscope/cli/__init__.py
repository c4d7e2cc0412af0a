"""The command line: parse, call, print; no logic. One file per command or group of commands."""

from vitscope.cli.entry import main

__all__ = ["main"]
