"""Results that merge: those of disjoint sets of images, such as the shards of one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from vitscope.config import check_kind
from vitscope.errors import ResultError
from vitscope.files.reading import plain_damage
from vitscope.files.storage import check_target, is_result, never, scratch_folder, staged_folder
from vitscope.files.workspace import kept_from_runs
from vitscope.results.saved_result import PROVENANCE, TabularResult, list_runs


class MergeableResult(TabularResult):
    """A result that others of disjoint sets of images can be added to."""

    @property
    def missing_shards(self) -> list[str] | None:
        """Missing shards of the same images, such as "3/16"; None if that is not known."""
        shards = self._shards
        counts = {shard.num_shards for shard in shards}
        if counts == {1}:
            return []
        of_one_set = len({shard.names for shard in shards}) == len(counts) == 1
        there = {shard.number for shard in shards}
        if not of_one_set or len(there) < len(shards):
            return None
        (count,) = counts
        return [f"{number}/{count}" for number in range(1, count + 1) if number not in there]

    @property
    def _shards(self) -> list["_Shard"]:
        shards = []
        with plain_damage(self.folder / PROVENANCE):
            for run in list_runs(self.provenance):
                plan = run.get("plan", {})
                number, count = map(int, (plan.get("shard") or "1/1").split("/"))
                shards.append(_Shard(str(plan.get("names")), number, count))
        return shards

    def merge(self, *others: Self, out: str | Path | None = None, overwrite: bool = False) -> Self:
        """Merge results of disjoint image sets.

        Args:
            *others: Results of the same model, weights and settings.
            out: Folder for the new result; a temporary one if None.
            overwrite: Whether an earlier result in `out` is replaced.

        Returns:
            The result of the union; shards in their order, whatever the order of the arguments.

        Raises:
            ResultError: If models or settings differ, or the results share an image.
            UsageError: If something else is in `out`, or a run is writing to it.
            VitscopeError: If the result cannot be written.
        """
        for other in others:
            check_kind("another result", other, type(self), f"one of type {type(self).__name__}")
        # By their first shard, the same for all results of whole sets, which keep their order.
        results = sorted(
            (self, *others), key=lambda result: min(shard.number for shard in result._shards)
        )
        if out is None:
            with scratch_folder() as folder:
                self._merge_into(folder, results)
            return self.own(folder)
        target = Path(out)
        replaces = is_result if overwrite else never
        check_target(target, replaces)
        with kept_from_runs(target), staged_folder(target, replaces=replaces) as staging:
            self._merge_into(staging, results)
        return type(self)(target)

    @classmethod
    @abstractmethod
    def _merge_into(cls, folder: Path, results: Sequence[Self]) -> None:
        """Write the result of the union."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The weights of a model, and how it computes with them."""

    weights_hash: str
    behaviour_hash: str = ""  # empty in results of earlier versions
    unknown: tuple[str, ...] = ()  # behaviour that cannot be compared, in words

    def compare_behaviour(self, behaviour_hash: str, unknown: Sequence[str]) -> str:
        """Why another model with the same weights may compute other numbers; empty if not."""
        if found := [*self.unknown, *unknown]:
            return f"whether its model is the same cannot be verified, for {found[0]} is not known"
        if not (self.behaviour_hash and behaviour_hash):
            return (
                "it was written by an earlier version, which did not record how its model computes"
            )
        if self.behaviour_hash != behaviour_hash:
            return (
                "its model has the same weights and computes otherwise (a hook, a parametrisation, "
                "a replaced part or a setting)"
            )
        return ""

    def check_same_model(self, folder: Path, other: "ModelIdentity") -> None:
        """Refuse to merge a result of a model with the same weights that computes otherwise."""
        if reason := other.compare_behaviour(self.behaviour_hash, self.unknown):
            raise ResultError(f"{folder} cannot be merged: {reason}; run all images at once")


class _Shard(NamedTuple):
    names: str  # digest of the whole list of images
    number: int
    num_shards: int


def check_same(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to merge results that differ, by the name of what differs."""
    for name in dict.fromkeys([*ours, *theirs]):
        value, found = ours.get(name), theirs.get(name)
        if value == found:
            continue
        where = "differs"
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            key = next(key for key in [*value, *found] if value.get(key) != found.get(key))
            where, value, found = f"differs in {key}", value.get(key), found.get(key)
        raise ResultError(
            f"{folder} cannot be merged: its {name} {where} ({found!r} against {value!r}); "
            "merge results of the same model, weights and settings"
        )


def find_repeated(ids: Sequence[pa.ChunkedArray]) -> list[list[str]]:
    """Find images that are counted more than once, by the parts that have them again."""
    every = pa.chunked_array([chunk for one in ids for chunk in one.chunks], pa.string())
    codes = every.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    later = np.ones(len(codes), bool)
    later[first] = False
    stops = np.cumsum([len(one) for one in ids])[:-1]
    return [
        one.filter(pa.array(again)).to_pylist()
        for one, again in zip(ids, np.split(later, stops), strict=True)
    ]


def check_disjoint(folders: Sequence[Path], ids: Sequence[pa.ChunkedArray]) -> None:
    """Refuse to count an image twice."""
    for folder, repeated in zip(folders, find_repeated(ids), strict=True):
        if repeated:
            raise ResultError(
                f"{folder} cannot be merged: {len(repeated)} of its images are repeated or also "
                "in another result; merge results of disjoint image sets, and shards of one list "
                "that did not change between the jobs and, if it is in a store or a table, "
                "contains no copies"
            )
