"""Models as Accelerate's mixed precision leaves them."""

import accelerate
from accelerate.state import AcceleratorState


def prepare_in_bf16(module):
    """Wrap a module's forward; Accelerate keeps one state per process, so none is found or left."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(module)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
