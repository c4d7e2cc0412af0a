"""What a map explains: one number of a model's output for an image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vitscope.errors import UsageError
from vitscope.files.printable import printable
from vitscope.maps.passes import run_blocks
from vitscope.maps.references import References
from vitscope.maps.rules import SECANT, Pair
from vitscope.models.base import Pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """A number of the output f, the global feature or logits: s = ⟨f − centre, direction⟩."""

    name: str  # its name in results
    directions: Float[Tensor, "#batch out"]  # one direction for each image, or one for all
    centre: Float[Tensor, " out"] | None = None  # subtracted from f; nothing if None
    unit_length: bool = False  # whether f − centre is then divided by its norm

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


def tell_without_mean(target: str) -> str:
    """The sentence for a target without the references whose mean it needs."""
    return (
        f"the target {target!r} compares an image with the mean of others, and none were given: "
        "give some as references, or choose the target 'cosine'"
    )


TargetChoice = Callable[[Float[Tensor, "batch out"], References | None], Target]
"""From the images' own outputs and the references to what is explained."""


def explain_self(features: Float[Tensor, "batch out"], references: References | None) -> Target:
    """S = ⟨f − μ, f₀ − μ⟩ / ‖f₀ − μ‖²: 1 for the image itself, 0 for the average image."""
    if references is None:
        raise UsageError(tell_without_mean("self"))
    centred = features - references.mean_feature
    sizes = centred.square().sum(dim=-1, keepdim=True)
    if not sizes.all():
        raise UsageError(
            "the output for an image is the mean over the references, from which it does not "
            "differ, so that there is nothing to explain: give 20 references or more"
        )
    return Target(name="self", directions=centred / sizes, centre=references.mean_feature)


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


def explain_image(pixels: Pixels, name: str = "image") -> TargetChoice:
    """As `explain_pair`, for a second image that the model of the references runs on."""

    def choose(features: Float[Tensor, "batch out"], references: References | None) -> Target:
        if references is None:
            raise UsageError(tell_without_mean(name))
        # Not kept: blocks may have got other weights since (`vitscope.maps.sanity`).
        other = run_blocks(references.vit, pixels.to(features.device)).feature[0]
        return replace(explain_pair(other)(features, references), name=name)

    return choose


def explain_logit(index: int | None, names: Mapping[int, str]) -> TargetChoice:
    """S = logits[k] for the class k, or for the class that each image gets, the highest."""

    def choose(logits: Float[Tensor, "batch class"], _: References | None) -> Target:
        classes = logits.argmax(dim=-1) if index is None else torch.tensor([index])
        alike = bool((classes == classes[0]).all())
        return Target(
            name=name_logit(int(classes[0]), names) if alike else "logit",
            directions=one_hot(classes, logits.shape[-1]).to(logits),
        )

    return choose


def name_logit(index: int, names: Mapping[int, str]) -> str:
    """What the logit of a class is called in results."""
    return f"logit {index}" + (f" ({printable(names[index])})" if index in names else "")


TARGETS: dict[str, TargetChoice] = {"self": explain_self, "cosine": explain_cosine}
"""Targets that need nothing but the image and the references."""


def explain_other(features: Float[Tensor, "batch out"], references: References | None) -> Target:
    """The similarity with a reference image that is not the image itself."""
    if references is None:
        raise UsageError("another target needs reference images, and none were given")
    found = references.traced[0].feature
    # The one that is farthest in feature space cannot be the image itself.
    farthest = torch.cdist(features, found.to(features)).argmax(dim=1)
    return replace(explain_self(found[farthest], references), name="other")
