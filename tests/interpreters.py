"""Code in fresh interpreters, forked from one that has imported the slow libraries already."""

import subprocess
import sys

_PROGRAM = """
{first}
import os, sys
for code in {codes!r}:
    if not os.fork():
        exec(code)
        print(end="\\0", flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)
"""
LIST_MODULES = "\nimport sys\nprint(*sys.modules, sep='\\n')"


def run_each(codes, first=""):
    """What each code prints in an interpreter of its own, which has run `first`."""
    program = _PROGRAM.format(first=first, codes=[*codes])
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def modules_after(*codes, first=""):
    """Names in sys.modules after each code."""
    return [set(text.splitlines()) for text in run_each([c + LIST_MODULES for c in codes], first)]
