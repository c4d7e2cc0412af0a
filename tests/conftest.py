"""Shared set-up: tests may import their helpers by name, and run on one thread."""

import sys
from pathlib import Path

import torch

for _folder in (".", "unit"):
    sys.path.insert(0, str(Path(__file__).parent / _folder))
torch.set_num_threads(1)
