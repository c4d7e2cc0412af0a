"""Maps made of attention weights: of one row, or of all blocks multiplied."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UnsupportedModelError
from vitscope.maps.checks import check_caught
from vitscope.maps.functions import Call
from vitscope.maps.method import MapInput, MapMethod, MapValues, check_row
from vitscope.maps.watch import Weights
from vitscope.models.base import ViTAdapter
from vitscope.results.vocabulary import ROW_MAPS


def _place_row(name: str, given: MapInput) -> MapValues:
    values: Tensor = getattr(given.row, name)
    return given.place_row(values.mean(dim=1) if name == "attention" else values)


class Walk:
    """A row vector that is multiplied by one matrix for each block, from the last to the first.

    The matrices of one block are in memory at a time. The vector starts at [CLS]; at the mean of
    the tokens that are averaged; or, with attention pooling, at the pooling query's own row.
    """

    def __init__(self, given: MapInput) -> None:
        self.vector = given.tokens.new_zeros(given.tokens.shape[:2])
        if given.layout.query is not None:
            self.vector[:, given.layout.query] = 1
        if (averaged := given.layout.averaged) is not None:
            self.vector[:, averaged.start : averaged.stop] = 1 / len(averaged)

    def multiply(self, matrix: Float[Tensor, "batch query key"]) -> Float[Tensor, "batch key"]:
        """The vector times a matrix."""
        return (self.vector.unsqueeze(1) @ matrix).squeeze(1)

    def start(self, row: Float[Tensor, "batch key"]) -> None:
        """Start at a pooling query; leading tokens that it does not read get nothing."""
        self.vector[:, self.vector.shape[1] - row.shape[1] :] = row


def _iter_attentions(given: MapInput) -> Iterator[tuple[int | None, Weights]]:
    # Of every block, from the last to the first.
    seen = given.own.attentions
    check_caught([Call("attention", each.block) for each in seen], given.vit, {"attention": 1})
    for block, weigh in reversed(seen):
        yield block, weigh()


def _roll_out(given: MapInput) -> MapValues:
    # Ā = ½ (mean_h A + I), whose rows sum to one as those of A do.
    walk = Walk(given)
    for block, mean in _iter_attentions(given):
        if block is None:
            walk.start(mean[:, 0])
        else:
            walk.vector = (walk.multiply(mean) + walk.vector) / 2
    return MapValues(values=walk.vector)


def _roll_out_by_norm(given: MapInput) -> MapValues:
    # Ā = (1 − α) mean_h A + α I, with α = ‖skip‖ / (‖skip‖ + ‖t‖) of each token.
    walk, own = Walk(given), given.own
    for block, mean in _iter_attentions(given):
        assert block is not None
        skip, branch = own.skip_norms[block], own.branch_norms[block]
        kept = skip / (skip + branch)
        # The weight belongs to the token that reads, a row of the matrix.
        read = (walk.vector * (1 - kept)).unsqueeze(1) @ mean
        walk.vector = read.squeeze(1) + walk.vector * kept
    return MapValues(values=walk.vector)


def _check_skips(vit: ViTAdapter) -> None:
    if vit.info.global_feature != "cls":
        raise UnsupportedModelError(
            "rollout_norm weighs the skip connection of every block, which vitscope reads only "
            f"where the global feature is [CLS] ({vit.info.id}: {vit.info.global_feature}): use "
            "rollout"
        )
    if len(vit.blocks) < vit.info.depth or any(parts.skip for parts in vit.blocks.values()):
        raise UnsupportedModelError(
            f"rollout_norm weighs the skip connection of every block, and in one of {vit.info.id} "
            "the [CLS] row has none, or another: use traced"
        )


_ROW_SOURCES = {
    "attention": "the row's weights, mean over heads",
    "contribution_norm": "Kobayashi et al. (EMNLP 2020): ‖c_i‖",
    "share": "Lappe & Giese (NeurIPS 2025), eq. 3, token by token: ⟨c_i, r⟩ / ‖r‖²",
}
_rollout = partial(
    MapMethod,
    unit="% of the row, over all blocks",
    is_part=True,
    signed=False,
    targeted=False,
    reads_attentions=True,
    cost="1",
)

METHODS = (
    *(
        MapMethod(
            **asdict(ROW_MAPS[name]),
            name=name,
            compute=partial(_place_row, name),
            check=check_row,
            targeted=False,
            cost="1",
            source=source,
        )
        for name, source in _ROW_SOURCES.items()
    ),
    _rollout(
        name="rollout",
        title="Attention rollout",
        compute=_roll_out,
        source="Abnar & Zuidema (ACL 2020), skip connections weighted by ½",
    ),
    _rollout(
        name="rollout_norm",
        title="Attention rollout, skips by their norm",
        compute=_roll_out_by_norm,
        check=_check_skips,
        source="Abnar & Zuidema (ACL 2020), skip connections weighted by their norms",
    ),
)
