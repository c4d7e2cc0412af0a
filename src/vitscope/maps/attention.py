"""Maps made of attention weights: of one row, or of all blocks multiplied."""

from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UnsupportedModelError
from vitscope.maps.functions import AttentionBackward
from vitscope.maps.method import MapInput, MapMethod, MapValues, check_row
from vitscope.maps.passes import gradients_set
from vitscope.models.base import ViTAdapter
from vitscope.results.vocabulary import ROW_MAPS


def _attention(given: MapInput) -> MapValues:
    return given.place_row(given.row.attention.mean(dim=1))


def _contribution_norm(given: MapInput) -> MapValues:
    return given.place_row(given.row.contribution_norm)


def _share(given: MapInput) -> MapValues:
    return given.place_row(given.row.share)


class _Walk:
    """A row vector that is multiplied by one matrix for each block, from the last to the first.

    Blocks come in this order in a backward pass, so no matrix is kept. The vector starts at [CLS];
    at the mean of the tokens that are averaged; or, with attention pooling, at the pooling query's
    own row.
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


def _roll_out(given: MapInput) -> MapValues:
    # Ā = ½ (mean_h A + I), whose rows sum to one as those of A do.
    walk = _Walk(given)

    def take(item: AttentionBackward) -> None:
        mean = item.weights.mean(dim=1)
        if item.block is None:
            walk.start(mean[:, 0])
        else:
            walk.vector = (walk.multiply(mean) + walk.vector) / 2

    given.go_back(take)
    return MapValues(values=walk.vector)


def _roll_out_by_norm(given: MapInput) -> MapValues:
    # Ā = (1 − α) mean_h A + α I, with α = ‖skip‖ / (‖skip‖ + ‖t‖) of each token.
    walk = _Walk(given)
    skips, branches = given.branch_norms

    def take(item: AttentionBackward) -> None:
        assert item.block is not None
        kept = skips[item.block] / (skips[item.block] + branches[item.block])
        # The weight belongs to the token that reads, a row of the matrix.
        read = (walk.vector * (1 - kept)).unsqueeze(1) @ item.weights.mean(dim=1)
        walk.vector = read.squeeze(1) + walk.vector * kept

    given.go_back(take)
    return MapValues(values=walk.vector)


def _chefer(given: MapInput) -> MapValues:
    # R ← R + mean_h (∇A ∘ A)⁺ R over the blocks, the row of [CLS].
    walk = _Walk(given)

    def take(item: AttentionBackward) -> None:
        relevance = (item.of_weights * item.weights).clamp(min=0).mean(dim=1)
        if item.block is None:
            walk.start(relevance[:, 0])
        else:
            walk.vector = walk.vector + walk.multiply(relevance)

    given.go_back(take)
    return MapValues(values=walk.vector)


def _check_skips(vit: ViTAdapter) -> None:
    if vit.info.global_feature != "cls":
        raise UnsupportedModelError(
            "rollout_norm weighs the skip connection of every block, which vitscope reads only "
            f"where the global feature is [CLS] ({vit.info.id}: {vit.info.global_feature}): use "
            "rollout"
        )


def _check_final_norm(vit: ViTAdapter) -> None:
    if vit.info.global_feature == "attention pooling":
        raise UnsupportedModelError(
            "legrad applies the final norm to the mean token of a block, which "
            f"{vit.info.id} does not do: its output comes from an attention-pooling head"
        )
    vit.embed(torch.zeros(1, vit.info.embed_dim))  # refuses logits of several tokens


def _legrad(given: MapInput) -> MapValues:
    # Each of the last two blocks has a score of its own, the target of the mean of its output
    # tokens; its map is the mean over heads and queries of (∂s/∂A)⁺.
    total = torch.zeros_like(given.tokens[..., 0])
    wanted = given.vit.info.depth - 1

    def take(item: AttentionBackward) -> None:
        nonlocal total
        if item.block == wanted:
            total = total + item.of_weights.clamp(min=0).mean(dim=(1, 2))

    run, _ = given.differentiate(on_attention=take)
    for wanted in range(given.vit.info.depth - 1, max(-1, given.vit.info.depth - 3), -1):
        with gradients_set(given.vit, True):
            feature = given.vit.embed_row(run.streams[wanted + 1].mean(dim=1))
        detached = feature.detach()
        m = given.target.pull(detached, detached)
        torch.autograd.grad(feature, run.streams[wanted], m)
    return MapValues(values=total)


METHODS = (
    MapMethod(
        **asdict(ROW_MAPS["attention"]),
        name="attention",
        compute=_attention,
        check=check_row,
        targeted=False,
        cost="1",
        source="the row's weights, mean over heads",
    ),
    MapMethod(
        **asdict(ROW_MAPS["contribution_norm"]),
        name="contribution_norm",
        compute=_contribution_norm,
        check=check_row,
        targeted=False,
        cost="1",
        source="Kobayashi et al. (EMNLP 2020): ‖c_i‖",
    ),
    MapMethod(
        **asdict(ROW_MAPS["share"]),
        name="share",
        compute=_share,
        check=check_row,
        targeted=False,
        cost="1",
        source="Lappe & Giese (NeurIPS 2025), eq. 3, token by token: ⟨c_i, r⟩ / ‖r‖²",
    ),
    MapMethod(
        name="rollout",
        title="Attention rollout",
        unit="% of the row, over all blocks",
        is_part=True,
        compute=_roll_out,
        signed=False,
        targeted=False,
        cost="2",
        source="Abnar & Zuidema (ACL 2020), skip connections weighted by ½",
    ),
    MapMethod(
        name="rollout_norm",
        title="Attention rollout, skips by their norm",
        unit="% of the row, over all blocks",
        is_part=True,
        compute=_roll_out_by_norm,
        check=_check_skips,
        signed=False,
        targeted=False,
        cost="2",
        source="Abnar & Zuidema (ACL 2020), skip connections weighted by their norms",
    ),
    MapMethod(
        name="chefer",
        title="Gradient-weighted rollout (Chefer)",
        compute=_chefer,
        differentiates=True,
        signed=False,
        targeted=True,
        cost="2",
        source="Chefer et al. (ICCV 2021), the generic form",
    ),
    MapMethod(
        name="legrad",
        title="LeGrad",
        compute=_legrad,
        check=_check_final_norm,
        signed=False,
        targeted=True,
        cost="2",
        source="Bousselham et al. (ICCV 2025), last two blocks as in its code",
    ),
)
