"""Settings of image processors translated, or refused by name."""

import pytest

from vitscope.adapters.transformers_families import FAMILIES
from vitscope.adapters.transformers_preprocessing import make_preprocessing
from vitscope.errors import UnsupportedModelError
from vitscope.images.preprocessing import Preprocessing

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
BASE = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": MEAN,
    "image_std": STD,
}


def make(**changes):
    return make_preprocessing(BASE | changes)


def test_shortest_edge_and_square_crop():
    assert make() == Preprocessing(
        size=(224, 224),
        resize="cover",
        crop_fraction=0.875,
        mean=MEAN,
        std=STD,
        pipeline="transformers",
    )


def test_height_and_width_without_crop_stretch():
    made = make(size={"height": 32, "width": 48}, do_center_crop=False)
    assert (made.size, made.resize, made.crop_fraction) == ((32, 48), "stretch", 1.0)


def test_height_and_width_with_crop():
    size, crop = {"height": 256, "width": 128}, {"height": 224, "width": 112}
    made = make(size=size, crop_size=crop)
    assert (made.size, made.resize, made.crop_fraction) == ((224, 112), "stretch", 0.875)


@pytest.mark.parametrize(
    ("resample", "name"), [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic")]
)
def test_interpolation(resample, name):
    assert make(resample=resample).interpolation == name


def test_no_normalisation_leaves_values_in_0_to_1():
    made = make(do_normalize=False)
    assert (made.mean, made.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_one_mean_for_all_channels():
    assert make(image_mean=0.5).mean == (0.5, 0.5, 0.5)


def test_names_of_older_and_other_variants_of_a_processor_are_the_same():
    for suffix in ("", "Fast", "Pil"):
        assert make(image_processor_type=f"ViTImageProcessor{suffix}") == make()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"do_pad": True}, "do_pad=True"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_resize": False}, "do_resize=False"),
        ({"do_rescale": False}, "do_rescale=False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"rescale_factor": "1/255"}, "rescale_factor='1/255'"),
        ({"rescale_factor": None}, "rescale_factor=None"),
        ({"resample": 4}, "resample=4"),
        ({"resample": "bicubic"}, "resample='bicubic'"),
        ({"image_mean": "mean"}, "preprocessing mean='mean'"),
        ({"image_mean": [0.5]}, r"preprocessing mean=\[0.5\]"),
        ({"image_mean": [123.7, 116.3, 103.5]}, "preprocessing mean="),
        ({"image_std": [0.0, 0.0, 0.0]}, "preprocessing std="),
        ({"image_std": None}, "preprocessing std=None"),
        ({"size": 224}, "size=224"),
        ({"size": {"shortest_edge": "224"}}, "size="),
        ({"size": {"height": 0, "width": 0}, "do_center_crop": False}, "size="),
        ({"crop_size": {"height": 224}}, "crop_size="),
        ({"size": {"longest_edge": 256}}, "size=.*longest_edge"),
        ({"size": {"shortest_edge": 256, "longest_edge": 512}}, "size="),
        ({"do_center_crop": False}, "crop_size=None"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size="),
        ({"crop_size": {"height": 300, "width": 300}}, "crop_size="),
        (
            {"size": {"height": 256, "width": 128}, "crop_size": {"height": 64, "width": 64}},
            "crop_size=",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(changes, name):
    with pytest.raises(UnsupportedModelError, match=name) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_steps_that_are_switched_off_do_not_matter():
    assert make(do_pad=False) == make()


def test_defaults_take_the_size_of_the_configuration_save_dinov2s():
    assert FAMILIES["vit"].choose_preprocessing((384, 384)).size == (384, 384)
    assert FAMILIES["clip"].choose_preprocessing((336, 336)).crop_fraction == 1
    assert FAMILIES["dinov2"].choose_preprocessing((518, 518)).size == (224, 224)
