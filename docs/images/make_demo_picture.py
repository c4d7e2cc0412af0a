"""Draw the README's picture from the result that `make demo` leaves.

.venv/bin/python docs/images/make_demo_picture.py vitscope-demo/dinov2-small
"""

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from vitscope import AuditResult
from vitscope.terminal import make_report

console = Console(record=True, width=84, file=StringIO())
console.print(make_report(AuditResult.load(sys.argv[1]).summary))
drawn = console.export_svg(title="vitscope demo")
# Without the web font: a picture fetches nothing.
local = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
Path(__file__).with_name("demo.svg").write_text(local, encoding="utf-8")
