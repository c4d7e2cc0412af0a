"""What a map explains: one number of an image's global feature."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vitscope.errors import UsageError
from vitscope.maps.references import References
from vitscope.maps.rules import SECANT, Pair


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """A number of the global feature f: s = ⟨f − centre, direction⟩.

    Attributes:
        name: Its name in results.
        directions: One direction for each image, or one for all.
        centre: Subtracted from f; nothing if None.
        unit_length: Whether f − centre is then divided by its norm.
    """

    name: str
    directions: Float[Tensor, "#batch out"]
    centre: Float[Tensor, " out"] | None = None
    unit_length: bool = False

    def select(self, image: int) -> "Target":
        """The target of one image of the batch."""
        one = self.directions if len(self.directions) == 1 else self.directions[image : image + 1]
        return replace(self, directions=one)

    def measure(self, features: Float[Tensor, "#batch out"]) -> Float[Tensor, " batch"]:
        """Compute s."""
        centred = self._centre(features)
        if self.unit_length:
            centred = normalize(centred, dim=-1)
        return (centred * self.directions).sum(dim=-1)

    def pull(
        self, features: Float[Tensor, "batch out"], references: Float[Tensor, "#batch out"]
    ) -> Float[Tensor, "batch out"]:
        """The multiplier m of f for which ⟨m, f − f'⟩ = s(f) − s(f'); the gradient if f' is f."""
        m = self.directions.expand_as(features)
        if not self.unit_length:
            return m
        pair = Pair(self._centre(features), self._centre(references))
        return SECANT.rms_norm(m, pair, 1, 0.0)

    def _centre(self, features: Tensor) -> Tensor:
        return features if self.centre is None else features - self.centre


WITHOUT_MEAN = (
    "the target 'self' compares an image with the mean of others, and none were given: give some "
    "as references, or choose the target 'cosine'"
)

TargetChoice = Callable[[Float[Tensor, "batch out"], References | None], Target]
"""From the images' own features and the references to what is explained."""


def explain_self(features: Float[Tensor, "batch out"], references: References | None) -> Target:
    """S = ⟨f − μ, f₀ − μ⟩ / ‖f₀ − μ‖²: 1 for the image itself, 0 for the average image."""
    if references is None:
        raise UsageError(WITHOUT_MEAN)
    centred = features - references.mean_feature
    sizes = centred.square().sum(dim=-1, keepdim=True)
    if not sizes.all():
        raise UsageError(
            "the output for an image is the mean over the references, from which it does not "
            "differ, so that there is nothing to explain: give other references"
        )
    return Target(
        name="self",
        directions=centred / sizes,
        centre=references.mean_feature,
    )


def explain_cosine(features: Float[Tensor, "batch out"], references: References | None) -> Target:
    """S = cos(f − μ, f₀ − μ); without references cos(f, f₀)."""
    mean = None if references is None else references.mean_feature
    centred = features if mean is None else features - mean
    return Target(
        name="cosine", directions=normalize(centred, dim=-1), centre=mean, unit_length=True
    )


def explain_direction(direction: Float[Tensor, " out"]) -> TargetChoice:
    """S = cos(f, t) for a vector t, such as the feature of a text in CLIP."""
    given = direction.flatten()
    if not given.any():
        raise UsageError("the target was given as a vector of zeros: expected a direction")

    def choose(features: Float[Tensor, "batch out"], _: References | None) -> Target:
        if len(given) != features.shape[-1]:
            raise UsageError(
                f"the target was given as a vector of {len(given)} numbers: expected "
                f"{features.shape[-1]}, the width of the model's global feature"
            )
        unit = normalize(given.to(features), dim=-1)
        return Target(name="direction", directions=unit.unsqueeze(0), unit_length=True)

    return choose


def explain_pair(other: Float[Tensor, " out"]) -> TargetChoice:
    """S = ⟨f(x) − μ, f(y) − μ⟩ / ‖f(y) − μ‖² for a second image y with feature f(y)."""

    def choose(features: Float[Tensor, "batch out"], references: References | None) -> Target:
        fixed = other.flatten().to(features).unsqueeze(0)
        made = explain_self(fixed, references)
        return replace(made, name="pair")

    return choose


TARGETS: dict[str, TargetChoice] = {"self": explain_self, "cosine": explain_cosine}
"""Targets that need nothing but the image and the references."""


def find_target(
    target: "str | Tensor | TargetChoice | None", *, has_references: bool
) -> TargetChoice:
    """The target that was asked for, or the default."""
    if target is None:
        return explain_self if has_references else explain_cosine
    if isinstance(target, str):
        if target not in TARGETS:
            raise UsageError(
                f"no target is called {target!r}: choose {' or '.join(TARGETS)}, or give a vector"
            )
        return TARGETS[target]
    if isinstance(target, Tensor):
        return explain_direction(target)
    if not callable(target):
        raise UsageError(
            f"target was given as {type(target).__name__}: expected {' or '.join(TARGETS)}, a "
            "vector, or a function of vitscope.maps.targets"
        )
    return target


def describe_target(target: str | Tensor | TargetChoice) -> str:
    """Name of a target in results; a vector is told by its digest."""
    if isinstance(target, Tensor):
        digest = blake2b(target.double().cpu().numpy().tobytes(), digest_size=8)
        return f"vector {digest.hexdigest()}"
    if isinstance(target, str):
        return target
    own = (name for name, choice in TARGETS.items() if choice is target)
    return next(own, getattr(target, "__qualname__", repr(target)))


def is_comparable(target: str | Tensor | TargetChoice | None) -> bool:
    """Whether two targets of that description are the same: not so for functions."""
    return not callable(target) or target in TARGETS.values()


def explain_other(features: Float[Tensor, "batch out"], references: References | None) -> Target:
    """The similarity with a reference image that is not the image itself."""
    if references is None:
        raise UsageError("another target needs reference images, and none were given")
    found = references.run.feature
    # The one that is farthest in feature space cannot be the image itself.
    farthest = torch.cdist(features, found.to(features)).argmax(dim=1)
    return replace(explain_self(found[farthest], references), name="other")
