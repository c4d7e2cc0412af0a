"""Models wrapped by Accelerate's mixed precision."""

import accelerate
from accelerate.state import AcceleratorState


def prepare_in_bf16(module):
    """Wrap a module's forward, with a clean Accelerate state, of which a process has only one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(module)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
