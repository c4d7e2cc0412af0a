"""The numbers of audits, logged to TensorBoard, Weights & Biases or MLflow."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscope.errors import UsageError, VitscopeError

if TYPE_CHECKING:
    from vitscope.results.audit_result import AuditResult

Numbers = Mapping[str, float]
Settings = Mapping[str, Any]
Log = Callable[["AuditResult", str], None]
"""Logs the numbers that callbacks log in training, as a run of this name."""


def _log_to_tensorboard(folder: str, name: str, numbers: Numbers, _: Settings) -> None:
    library = import_module("torch.utils.tensorboard")
    with library.SummaryWriter(str(Path(folder) / name)) as writer:
        for number, value in numbers.items():
            writer.add_scalar(number, value, 0)


def _log_to_wandb(project: str, name: str, numbers: Numbers, settings: Settings) -> None:
    with import_module("wandb").init(project=project, name=name, config=dict(settings)) as opened:
        opened.log(dict(numbers))


def _log_to_mlflow(experiment: str, name: str, numbers: Numbers, settings: Settings) -> None:
    library = import_module("mlflow")
    library.set_experiment(experiment)
    with library.start_run(run_name=name):
        library.log_params(dict(settings))
        library.log_metrics(dict(numbers), step=0)


_LOG = {"tensorboard": _log_to_tensorboard, "wandb": _log_to_wandb, "mlflow": _log_to_mlflow}
"""By the name of the package."""


def open_logger(text: str) -> Log:
    """Find what a --log names; raise an error unless its package is installed."""
    package, _, place = text.partition(":")
    if package not in _LOG or not place:
        raise UsageError(
            f"log {text!r}: expected tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT"
        )
    if find_spec(package) is None:
        raise UsageError(f"log {text!r}: {package} is not installed: pip install {package}")

    def log(result: "AuditResult", name: str) -> None:
        from vitscope.training import list_numbers

        numbers, settings = list_numbers(result.summary), result.provenance["config"]
        try:
            _LOG[package](place, name, numbers, settings)
        except Exception as error:
            raise VitscopeError(
                f"nothing was logged to {text} ({type(error).__name__}: {error}); the audit is "
                f"saved in {result.folder}"
            ) from error

    return log
