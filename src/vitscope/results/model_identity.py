"""Which model a result is of, so that only results of the same are used together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscope.errors import ResultError


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
