"""The special tokens of one block: [CLS], each register, and the highest-norm patch."""

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.layout import TokenLayout
from vitscope.models.stream import compute_norms
from vitscope.trace import TokenStates

HIGHEST_PATCH = "highest_patch"


def name_tokens(layout: TokenLayout) -> tuple[str, ...]:
    """Names of the tokens whose states are kept."""
    names: list[str] = []
    for group, positions in layout.groups.items():
        if group == "registers":
            names += [f"register_{i}" for i in range(len(positions))]
        elif group != "patches":
            names.append(group)
    return (*names, HIGHEST_PATCH)


class TokenPicker:
    """Takes the special tokens out of everything that passes through a block."""

    def __init__(self, layout: TokenLayout) -> None:
        """Prepare to pick."""
        self._layout = layout
        self._fixed = [i for g, p in layout.groups.items() if g != "patches" for i in p]
        self._states: dict[str, Tensor] = {}
        self._positions: Tensor
        self._norms: Tensor
        self._mean_patch_norm: Tensor

    def pick(self, stream: Float[Tensor, "batch token dim"]) -> None:
        """Choose the tokens by the stream that enters the block."""
        norms = compute_norms(stream)
        patches = self._layout.groups["patches"]
        of_patches = norms[:, patches.start : patches.stop]
        highest = of_patches.argmax(dim=1, keepdim=True) + patches.start
        fixed = torch.tensor(self._fixed, device=stream.device).expand(len(stream), -1)
        self._positions = torch.cat([fixed, highest], dim=1)
        self._norms = norms.gather(1, self._positions)
        self._mean_patch_norm = of_patches.mean(dim=1)
        self._states = {"hidden": self._take(stream)}

    def keep(
        self,
        name: str,
        tokens: Float[Tensor, "batch token dim"] | Float[Tensor, "batch head token head_dim"],
    ) -> None:
        """Keep the chosen tokens' vectors."""
        self._states[name] = self._take(tokens)

    def finish(self) -> TokenStates:
        """What was kept, when the block is done."""
        states, self._states = self._states, {}
        return TokenStates(
            names=name_tokens(self._layout),
            norms=self._norms.cpu(),
            mean_patch_norm=self._mean_patch_norm.cpu(),
            states={name: rows.to(self._norms.dtype).cpu() for name, rows in states.items()},
        )

    def _take(self, tokens: Tensor) -> Tensor:
        index = self._positions.unsqueeze(-1)
        if tokens.ndim == 3:
            return tokens.gather(1, index.expand(-1, -1, tokens.shape[-1]))
        index = index.unsqueeze(1).expand(-1, tokens.shape[1], -1, tokens.shape[-1])
        return tokens.gather(2, index).transpose(1, 2).flatten(2)
