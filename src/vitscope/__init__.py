"""vitscope tells you whether the attention maps of your Vision Transformer can be believed.

The public names, each imported from its own file when it is first used: importing this package
imports neither torch nor any model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitscope.audit_loop import audit
    from vitscope.config import AuditConfig
    from vitscope.decomposition import decompose, map_tokens, restrict
    from vitscope.errors import VitscopeError
    from vitscope.images import ImageSet
    from vitscope.ledger import Ledger
    from vitscope.models.base import ViTAdapter
    from vitscope.models.registry import load_model, wrap_model
    from vitscope.result import AuditResult

__all__ = [
    "AuditConfig",
    "AuditResult",
    "ImageSet",
    "Ledger",
    "ViTAdapter",
    "VitscopeError",
    "audit",
    "decompose",
    "load_model",
    "map_tokens",
    "restrict",
    "wrap_model",
]
__version__ = "0.1.0"

_HOMES = {
    "AuditConfig": "config",
    "AuditResult": "result",
    "ImageSet": "images",
    "Ledger": "ledger",
    "ViTAdapter": "models.base",
    "VitscopeError": "errors",
    "audit": "audit_loop",
    "decompose": "decomposition",
    "load_model": "models.registry",
    "map_tokens": "decomposition",
    "restrict": "decomposition",
    "wrap_model": "models.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitscope' has no attribute {name!r}")
    value = getattr(import_module(f"vitscope.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
