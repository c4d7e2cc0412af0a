"""The numbers of audits, logged to TensorBoard, Weights & Biases or MLflow."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitscope.errors import UsageError, VitscopeError

if TYPE_CHECKING:
    from vitscope.results.audit_result import AuditResult


def _log_to_tensorboard(library: Any, folder: str, name: str, run: "_Run") -> None:
    with library.SummaryWriter(str(Path(folder) / name)) as writer:
        for number, value in run.numbers.items():
            writer.add_scalar(number, value, 0)


def _log_to_wandb(library: Any, project: str, name: str, run: "_Run") -> None:
    with library.init(project=project, name=name, config=dict(run.settings)) as opened:
        opened.log(dict(run.numbers))


def _log_to_mlflow(library: Any, experiment: str, name: str, run: "_Run") -> None:
    library.set_experiment(experiment)
    with library.start_run(run_name=name):
        library.log_params(dict(run.settings))
        library.log_metrics(dict(run.numbers), step=0)


class _Run(NamedTuple):
    numbers: Mapping[str, float]
    settings: Mapping[str, Any]


class _Kind(NamedTuple):
    package: str
    module: str
    log: Callable[[Any, str, str, _Run], None]


_KINDS = {
    "tensorboard": _Kind("tensorboard", "torch.utils.tensorboard", _log_to_tensorboard),
    "wandb": _Kind("wandb", "wandb", _log_to_wandb),
    "mlflow": _Kind("mlflow", "mlflow", _log_to_mlflow),
}


class Logger(NamedTuple):
    """Where the numbers of audits are logged."""

    text: str
    kind: _Kind
    place: str

    def log(self, result: "AuditResult", name: str) -> None:
        """Log the numbers that callbacks log in training, as a run of this name."""
        from vitscope.training import list_numbers

        run = _Run(list_numbers(result.summary), result.provenance["config"])
        try:
            self.kind.log(import_module(self.kind.module), self.place, name, run)
        except Exception as error:
            raise VitscopeError(
                f"nothing was logged to {self.text} ({type(error).__name__}: {error}); the audit "
                f"is saved in {result.folder}"
            ) from error


def open_logger(text: str) -> Logger:
    """Find what a --log names; raise an error unless its package is installed."""
    name, _, place = text.partition(":")
    if name not in _KINDS or not place:
        raise UsageError(
            f"log {text!r}: expected tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT"
        )
    kind = _KINDS[name]
    if find_spec(kind.package) is None:
        raise UsageError(f"log {text!r}: {name} is not installed: pip install {kind.package}")
    return Logger(text, kind, place)
