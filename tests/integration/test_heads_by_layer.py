"""Attention of every head in every layer of an explained image."""

import numpy as np
import pytest
from matplotlib import colormaps

from audits import tiny_vit
from images import write_images
from vitscope import explain
from vitscope.figures import NothingToDrawError, draw_figure
from vitscope.figures.questions import open_results


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 2)


def test_each_layer_has_what_it_has_when_it_is_explained(images):
    vit = tiny_vit()
    found = explain(vit, images, heads=True).read_image(1).heads_by_layer
    assert len(found) == vit.info.depth > 1
    for layer in (0, -1):
        one = explain(vit, images, layer=layer).read_image(1)
        assert one.heads_by_layer is None
        # Tolerance: the last layer's row alone is computed in another order.
        assert found[layer] == pytest.approx(one.maps["attention"].heads, rel=1e-5)


def test_a_pooling_head_is_the_only_layer(images):
    one = explain(tiny_vit("siglip"), images, heads=True, maps=["share"]).read_image(0)
    assert len(one.heads_by_layer) == 1
    assert one.heads_by_layer[0].shape == one.maps["share"].heads.shape


def test_the_figure_has_each_map_on_its_own_scale(images):
    explanation = explain(tiny_vit(), images, heads=True)
    drawing = draw_figure("heads_by_layer", open_results([explanation]), image=1)
    layers = explanation.read_image(1).heads_by_layer
    (sheet,) = drawing.figure.axes
    image, *maps = [one.get_array() for one in sheet.images]
    assert np.array_equal(image, explanation.read_image(1).image)
    for shown, values in zip(maps, layers.reshape(-1, *layers.shape[2:]), strict=True):
        place = np.unravel_index(values.argmax(), values.shape)
        assert tuple(shown[place]) == colormaps["cividis"](1.0, bytes=True)[:3]
    told = [text.get_text() for text in sheet.texts]
    for point, largest in zip(drawing.data.points, layers.max(axis=(2, 3)).flat, strict=True):
        assert point.number.value == largest
        assert f"{100 * largest:.2g}" in told or f"{100 * largest:.0f}" in told
    width, height = drawing.figure.get_size_inches()
    assert (sheet.get_xlim(), sheet.get_ylim()) == ((0, width), (height, 0))


def test_what_was_not_kept_is_not_drawn_and_that_is_said(images):
    results = open_results([explain(tiny_vit(), images)])
    with pytest.raises(NothingToDrawError, match="was not kept: explain with heads=True"):
        draw_figure("heads_by_layer", results)
    with pytest.raises(NothingToDrawError, match="no result of the kind 'explanation'"):
        draw_figure("heads_by_layer", [])
