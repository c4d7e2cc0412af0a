"""Names of an edited model: it passes neither for the original nor for a size of its recipe."""

import pytest

from audits import tiny_vit
from vitscope.cli.each_model import name_folders
from vitscope.remedies.tokens import Skip


def test_an_edited_model_has_a_recipe_of_its_own():
    vit = tiny_vit().labelled("DINOv2", "S")
    with Skip(scale=0.5).applied(vit) as edited, Skip().applied(edited) as twice:
        assert (edited.info.recipe, edited.info.size) == ("DINOv2+skip:scale=0.5", "S")
        assert edited.info.id == f"{vit.info.id}+skip:scale=0.5"
        assert twice.info.recipe == "DINOv2+skip:scale=0.5+skip"
    with Skip().applied(tiny_vit()) as unknown:
        assert unknown.info.recipe == f"{unknown.info.family}+skip"


@pytest.mark.parametrize(
    ("remedy", "name"),
    [
        ("skip:scale=0.5", "dinov2-small+skip-scale=0.5"),
        ("found/mean.safetensors", "dinov2-small+mean"),
    ],
)
def test_the_folder_of_an_edited_model_tells_the_edit(remedy, name):
    assert name_folders(["dinov2-small"], [remedy]) == {"dinov2-small": name}
