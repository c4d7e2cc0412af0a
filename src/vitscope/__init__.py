"""vitscope tells you whether the attention maps of your Vision Transformer can be believed.

Public names are imported lazily: importing this package imports neither torch nor any model
library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitscope.adapters.registry import load_model as load_model
    from vitscope.adapters.registry import wrap_model as wrap_model
    from vitscope.config import AuditConfig as AuditConfig
    from vitscope.config import JudgeConfig as JudgeConfig
    from vitscope.config import OneShotConfig as OneShotConfig
    from vitscope.config import RunConfig as RunConfig
    from vitscope.decomposition import decompose as decompose
    from vitscope.decomposition import restrict as restrict
    from vitscope.errors import VitscopeError as VitscopeError
    from vitscope.images.image_set import ImageSet as ImageSet
    from vitscope.ledger import Ledger as Ledger
    from vitscope.maps.token_maps import map_tokens as map_tokens
    from vitscope.models.base import ViTAdapter as ViTAdapter
    from vitscope.report import write_report as write_report
    from vitscope.results.audit_result import AuditResult as AuditResult
    from vitscope.results.explanation import Explanation as Explanation
    from vitscope.results.judge_result import JudgeResult as JudgeResult
    from vitscope.results.one_shot_result import OneShotResult as OneShotResult
    from vitscope.results.remedy_result import RemedyResult as RemedyResult
    from vitscope.runs.audit_loop import audit as audit
    from vitscope.runs.explain_loop import explain as explain
    from vitscope.runs.judge_run import judge as judge
    from vitscope.runs.one_shot_loop import one_shot as one_shot
    from vitscope.runs.remedy_loop import compare_remedies as compare_remedies

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

__all__ = [*_HOMES]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitscope' has no attribute {name!r}")
    value = getattr(import_module(f"vitscope.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
