"""The saved result of one-shot classification: a folder that figures are drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import write_json
from vitscope.files.storage import MARKER
from vitscope.files.tables import open_table
from vitscope.metrics.one_shot import Accuracy, average_draws, chance_accuracy
from vitscope.results.plots import OneShotPlots
from vitscope.results.result_html import show_one_shot
from vitscope.results.result_text import tell_one_shot
from vitscope.results.saved_result import (
    PROVENANCE,
    SCHEMA_VERSION,
    TabularResult,
    list_source_notes,
    write_failures,
)

HEADLINE_READOUT = "attention"
_DRAWS = "draws.parquet"


@dataclass(frozen=True)
class OneShotResult(TabularResult, OneShotPlots):
    """One-shot accuracies on disk; a thin face over its files.

    Attributes:
        folder: Where it lies.
    """

    KIND: ClassVar[str] = "one-shot"

    def __str__(self) -> str:
        """Say what the accuracies mean, as `print` shows it.

        Returns:
            The model and the accuracies in words.
        """
        return f"{self.summary['model']['id']}: {tell_one_shot(self.summary)}"

    def _repr_html_(self) -> str:
        return show_one_shot(self.summary)

    @property
    def _table(self) -> pa.Table:
        return self.draws

    @property
    def draws(self) -> pa.Table:
        """One row per draw, classifier, readout and part, with `top1` and `top5`.

        Raises:
            ResultError: If the table cannot be read.
        """
        with open_table(self.folder / _DRAWS) as file:
            return file.read()


@dataclass(frozen=True)
class DrawScore:
    """What one classifier reached in one draw.

    Attributes:
        draw: Number of the draw, from 0.
        classifier: "nearest" or "logistic"; trained on the full outputs of the readout.
        readout: Readout that training and test features were taken in.
        part: What the test features were made of: "full", a token group, or "skip".
        accuracy: Top-1 and top-5 accuracy over the classes.
    """

    draw: int
    classifier: str
    readout: str
    part: str
    accuracy: Accuracy


def finish_one_shot(
    folder: Path,
    scores: Sequence[DrawScore],
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    failures: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
) -> None:
    """Write the result; `summary.json` comes last.

    Args:
        folder: Folder to write into.
        scores: Every draw.
        model: The `model` part of the summary.
        data: The `data` part; its `num_classes` says what chance is.
        settings: What was chosen that changes what the numbers mean.
        preprocessing: How images were prepared.
        failures: Images that could not be read, with the reason.
        provenance: Configuration and versions.

    Raises:
        DiskError: If the disk does not take it.
    """
    with plain_disk_errors(folder):
        pq.write_table(_make_table(scores), folder / _DRAWS)
    write_failures(folder, failures)
    write_json(folder / PROVENANCE, provenance)
    notes = list_source_notes(provenance)
    summary = {
        "kind": OneShotResult.KIND,
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "settings": settings,
        "preprocessing": preprocessing,
        "data": {**data, **({"notes": notes} if notes else {})},
        "draws": len({score.draw for score in scores}),
        "readout": HEADLINE_READOUT,
        "accuracy": _summarize(scores),
        "chance": chance_accuracy(data["num_classes"])._asdict(),
    }
    write_json(folder / MARKER, summary)


def _make_table(scores: Sequence[DrawScore]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        name: [getattr(score, name) for score in scores]
        for name in ("draw", "classifier", "readout", "part")
    }
    for name in Accuracy._fields:
        columns[name] = [getattr(score.accuracy, name) for score in scores]
    return pa.table(columns)


def _summarize(scores: Sequence[DrawScore]) -> dict[str, Any]:
    by_path: dict[tuple[str, str, str], list[Accuracy]] = {}
    for score in scores:
        path = (score.classifier, score.readout, score.part)
        by_path.setdefault(path, []).append(score.accuracy)
    accuracy: dict[str, Any] = {}
    for (classifier, readout, part), found in by_path.items():
        parts = accuracy.setdefault(classifier, {}).setdefault(readout, {})
        values = np.asarray(found)
        parts[part] = {
            name: average_draws(values[:, column])._asdict()
            for column, name in enumerate(Accuracy._fields)
        }
    return accuracy
