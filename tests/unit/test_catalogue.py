"""The catalogue: every line of it held against the model that the installed library builds."""

import re

import open_clip
import pytest
import timm
import torch
import transformers

from catalogue_page import PAGE, make_page
from vitscope.adapters import registry
from vitscope.adapters import timm as timm_adapter
from vitscope.adapters.model_ids import check_model_id
from vitscope.adapters.open_clip import make_open_clip_adapter
from vitscope.adapters.registry import load_model
from vitscope.adapters.timm import make_timm_adapter
from vitscope.adapters.transformers import make_transformers_adapter
from vitscope.errors import UsageError
from vitscope.weights.catalogue import CATALOGUE, FAMILIES, SIZE_CLASSES, plan_models

NAMES = {
    "dinov2": ("dinov2-small", "dinov2-base", "dinov2-large", "dinov2-giant"),
    "dinov2-reg": (
        "dinov2-small-reg",
        "dinov2-base-reg",
        "dinov2-large-reg",
        "dinov2-giant-reg",
    ),
    "deit3": ("deit-tiny", "deit3-small", "deit3-base", "deit3-large", "deit3-huge"),
    "clip": ("clip-b32", "clip-b16", "clip-l14"),
    "openclip": tuple(f"openclip-{size}" for size in ("b32", "b16", "l14", "h14", "g14", "bigg14")),
    "ibot": ("ibot-small", "ibot-base", "ibot-large"),
    "dino": ("dino-s16", "dino-s8", "dino-b16", "dino-b8"),
    "dinov3": (
        "dinov3-small",
        "dinov3-small-plus",
        "dinov3-base",
        "dinov3-large",
        "dinov3-huge-plus",
        "dinov3-7b",
    ),
    "siglip": ("siglip-base", "siglip-large", "siglip-so400m"),
    "siglip2": ("siglip2-base", "siglip2-large", "siglip2-so400m", "siglip2-giant"),
    "mae": ("mae-base", "mae-large", "mae-huge"),
    "eva02": ("eva02-tiny", "eva02-small", "eva02-base", "eva02-large"),
}
BY_HAND = {name: entry for name, entry in CATALOGUE.items() if entry.checkpoint}
SHAPES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
SHAPES["giant"] = (1536, 40, 24)
"""Width, blocks and heads as the papers of DINOv2 and CLIP give them."""


# --- every line against the library --------------------------------------------------------------


def build_timm(name):
    model = timm.create_model(name.partition("@")[0], dynamic_img_size=True)
    return make_timm_adapter(model), model


def build_open_clip(name):
    model = open_clip.CLIP(**open_clip.get_model_config(name.partition("/")[0]))
    return make_open_clip_adapter(model), model


def build_dinov2(name):
    width, depth, heads = SHAPES[name.rpartition("-")[2]]
    registers = "WithRegisters" if "registers" in name else ""
    config = getattr(transformers, f"Dinov2{registers}Config")(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=518,
        patch_size=14,
        use_swiglu_ffn="giant" in name,
    )
    return getattr(transformers, f"Dinov2{registers}Model")(config)


def build_clip(name):
    size, patch = re.fullmatch(r"openai/clip-vit-(base|large)-patch(\d+)", name).groups()
    width, depth, heads = SHAPES[size]
    text_width = {"base": 512, "large": 768}[size]
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": int(patch),
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_attention_heads": text_width // 64,
    }
    return transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=text_width)
    )


def build_transformers(name):
    model = build_clip(name) if "clip" in name else build_dinov2(name)
    return make_transformers_adapter(model), model


BUILDERS = {
    "timm": build_timm,
    "open_clip": build_open_clip,
    "transformers": build_transformers,
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_tells_what_the_library_builds(name):
    entry = CATALOGUE[name]
    library, separator, rest = entry.id.partition(":")
    with torch.device("meta"):
        vit, model = BUILDERS[library if separator else "transformers"](rest or library)
    info = vit.info
    assert entry.num_params == info.num_params
    assert (entry.width, entry.depth, entry.num_heads) == (
        info.embed_dim,
        info.depth,
        info.num_heads,
    )
    assert (entry.patch_size, entry.patch_size) == info.patch_size
    assert entry.num_registers == info.num_registers
    assert entry.global_feature == info.global_feature
    assert (entry.input_size, entry.input_size) == vit.preprocessing.size
    assert entry.layout == vit.make_layout(*vit.preprocessing.size)
    num_stored = sum(parameter.numel() for parameter in model.parameters())
    assert entry.download_mb == round(num_stored * 4 / 1e6)


@pytest.mark.parametrize("name", [n for n, e in CATALOGUE.items() if e.library == "timm"])
def test_a_timm_id_has_published_weights_under_its_licence(name):
    entry = CATALOGUE[name]
    weights = entry.id.removeprefix("timm:").partition("@")[0]
    published = timm.get_pretrained_cfg(weights)
    assert weights in timm.list_pretrained(f"{published.architecture}.*")
    if name not in BY_HAND:  # of those the tag only tells how images are prepared
        assert entry.repository == published.hf_hub_id
        assert entry.licence.lower().replace(" ", "-") == published.license


@pytest.mark.parametrize("name", NAMES["openclip"])
def test_an_open_clip_id_has_published_weights(name):
    architecture, tag = CATALOGUE[name].id.removeprefix("open_clip:").split("/")
    published = open_clip.get_pretrained_cfg(architecture, tag)
    assert published["hf_hub"] == f"{CATALOGUE[name].repository}/"


def test_a_transformers_id_is_its_repository():
    entries = [entry for entry in CATALOGUE.values() if entry.library == "transformers"]
    assert {entry.family_key for entry in entries} == {"dinov2", "dinov2-reg", "clip"}
    assert all(entry.id == entry.repository == entry.source for entry in entries)


# --- names and families --------------------------------------------------------------------------


def test_the_catalogue_holds_the_papers_models_and_its_neighbours():
    assert list(CATALOGUE) == [name for names in NAMES.values() for name in names]
    assert list(FAMILIES) == list(NAMES)
    for family, names in NAMES.items():
        assert {CATALOGUE[name].family_key for name in names} == {family}
        others = {"deit-tiny": "DeiT"}
        assert all(CATALOGUE[n].family == others.get(n, FAMILIES[family]) for n in names)
    assert all(name == entry.name for name, entry in CATALOGUE.items())


def test_every_family_of_the_paper_has_each_of_its_sizes_once():
    sizes = {}
    for family in ("dinov2", "dinov2-reg", "deit3", "clip", "openclip", "ibot"):
        sizes[FAMILIES[family]] = [CATALOGUE[name].size for name in NAMES[family]]
    assert sizes == {
        "DINOv2": ["S", "B", "L", "g"],
        "DINOv2 with registers": ["S", "B", "L", "g"],
        "DeiT III": ["Ti", "S", "B", "L", "H"],
        "CLIP (OpenAI)": ["B/32", "B/16", "L/14"],
        "CLIP (OpenCLIP)": ["B/32", "B/16", "L/14", "H/14", "g/14", "bigG/14"],
        "iBOT": ["S", "B", "L"],
    }


def test_no_two_models_share_a_family_and_a_size():
    for key in ("family_key", "family"):
        labels = [(getattr(entry, key), entry.size) for entry in CATALOGUE.values()]
        assert len(set(labels)) == len(labels)


def test_the_tiny_deit_is_planned_with_deit_iii_and_labelled_as_what_it_is():
    (name, tiny), *others = plan_models(["deit3"], ["ti", "s", "b", "l", "g"])
    assert (name, tiny.family, tiny.size) == ("deit-tiny", "DeiT", "Ti")
    assert [entry.family for _, entry in others] == ["DeiT III"] * 4
    assert FAMILIES["deit3"] == "DeiT III"


def test_every_name_leads_to_a_loader_or_says_what_to_fetch():
    for name in CATALOGUE.keys() - BY_HAND.keys():
        check_model_id(name)
    assert sorted(BY_HAND) == sorted(NAMES["ibot"])


@pytest.mark.parametrize(
    ("size", "folder"), [("small", "vits_16"), ("base", "vitb_16"), ("large", "vitl_16")]
)
def test_ibot_says_what_to_fetch_and_how_to_load_it(size, folder):
    with pytest.raises(UsageError) as caught:
        load_model(f"ibot-{size}")
    message = str(caught.value)
    assert f"/ibot/{folder}/checkpoint_teacher.pth" in message
    assert CATALOGUE[f"ibot-{size}"].id in message
    # The tag behind the architecture says how the images are normalised: as iBOT was trained.
    form = rf"timm:vit_{size}_patch16_224\.(dino|mae)@checkpoint_teacher\.pth"
    assert re.search(form, message)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["mae-huge", "eva02-tiny", "siglip-base", "dinov3-small"])
def test_the_note_of_an_entry_reaches_the_user_once(monkeypatch, name):
    """Also where the adapter can tell the same from the weights' tag."""

    def load(architecture, checkpoint):
        with torch.device("meta"):
            return make_timm_adapter(timm.create_model(architecture, dynamic_img_size=True))

    monkeypatch.setattr(timm_adapter, "load_timm", load)
    notes = load_model(name).info.notes
    assert notes.count(CATALOGUE[name].note) == 1
    assert len(set(notes)) == len(notes)


def test_an_entry_without_a_note_adds_none(monkeypatch):
    with torch.device("meta"):
        vit = make_timm_adapter(timm.create_model("vit_small_patch16_224.dino"))
    monkeypatch.setattr(registry, "_load_by_address", lambda _: vit)
    assert load_model("dino-s16").info.notes == vit.info.notes


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == make_page()


# --- plans ---------------------------------------------------------------------------------------


def names_of(families, sizes):
    plan = plan_models(families, sizes)
    assert all(entry is CATALOGUE[name] for name, entry in plan)
    return [name for name, _ in plan]


@pytest.mark.parametrize(
    ("families", "sizes", "names"),
    [
        (["dinov2-reg"], ["g", "s"], ["dinov2-small-reg", "dinov2-giant-reg"]),
        (["deit3"], ["ti", "g"], ["deit-tiny", "deit3-huge"]),
        (["clip"], ["b"], ["clip-b32", "clip-b16"]),
        (["openclip"], ["g"], ["openclip-h14", "openclip-g14", "openclip-bigg14"]),
        (["ibot", "mae"], ["l", "g"], ["ibot-large", "mae-large", "mae-huge"]),
        (["siglip", "dinov3"], ["s", "g"], None),
        (["dino", "dino"], ["s", "s"], ["dino-s16", "dino-s8"]),
    ],
)
def test_a_plan_takes_every_model_of_the_families_and_sizes(families, sizes, names):
    names = names or [
        "siglip-so400m",
        "dinov3-small",
        "dinov3-small-plus",
        "dinov3-huge-plus",
        "dinov3-7b",
    ]
    assert names_of(families, sizes) == names


def test_all_families_and_sizes_are_the_whole_catalogue():
    assert names_of(list(FAMILIES), list(SIZE_CLASSES)) == list(CATALOGUE)


def test_the_labels_of_all_families_agree_with_the_classes():
    letters = {"T": "ti", "S": "s", "B": "b", "L": "l", "H": "g", "g": "g"}
    for entry in CATALOGUE.values():
        large = entry.size in {"So400m", "7B", "bigG/14"}
        assert entry.size_class == ("g" if large else letters[entry.size[0]]), entry.name


@pytest.mark.parametrize(
    ("families", "sizes", "message"),
    [
        (["dinov2", "dinov4"], ["s"], r"unknown family 'dinov4': expected one of dinov2, .*eva02$"),
        (["dinov2"], ["xl"], r"unknown size 'xl': expected one of ti, s, b, l, g$"),
        (["ibot"], ["g"], r"no model of ibot has the size g: `vitscope models` lists"),
        ([], ["s"], r"no model of no family"),
        (["dinov2"], [], r"\(none given\)"),
    ],
)
def test_a_plan_of_nothing_is_refused(families, sizes, message):
    with pytest.raises(UsageError, match=message):
        plan_models(families, sizes)
