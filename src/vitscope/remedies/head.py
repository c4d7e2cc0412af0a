"""A head that reads patches alone, distilled from the model's own global feature.

Its fidelity on images it was not fitted to answers how much of the global feature is in the
patches, whichever way the model itself takes.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm

from vitscope.errors import UsageError
from vitscope.files.json_files import dump_json
from vitscope.files.tensor_files import RowFiles
from vitscope.files.typed_json import read_typed
from vitscope.layout import TokenLayout, make_layout
from vitscope.maps.passes import gradients_set, run_blocks
from vitscope.metrics.agreement import compare_features, knn_overlap, mean_cosine
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.info import count_parameters
from vitscope.models.parts import make_packed_pooling
from vitscope.models.running import Hooks
from vitscope.models.stream import take_stream
from vitscope.remedies.editor import Editor, Running
from vitscope.remedies.remedy import Origin, ReadImages, Remedy, hash_backbone
from vitscope.results.number_text import write_number, write_percent

Rows = Float[Tensor, "batch dim"]
Patches = Float[Tensor, "batch patch dim"]

NUM_NEIGHBOURS = 10
_HELD_OUT = 5
"""One image of so many is not fitted to."""

_MOST_BYTES = 2**32
"""Size up to which patches are kept on disk; images beyond it are left out."""

_BATCH, _RATE, _DECAY = 64, 1e-3, 0.05
_DESCRIPTION = "description"


class PoolingHead(nn.Module):
    r"""One learned query q over the patches x_i of the last block's output, in H heads.

    r = b_O + W_O [Σ_i a_hi (W_V^h x̂_i + b_V^h)]_h with a_h = softmax_i(⟨W_Q^h q, W_K^h x̂_i⟩ / √d_H)
    and x̂ the layer norm of x. It starts as the mean of x̂.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """Make a head; W_Q and W_K are random."""
        super().__init__()
        self.input_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        for weight in (self.attention.in_proj_weight[2 * dim :], self.attention.out_proj.weight):
            nn.init.eye_(weight.detach())

    def forward(self, patches: Patches) -> Rows:
        """The row r."""
        normed = self.input_norm(patches)
        query = self.query.expand(len(normed), -1, -1)
        pooled: Tensor = self.attention(query, normed, normed, need_weights=False)[0]
        return pooled[:, 0]

    def pool(self, normed: Patches) -> Rows:
        """The row r of normed patches x̂, many times faster, for fitting."""
        # No patch is projected: ⟨q_h, W_K x̂⟩ = ⟨W_Kᵀ q_h, x̂⟩, and Σ a (W_V x̂ + b_V) is
        # W_V (Σ a x̂) + b_V because Σ a = 1. The bias of the keys adds the same to all products.
        attention, dim = self.attention, normed.shape[-1]
        num_heads = attention.num_heads
        of_query, of_keys, of_values = (
            weight.view(num_heads, -1, dim) for weight in attention.in_proj_weight.chunk(3)
        )
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        query = of_query @ self.query[0, 0] + query_bias.view(num_heads, -1)
        directions = torch.einsum("hk,hkd->hd", query, of_keys) * attention.head_dim**-0.5
        weights = (normed @ directions.mT).softmax(dim=1)
        heads = torch.einsum("bhd,hkd->bhk", weights.mT @ normed, of_values)
        row: Tensor = attention.out_proj(heads.reshape(-1, dim) + value_bias)
        return row


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How well a head's features f' agree with the model's own f, on held-out images."""

    num_images: int  # number of these images
    cosine: float  # mean cos(f, f')
    # the same with the mean of f in place of f', which tells nothing of an image
    cosine_of_mean: float
    cka: CkaEstimate  # centred linear CKA of f and f'
    knn_overlap: float  # fraction of the 10 nearest neighbours that they share; NaN below 11 images


@dataclass(frozen=True, kw_only=True)
class HeadDescription:
    """What a head was made of."""

    model: str  # id of the model
    model_hash: str  # digest of its weights and edits, by `hash_backbone`
    depth: int  # depth of the patches: the output of the last block
    num_heads: int  # attention heads
    seed: int  # seed of the first weights and of the order of the images
    epochs: int  # times that each image was fitted to
    steps: int  # steps of the optimiser
    num_images: int  # number of images it was fitted to
    fidelity: Fidelity  # agreement with the model's own feature on other images

    def describe(self) -> str:
        """The head in one sentence."""
        found = self.fidelity
        cosine, of_mean, cka = map(
            write_number, (found.cosine, found.cosine_of_mean, found.cka.unbiased)
        )
        return (
            f"its feature is that of a head on its patches alone, fitted to its own feature on "
            f"{self.num_images} images; on {found.num_images} others the two have mean cosine "
            f"{cosine} (the mean feature {of_mean}) and CKA {cka}, and share "
            f"{write_percent(found.knn_overlap)} of their {NUM_NEIGHBOURS} nearest neighbours"
        )


@dataclass(frozen=True, eq=False)
class DistilledHead:
    """A fitted head and what it was made of."""

    module: PoolingHead
    description: HeadDescription

    def save(self) -> dict[str, Tensor]:
        """The weights, and the description as bytes of JSON."""
        text = dump_json(asdict(self.description)).encode()
        return {_DESCRIPTION: torch.frombuffer(bytearray(text), dtype=torch.uint8)} | {
            name: tensor.detach().cpu() for name, tensor in self.module.state_dict().items()
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore what was saved."""
        weights = dict(tensors)
        text = bytes(weights.pop(_DESCRIPTION).tolist())
        description = read_typed(HeadDescription, json.loads(text), "the description of the head")
        with torch.device("meta"):
            module = PoolingHead(weights["query"].shape[-1], description.num_heads)
        module.load_state_dict(weights, assign=True)
        return cls(module.eval().requires_grad_(False), description)

    def tell(self) -> str:
        """What was learned, in words."""
        return self.description.describe()


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentiveHead(Remedy):
    r"""Replace the global feature f by that of a head that reads the patches of the last block.

    One learned query attends to the patches: no skip connection, no [CLS] token and no registers
    among the keys, so the patches' share is 1. The head is fitted to minimise 1 − cos(f, f') on
    four fifths of the images, chosen by a hash of their pixels; its fidelity is measured on the
    others. The images pass through the model once; their normed patches are kept on disk in half
    precision, 4 GiB at most.

    Attributes:
        epochs: Times that each image is fitted to.
        seed: Seed of the head's first weights and of the order of the images.
        head: What was fitted.

    Source:
        The attention pooling of SigLIP (Zhai et al., ICCV 2023), distilled.
    """

    name: ClassVar[str] = "attentive-head"
    is_affine: ClassVar[bool] = True
    epochs: int = 50
    seed: int = 0
    head: DistilledHead | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head is not None and self.measured_on is None:
            origin = Origin(self.head.description.model_hash, self.label)
            object.__setattr__(self, "measured_on", origin)
        if self.epochs < 1:
            raise UsageError(f"epochs was given as {self.epochs}: expected 1 or more")

    def measure(self, vit: ViTAdapter, read: ReadImages) -> Self:
        """Fit a head to the model's global feature; on a CPU the same for the same images."""
        with tempfile.TemporaryDirectory(prefix="vitscope-head-") as folder:
            images = _keep_patches(vit, read, Path(folder))
            fit, held = images.split()
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                module = PoolingHead(vit.info.embed_dim, vit.info.num_heads)
            module.to(vit.parameter.device, vit.parameter.dtype)
            steps = self._fit(vit, module, images, fit)
            fidelity = _measure(vit, module, images, fit, held)
        description = HeadDescription(
            model=vit.info.id,
            model_hash=hash_backbone(vit),
            depth=len(vit.encoder_blocks),
            num_heads=module.attention.num_heads,
            seed=self.seed,
            epochs=self.epochs,
            steps=steps,
            num_images=len(fit),
            fidelity=fidelity,
        )
        head = DistilledHead(module.eval().requires_grad_(False), description)
        return replace(self, head=head)

    def _fit(
        self, vit: ViTAdapter, head: PoolingHead, images: "_Images", chosen: Sequence[int]
    ) -> int:
        optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=_DECAY)
        steps = self.epochs * -(-len(chosen) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        generator = torch.Generator().manual_seed(self.seed)
        with gradients_set(vit, True):
            for _ in range(self.epochs):
                order = torch.randperm(len(chosen), generator=generator).tolist()
                for start in range(0, len(order), _BATCH):
                    batch = [chosen[place] for place in order[start : start + _BATCH]]
                    found = vit.embed_row(head.pool(images.take(batch, head.query)))
                    own = images.features[batch].to(found)
                    loss = 1 - cosine_similarity(found, own, dim=1).mean()
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                    schedule.step()
        return steps

    def edit(self, editor: Editor) -> None:
        """Nothing: the head is new, and the model itself stays as it is."""
        del editor

    @contextmanager
    def applied(self, vit: ViTAdapter) -> Iterator[ViTAdapter]:
        """The model with its head for the duration of the context."""
        head: DistilledHead = self.require(self.head)
        with super().applied(vit) as edited:
            module = deepcopy(head.module).to(vit.parameter.device, vit.parameter.dtype)
            headed = adapt_headed(edited, module)
            notes = (*headed.info.notes, head.description.describe())
            yield replace(headed, info=replace(headed.info, notes=notes))


@dataclass(frozen=True, eq=False)
class _Images:
    numbers: Sequence[int]  # made of each image's pixels
    features: Float[Tensor, "image out"]
    rows: Float16[np.ndarray, "image row"]  # normed patches on disk, flattened

    def take(self, images: Sequence[int], like: Tensor) -> Float[Tensor, "batch patch dim"]:
        """Normed patches of some images."""
        rows = torch.from_numpy(self.rows[images])
        return rows.to(like).view(len(images), -1, like.shape[-1])

    def split(self) -> tuple[list[int], list[int]]:
        """Images to fit a head to, and to measure it on."""
        chosen = [number % _HELD_OUT != 0 for number in self.numbers]
        fit, held = (
            [i for i, of_fit in enumerate(chosen) if of_fit is wanted] for wanted in (True, False)
        )
        if not (fit and held):
            raise UsageError(
                f"{len(chosen)} different images were given, {len(fit)} to fit a head to and "
                f"{len(held)} to measure it on (one in {_HELD_OUT}, by a hash): give more"
            )
        return fit, held


def _keep_patches(vit: ViTAdapter, read: ReadImages, folder: Path) -> _Images:
    numbers: dict[int, None] = {}
    features, num_bytes = [], 0
    files = RowFiles(folder)
    for pixels in read():
        layout = vit.make_layout(*pixels.shape[-2:])
        seeds = Running(layout, pixels).seeds
        new = {seed: place for place, seed in enumerate(seeds) if seed not in numbers}
        if num_bytes >= _MOST_BYTES:
            break
        if not new:
            continue
        run = run_blocks(vit, pixels[list(new.values())])
        patches = layout.take_patches(run.streams[-1])
        normed = layer_norm(patches, patches.shape[-1:])
        rows = normed.detach().half().flatten(1).cpu().numpy()
        files.append({"patches": rows})
        features.append(run.feature.detach())
        numbers |= dict.fromkeys(new)
        num_bytes += rows.nbytes
    if not numbers:
        raise UsageError("there are no images to fit a head to: give some")
    return _Images([*numbers], torch.cat(features), files.open_rows()["patches"])


@torch.no_grad()
def _measure(
    vit: ViTAdapter, head: PoolingHead, images: _Images, fit: Sequence[int], held: Sequence[int]
) -> Fidelity:
    with vit.undisturbed():
        batches = [held[i : i + _BATCH] for i in range(0, len(held), _BATCH)]
        found = torch.cat([vit.embed_row(head.pool(images.take(b, head.query))) for b in batches])
    own, blocks = images.features[held].to(found), [images.numbers[i] // _HELD_OUT for i in held]
    return Fidelity(
        num_images=len(held),
        cosine=mean_cosine(own, found),
        cosine_of_mean=mean_cosine(own, images.features[fit].to(found).mean(0).expand_as(own)),
        cka=compare_features(own, found, [block % NUM_BLOCKS for block in blocks]),
        knn_overlap=knn_overlap(own, found, NUM_NEIGHBOURS),
    )


class _Headed(nn.Module):
    """A model and its head, so that both have one identity and one place."""

    def __init__(self, backbone: nn.Module, head: PoolingHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


def adapt_headed(vit: ViTAdapter, head: PoolingHead) -> ViTAdapter:
    """The adapter of a model with a head; the model's final norm and projection follow it."""
    blocks = tuple(vit.encoder_blocks)
    return replace(
        vit,
        module=_Headed(vit.module, head.eval()),
        info=replace(
            vit.info,
            num_params=vit.info.num_params + count_parameters(head),
            num_heads=head.attention.num_heads,
            global_feature="attention pooling",
            own_output="",
        ),
        blocks={len(blocks): make_packed_pooling(head, head.attention)},
        make_layout=partial(_lay_out, vit),
        run=partial(_run, vit, head),
        encoder=blocks,
        classifier=None,
        weights_hash=None,
    )


def _lay_out(vit: ViTAdapter, height: int, width: int) -> TokenLayout:
    return make_layout({"patches": 0}, vit.make_layout(height, width).grid, pooling_query=True)


def _run(vit: ViTAdapter, head: PoolingHead, pixels: Pixels) -> Float[Tensor, "batch out"]:
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Any) -> None:
        kept.append(take_stream(output))

    with Hooks() as hooks:
        # Made last, so that it sees what other hooks make of the output.
        hooks.after(vit.encoder_blocks[-1], keep)
        vit.run(pixels)
    return vit.embed_row(head(_lay_out(vit, *pixels.shape[-2:]).take_patches(kept[0])))
