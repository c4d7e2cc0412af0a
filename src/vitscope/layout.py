"""Token layout: which token belongs to which group, always read from the model, never assumed."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from vitscope.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:  # it takes long to import
    from torch import Tensor

GROUPS = ("cls", "registers", "distillation", "patches")
"""Every group a token can belong to, in the order of results."""


@dataclass(frozen=True)
class TokenLayout:
    """The groups of a token sequence, and the row that is analysed."""

    # token positions per group, in the order of `GROUPS`, without groups the model lacks. The
    # ranges are disjoint and cover the sequence
    groups: Mapping[str, range]
    # patches as (rows, columns); the patch group is this grid in row-major order
    grid: tuple[int, int]
    # position of the token whose attention row is analysed ([CLS]); None if the query is a learned
    # probe outside the sequence (attention pooling), or if there is none
    query: int | None
    # positions of the tokens whose mean is the global feature; None if it comes from a query
    averaged: range | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the token sequence."""
        return sum(len(positions) for positions in self.groups.values())

    def describe(self) -> str:
        """Describe the layout in words."""
        counts = [f"{len(p)} {name}" for name, p in self.groups.items() if name != "patches"]
        rows, columns = self.grid
        return " + ".join([*counts, f"{rows} x {columns} patches"]) + f" = {self.num_tokens} tokens"

    def check_num_tokens(self, num_tokens: int) -> None:
        """Raise an `UnsupportedModelError` if a sequence has another length than the layout."""
        if num_tokens != self.num_tokens:
            raise UnsupportedModelError(
                f"expected {self.describe()}, the model computed with {num_tokens}: tokens were "
                "added or dropped on the way (patch dropout, prompts, padding); switch that off"
            )

    def find_patches(self, num_tokens: int) -> range:
        """Positions of the patches in a residual stream, or among the tokens that a row reads."""
        # A pooling head's layout may omit leading tokens that it does not pool over.
        left_out = num_tokens - self.num_tokens
        if self.query is not None or self.averaged is not None:
            self.check_num_tokens(num_tokens)
        patches = self.groups["patches"]
        return range(left_out + patches.start, left_out + patches.stop)

    def take_patches(self, tokens: "Tensor") -> "Tensor":
        """The patches of a residual stream, or of a map of its tokens: a view."""
        patches = self.find_patches(tokens.shape[1])
        return tokens[:, patches.start : patches.stop]


def make_layout(
    order: Mapping[str, int],
    grid: tuple[int, int],
    *,
    pooling_query: bool = False,
    averaged: Literal["patches", "all"] | None = None,
) -> TokenLayout:
    """Make a layout of consecutive groups.

    Args:
        order: Number of tokens per group, in sequence order. The patch count is ignored: it follows
            from `grid`. Empty groups are dropped.
        grid: Patches as (rows, columns).
        pooling_query: Whether the query is a learned probe outside the sequence; otherwise it is
            the first `cls` token.
        averaged: Tokens whose mean is the global feature, which then has no query; None for a
            feature that has one.

    Returns:
        The layout, its groups in the order of `GROUPS`.

    Raises:
        UnsupportedModelError: If there is neither a [CLS] token nor a pooling query nor an average.
    """
    ranges: dict[str, range] = {}
    start = 0
    for name, count in order.items():
        size = grid[0] * grid[1] if name == "patches" else count
        ranges[name] = range(start, start + size)
        start += size
    groups = {name: ranges[name] for name in GROUPS if len(ranges.get(name, ())) > 0}
    found = MappingProxyType(groups)
    if averaged is not None:
        pooled = groups["patches"] if averaged == "patches" else range(start)
        return TokenLayout(groups=found, grid=grid, query=None, averaged=pooled)
    if not pooling_query and "cls" not in groups:
        raise UnsupportedModelError(
            "the model has no [CLS] token, no attention pooling and no average: nothing says "
            "which of its tokens make its global feature"
        )
    return TokenLayout(
        groups=found, grid=grid, query=None if pooling_query else groups["cls"].start
    )


def make_grid(height_px: int, width_px: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Compute the patch grid for an input size.

    Args:
        height_px: Input height in pixels.
        width_px: Input width in pixels.
        patch_size: Patch (height, width) in pixels.

    Returns:
        (rows, columns).

    Raises:
        UsageError: If a side is not a positive multiple of the patch size.
    """
    for name, side, patch in (
        ("height", height_px, patch_size[0]),
        ("width", width_px, patch_size[1]),
    ):
        if side < patch or side % patch:
            below = max(patch, side // patch * patch)
            raise UsageError(
                f"an input {name} of {side} px does not fit the patch size of {patch} px: use a "
                f"multiple of {patch}, such as {below} or {below + patch}"
            )
    return height_px // patch_size[0], width_px // patch_size[1]
