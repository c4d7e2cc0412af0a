"""What the folder of a reproduction remembers: of what each of its results was made.

- A result never stands without its record: the record is written first.
- A run that is stopped, killed or out of disk leaves the earlier record whole.
- Two runs never write into one folder at the same time.
"""

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
    """What a result was made of."""

    settings: Mapping[str, Any]  # settings and digests of images that its numbers depend on
    model_id: str  # id that the result carries
    weights: str  # file or place that the weights came from
    weights_hash: str
    reference: Mapping[str, Any] | None = None  # settings of the audit that maps were compared with
    contents: str = ""  # files and bytes of the finished result; empty before


@dataclass(frozen=True)
class StageOutcome:
    """How one stage of one model ended."""

    model: str
    stage: str  # "images", "imagenet", "one-shot" or "maps"
    status: str  # "done", "kept" from an earlier run, "failed" or "skipped"
    reason: str = ""  # why it failed, was skipped or was made again, or what it had to do without


@dataclass(frozen=True, kw_only=True)
class _Content:
    version: int
    outcomes: tuple[StageOutcome, ...]
    stages: Mapping[str, Mapping[str, StageRecord]]


class ReproductionState:
    """The records of a folder."""

    def __init__(self, out: Path) -> None:
        """Read what the folder remembers; nothing, where it is new."""
        self._path = out / STATE
        self._records: dict[str, dict[str, StageRecord]] = {}
        self.outcomes: Sequence[StageOutcome] = ()
        if self._path.exists():
            self._read(out)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models of which something was begun."""
        return tuple(self._records)

    def find(self, model: str, stage: str) -> StageRecord | None:
        """The record of a result."""
        return self._records.get(model, {}).get(stage)

    def begin(self, model: str, stage: str, record: StageRecord) -> None:
        """Remember, on disk, of what a result is going to be made."""
        stages = self._records.get(model, {}) | {stage: record}
        self._write(self._records | {model: stages})

    def finish(self, model: str, stage: str, folder: Path) -> None:
        """Remember what a finished result holds; on disk with what is written next."""
        record = replace(self._records[model][stage], contents=count_contents(folder))
        self._records[model][stage] = record

    def close(self, outcomes: Sequence[StageOutcome]) -> None:
        """Remember, on disk, how the stages ended."""
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
                f"{name} cannot be read, so it is unknown what the results beside it were made of: "
                "choose another folder, or put a copy of the file back (vitscope figures draws "
                f"what is in {printable_path(out / 'results')}; the reason: {error})"
            ) from None
        self.outcomes = content.outcomes
        self._records = {model: dict(stages) for model, stages in content.stages.items()}


def count_contents(folder: Path) -> str:
    """What a result holds, so that a file that was lost or cut is noticed."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{len(sizes)} files, {sum(sizes)} bytes"


def check_folder(out: Path, images: Path) -> None:
    """Refuse a folder that something else lives in."""

    def may_go_on(folder: Path) -> bool:
        within = images.absolute()
        entries = {
            path.name for path in folder.iterdir() if not within.is_relative_to(path.absolute())
        }
        return STATE in entries or entries <= {LOCK}

    check_target(out, may_go_on)


def _check_name(name: str) -> str:
    # It becomes part of a path.
    if name in {"", ".", ".."} or Path(name).name != name:
        raise ValueError(f"{name!r} is no name")
    return name
