"""The saved result of one-shot classification."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vitscope.metrics.one_shot import Accuracy, average_draws
from vitscope.results.result_text import tell_one_shot
from vitscope.results.saved_result import TabularResult, saved_summary, write_table
from vitscope.results.schema import OneShotSummary
from vitscope.results.schema_numbers import Measured, TopAccuracy, nest

_DRAWS = "draws.parquet"


class OneShotResult(TabularResult):
    """One-shot accuracies on disk: read access to their files."""

    _table_file = _DRAWS
    summary = saved_summary(OneShotSummary)
    """Every number over the draws; `ResultError` if it is damaged or of another kind."""

    def __str__(self) -> str:
        return f"{self.summary.model.id}: {tell_one_shot(self.summary)}"

    @property
    def draws(self) -> pa.Table:
        """One row per draw, classifier, readout and part, with `top1` and `top5`.

        Raises:
            ResultError: If the table cannot be read.
        """
        return self._table


@dataclass(frozen=True)
class DrawScore:
    """Accuracy of one classifier in one draw."""

    draw: int
    classifier: str  # "nearest" or "logistic"; trained on the full outputs of the readout
    readout: str  # of training and test features
    part: str  # source of the test features: "full", a token group, or "skip"
    accuracy: Accuracy


def write_draws(folder: Path, scores: Sequence[DrawScore]) -> None:
    """Write the table of draws."""
    rows = [vars(score) | score.accuracy._asdict() for score in scores]
    write_table(folder / _DRAWS, pa.Table.from_pylist(rows).drop_columns("accuracy"))


def average_scores(scores: Sequence[DrawScore]) -> dict[str, dict[str, dict[str, TopAccuracy]]]:
    """Mean over draws, by classifier, readout and part."""
    by_path: dict[tuple[str, ...], list[Accuracy]] = {}
    for score in scores:
        path = (score.classifier, score.readout, score.part)
        by_path.setdefault(path, []).append(score.accuracy)
    return nest({path: _average(accuracies) for path, accuracies in by_path.items()})


def _average(accuracies: Sequence[Accuracy]) -> TopAccuracy:
    columns = np.asarray(accuracies).T
    top1, top5 = (Measured(**asdict(average_draws(values))) for values in columns)
    return TopAccuracy(top1=top1, top5=top5)
