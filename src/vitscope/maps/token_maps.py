"""Maps of a batch of images, by any methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor, nn

from vitscope.adapters.registry import open_model
from vitscope.decomposition import check_pixels
from vitscope.errors import UsageError
from vitscope.layout import TokenLayout
from vitscope.maps.chosen_target import TargetLike, choose_target
from vitscope.maps.method import MapValues
from vitscope.maps.references import References, make_references
from vitscope.maps.registry import check_maps, find_methods
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import check_memory
from vitscope.short_repr import ShortRepr

DEFAULT_MAPS = ("attention", "contribution_norm", "share")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TokenMaps(ShortRepr):
    """Maps of a batch of images, by name: one number for each token.

    Attributes:
        layout: Which token is what, and the patch grid.
        patches: Positions of the patches among the tokens.
        maps: The maps by name, with what they should sum to and their standard errors.
    """

    layout: TokenLayout
    patches: range
    maps: Mapping[str, MapValues] = field(repr=False)

    def __repr__(self) -> str:
        return f"TokenMaps({', '.join(self.maps)}; {self.layout.describe()})"

    def __getitem__(self, name: str) -> Float[Tensor, "batch token"]:
        return self.maps[name].values

    def on_grid(self, name: str) -> Float[Tensor, "batch row column"]:
        """Arrange the patches of a map on the patch grid.

        Args:
            name: Name of the map.

        Returns:
            Its values, not clamped or rescaled.
        """
        of_patches = self[name][:, self.patches.start : self.patches.stop]
        return of_patches.reshape(-1, *self.layout.grid)

    def unplaced(self, name: str) -> Float[Tensor, " batch"]:
        """What a map gives to registers, [CLS] and other tokens that are not patches.

        Args:
            name: Name of the map.

        Returns:
            The sum of their values for each image.
        """
        return self[name].sum(dim=1) - self.on_grid(name).sum(dim=(1, 2))


def map_tokens(
    vit: ViTAdapter | nn.Module | str,
    pixels: Pixels,
    maps: Sequence[str] = DEFAULT_MAPS,
    *,
    target: TargetLike | None = None,
    references: Float[Tensor, "reference channel height width"] | References | None = None,
    layer: int | None = None,
    seed: int = 0,
) -> TokenMaps:
    """Map how much each token matters for the output of a model, by one or several methods.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` takes.
        pixels: Preprocessed images, of any size that fits the patch grid.
        maps: Names of map methods (docs/recipes/maps.md).
        target: The number that is explained, for methods that depend on it: "self" (the image's
            own centred feature), "cosine", "logit" (of the class that an image gets), "logit:CLASS"
            (by number or name), a second image ("image:PATH", a path, a PIL image, or preprocessed
            pixels), a vector that the feature is compared with, or a function of
            `vitscope.maps.targets`. "self" if there are references, else "cosine".
        references: Preprocessed images of the same size to compare with, which traced maps and the
            target "self" need, or a summary of them (`vitscope.maps.references.make_references`).
        layer: Block that the maps of one attention row are of, from 0, or negative from the last;
            the last one if None.
        seed: Seed of methods that draw at random.

    Returns:
        The maps, on the CPU.

    Raises:
        UsageError: If the pixels or their size do not fit, a name is unknown, references or a
            layer are missing, or references were summarised by another model.
        UnsupportedModelError: If a map or the logits do not exist for the model.
        ImbalanceError: If a ledger does not balance, or traced parts do not sum to what they
            explain.
        NonFiniteError: If an activation is not finite.
        MemoryShortageError: If the model's activations for the batch do not fit in memory.

    Source:
        Each method names its own; see `vitscope.maps.registry.METHODS`.
    """
    vit = open_model(vit)
    check_pixels(pixels)
    methods = find_methods(maps)
    size, has_references = (pixels.shape[-2], pixels.shape[-1]), references is not None
    chosen = choose_target(
        vit, target, vit.preprocessing.with_size(size), has_references=has_references
    )
    check_maps(methods, chosen, has_references=has_references)
    if isinstance(references, References):
        _check_same(references.vit, vit)
        if chosen.vit is not vit:
            references = replace(references, vit=chosen.vit)  # whose output is logits
    vit = chosen.vit
    with vit.undisturbed():  # another thread's run might be moving the model
        device = vit.parameter.device
        check_memory(vit, size, device, passed=len(pixels))
        if isinstance(references, Tensor):
            check_pixels(references)
            references = make_references(vit, [references.to(device)])
        given = chosen.make_input(pixels.to(device), references, methods, layer=layer, seed=seed)
        made = {method.name: _to_cpu(method.compute(given)) for method in methods}
        return TokenMaps(layout=given.layout, patches=given.patches, maps=made)


def _check_same(summarised: ViTAdapter, vit: ViTAdapter) -> None:
    if summarised.module is vit.module:
        return
    if summarised.hashed().weights_hash != vit.hashed().weights_hash:
        raise UsageError(
            f"the references were summarised by {summarised.info.id} with other weights than the "
            f"model that is explained, {vit.info.id}: give images, or summarise them with this one"
        )


def _to_cpu(values: MapValues) -> MapValues:
    parts = {name: one for name, one in vars(values).items() if one is not None}
    return MapValues(**{name: one.detach().cpu() for name, one in parts.items()})
