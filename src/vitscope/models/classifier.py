"""The classifier that a model came with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier:
    """A model with its own head: logits of classes.

    Attributes:
        module: The model with its head.
        run: The model's own forward, from pixels to logits.
        head: The head alone.
        reads_feature: Whether the head is applied to the global feature alone. If not, it reads
            other tokens as well, such as the mean of the patches beside [CLS].
        names: Names of classes by index; empty if the model knows none.
    """

    module: nn.Module
    run: Callable[[Float[Tensor, "batch channel height width"]], Float[Tensor, "batch class"]]
    head: nn.Module
    reads_feature: bool
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the head has no linear layer."""
        return self._layers[-1].out_features if self._layers else 0

    @property
    def is_untrained(self) -> bool:
        """Whether a layer has biases that are all zero, as libraries make a new head."""
        return any(layer.bias is not None and not layer.bias.any() for layer in self._layers)

    @property
    def _layers(self) -> list[nn.Linear]:
        return [part for part in self.head.modules() if isinstance(part, nn.Linear)]
