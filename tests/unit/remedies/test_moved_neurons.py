"""Neurons are found and moved as the definitions say, and as the published code does."""

import pytest
import torch

from edited_vit import EditedViT, draw_pixels, record_streams, wrap_tiny
from vitscope.remedies.registers import (
    Neuron,
    Neurons,
    TestTimeRegisters,
)

CHOSEN = {0: (3, 7), 1: (5, 6, 60)}
NEURONS = Neurons(tuple(Neuron(k, n, 1.0) for k in CHOSEN for n in CHOSEN[k]), 1)


def strongest_of_patches(neurons, chosen, patches):
    return [max((float(neurons[i, k]) for i in patches), key=abs) for k in chosen]


def strongest_of_slice(neurons, chosen, _):
    """The published `sign_max`: one value for a block, over all tokens and chosen neurons."""
    return [max((float(row[k]) for row in neurons for k in chosen), key=abs)] * len(chosen)


def move(strongest, chosen, patches, scale):
    """The published hook, for one image: new tokens are the last of the sequence."""

    def edit(neurons):
        moved = neurons.clone()
        for k, value in zip(chosen, strongest(neurons, chosen, patches), strict=True):
            for i in patches:
                moved[i, k] = 0
            for i in range(patches.stop, len(neurons)):
                moved[i, k] = scale * value
        return moved

    return edit


@pytest.mark.parametrize("num_new", [1, 2])
@pytest.mark.parametrize(
    ("name", "compat", "strongest"),
    [
        ("timm/dinov2", None, strongest_of_patches),
        ("timm/dinov2_reg", None, strongest_of_patches),  # gated: values of both signs
        ("timm/dinov2", "released", strongest_of_slice),
    ],
)
def test_values_move_from_patches_to_new_tokens(name, compat, strongest, num_new):
    vit = wrap_tiny(name)
    pixels = draw_pixels(vit, 3)
    patches = vit.make_layout(*pixels.shape[-2:]).groups["patches"]
    edits = {layer: move(strongest, CHOSEN[layer], patches, 0.7) for layer in CHOSEN}
    plain = EditedViT(vit.module, neurons=edits)
    new = torch.zeros(num_new, vit.info.embed_dim, dtype=torch.float64)
    expected = [
        plain.run(torch.cat([tokens, new])).feature for tokens in record_streams(vit, pixels)[:, 0]
    ]
    remedy = TestTimeRegisters(count=num_new, scale=0.7, compat=compat, neurons=NEURONS)
    with remedy.applied(vit) as edited:
        found = edited.run(pixels)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("at", ["high_norm", "registers"])
def test_scores_are_means_over_images_and_their_tokens(at):
    vit = wrap_tiny("timm/dinov2_reg")
    pixels = draw_pixels(vit, 7)
    streams = record_streams(vit, pixels)
    norms = streams[:, 1, 5:].norm(dim=-1)
    threshold = float(norms.amax(dim=1).median())  # so that some images have no such patch
    kept = {}
    keep = {k: lambda neurons, k=k: kept.setdefault(k, neurons.detach()) for k in (0, 1)}
    scores, num_images = 0, 0
    for tokens, of_image in zip(streams[:, 0], norms, strict=True):
        kept.clear()
        EditedViT(vit.module, neurons=keep).run(tokens)
        high = [5 + i for i, norm in enumerate(of_image) if norm >= threshold]
        places = high if at == "high_norm" else [1, 2, 3, 4]
        if places:
            each = [sum(kept[k][i].abs() for i in places) / len(places) for k in (0, 1)]
            scores, num_images = scores + torch.stack(each), num_images + 1
    assert num_images == (4 if at == "high_norm" else 7)
    given = {"depth": 1, "threshold": threshold} if at == "high_norm" else {}
    remedy = TestTimeRegisters(at=at, top=20, highest=1, **given)
    found = remedy.fitted(vit, lambda: pixels.split(5)).neurons
    assert found.num_images == num_images
    best = (scores / num_images).flatten().sort(descending=True)
    width = scores.shape[1]
    assert [layer * width + number for layer, number, _ in found.found] == best.indices[
        :20
    ].tolist()
    torch.testing.assert_close(
        torch.stack([torch.tensor(n.score).double() for n in found.found]), best.values[:20]
    )
