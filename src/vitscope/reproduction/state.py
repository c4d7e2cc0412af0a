"""Records of a reproduction's folder: settings and weights behind each result, written first."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from vitscope.errors import ResultError
from vitscope.files.json_files import read_json
from vitscope.files.printable import printable_path
from vitscope.files.storage import check_target, replace_json
from vitscope.files.typed_json import read_typed

STATE = "reproduction.json"
LOCK = ".reproduction.lock"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What a result was made from."""

    settings: Mapping[str, Any]  # settings and digests of images that its numbers depend on
    model_id: str  # id in the result
    weights: str  # file or other origin of the weights
    weights_hash: str
    reference: Mapping[str, Any] | None = None  # settings of the reference audit of maps
    contents: str = ""  # files and bytes of the finished result; empty until then


@dataclass(frozen=True)
class StageOutcome:
    """How one stage of one model ended."""

    model: str
    stage: str  # "images", "imagenet", "one-shot" or "maps"
    status: str  # "done", "kept" from an earlier run, "failed" or "skipped"
    reason: str = ""  # why it failed, was skipped or made again, or what was missing


@dataclass(frozen=True, kw_only=True)
class _Content:
    version: int
    outcomes: tuple[StageOutcome, ...]
    stages: Mapping[str, Mapping[str, StageRecord]]


class ReproductionState:
    """The records of a folder."""

    def __init__(self, out: Path) -> None:
        """Read the records of the folder, if any."""
        self._path = out / STATE
        self._records: dict[str, dict[str, StageRecord]] = {}
        self.outcomes: Sequence[StageOutcome] = ()
        if self._path.exists():
            self._read(out)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models with at least one record."""
        return tuple(self._records)

    def find(self, model: str, stage: str) -> StageRecord | None:
        """The record of a result."""
        return self._records.get(model, {}).get(stage)

    def begin(self, model: str, stage: str, record: StageRecord) -> None:
        """Write the record of a result that is about to be made."""
        stages = self._records.get(model, {}) | {stage: record}
        self._write(self._records | {model: stages})

    def finish(self, model: str, stage: str, folder: Path) -> None:
        """Record the contents of a finished result; the next write saves it."""
        record = replace(self._records[model][stage], contents=count_contents(folder))
        self._records[model][stage] = record

    def close(self, outcomes: Sequence[StageOutcome]) -> None:
        """Write how the stages ended."""
        self.outcomes = tuple(outcomes)
        self._write(self._records)

    def _write(self, records: dict[str, dict[str, StageRecord]]) -> None:
        content = _Content(version=_VERSION, outcomes=tuple(self.outcomes), stages=records)
        replace_json(self._path, asdict(content))
        self._records = records

    def _read(self, out: Path) -> None:
        name = printable_path(self._path)
        try:
            content = read_typed(_Content, read_json(self._path), name)
            if content.version != _VERSION:
                raise ValueError(f"version {content.version}")
            for part in chain(content.stages, *content.stages.values()):
                _check_name(part)
        except (ResultError, ValueError) as error:
            raise ResultError(
                f"{name} cannot be read, so it is unknown how the results next to it were made: "
                "choose another folder, or put a copy of the file back (vitscope figures draws "
                f"what is in {printable_path(out / 'results')}; the reason: {error})"
            ) from None
        self.outcomes = content.outcomes
        self._records = {model: dict(stages) for model, stages in content.stages.items()}


def count_contents(folder: Path) -> str:
    """Number of files and bytes of a result, to detect lost or truncated files."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{len(sizes)} files, {sum(sizes)} bytes"


def check_folder(out: Path, images: Path) -> None:
    """Refuse a folder with other contents."""

    def may_go_on(folder: Path) -> bool:
        within = images.absolute()
        entries = {
            path.name for path in folder.iterdir() if not within.is_relative_to(path.absolute())
        }
        return STATE in entries or entries <= {LOCK}

    check_target(out, may_go_on)


def _check_name(name: str) -> None:
    # The name becomes part of a path.
    if name in {"", ".", ".."} or Path(name).name != name:
        raise ValueError(f"{name!r} is no name")
