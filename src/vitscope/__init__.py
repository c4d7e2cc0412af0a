"""vitscope tells you whether the attention maps of your Vision Transformer can be believed.

Public names are imported lazily: importing this package imports neither torch nor any model
library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitscope.adapters.registry import load_model, wrap_model
    from vitscope.config import AuditConfig, JudgeConfig, OneShotConfig, RunConfig
    from vitscope.decomposition import decompose, restrict
    from vitscope.errors import VitscopeError
    from vitscope.images.image_set import ImageSet
    from vitscope.ledger import Ledger
    from vitscope.maps.token_maps import map_tokens
    from vitscope.models.base import ViTAdapter
    from vitscope.report import write_report
    from vitscope.results.audit_result import AuditResult
    from vitscope.results.explanation import Explanation
    from vitscope.results.judge_result import JudgeResult
    from vitscope.results.one_shot_result import OneShotResult
    from vitscope.results.remedy_result import RemedyResult
    from vitscope.runs.audit_loop import audit
    from vitscope.runs.explain_loop import explain
    from vitscope.runs.judge_run import judge
    from vitscope.runs.one_shot_loop import one_shot
    from vitscope.runs.remedy_loop import compare_remedies

__all__ = [
    "AuditConfig",
    "AuditResult",
    "Explanation",
    "ImageSet",
    "JudgeConfig",
    "JudgeResult",
    "Ledger",
    "OneShotConfig",
    "OneShotResult",
    "RemedyResult",
    "RunConfig",
    "ViTAdapter",
    "VitscopeError",
    "audit",
    "compare_remedies",
    "decompose",
    "explain",
    "judge",
    "load_model",
    "map_tokens",
    "one_shot",
    "restrict",
    "wrap_model",
    "write_report",
]
__version__ = "0.1.0"

_HOMES = {
    "AuditConfig": "config",
    "AuditResult": "results.audit_result",
    "Explanation": "results.explanation",
    "ImageSet": "images.image_set",
    "JudgeConfig": "config",
    "JudgeResult": "results.judge_result",
    "Ledger": "ledger",
    "OneShotConfig": "config",
    "OneShotResult": "results.one_shot_result",
    "RemedyResult": "results.remedy_result",
    "RunConfig": "config",
    "ViTAdapter": "models.base",
    "VitscopeError": "errors",
    "audit": "runs.audit_loop",
    "compare_remedies": "runs.remedy_loop",
    "decompose": "decomposition",
    "explain": "runs.explain_loop",
    "judge": "runs.judge_run",
    "load_model": "adapters.registry",
    "map_tokens": "maps.token_maps",
    "one_shot": "runs.one_shot_loop",
    "restrict": "decomposition",
    "wrap_model": "adapters.registry",
    "write_report": "report",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitscope' has no attribute {name!r}")
    value = getattr(import_module(f"vitscope.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
