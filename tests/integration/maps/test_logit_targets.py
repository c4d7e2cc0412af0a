"""The logit of a class as target, in every family with a head, against the library's own logits."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from classifiers import CLASSIFIERS, NAMES, NUM_CLASSES, ON_FEATURE, ON_SEVERAL
from map_inputs import draw_pixels
from tiny_configs import SIZE
from vitscope import map_tokens, wrap_model
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.maps.chosen_target import choose_target
from vitscope.maps.method import MapInput
from vitscope.maps.references import make_references
from vitscope.maps.registry import METHODS
from vitscope.maps.traced import trace_output
from vitscope.testing.randomize import randomize
from vitscope.testing.tiny_timm import TINY_TIMM
from vitscope.testing.tiny_transformers import TINY_TRANSFORMERS


def make(name):
    """The library's module, in float64, and its adapter."""
    module = randomize(CLASSIFIERS[name]()).double()
    return module, wrap_model(module)


def choose(vit, target):
    return choose_target(vit, target, vit.preprocessing, has_references=True)


def make_input(vit, target, images=2):
    chosen = choose(vit, target)
    references = make_references(chosen.vit, [draw_pixels(vit, 3, seed=1)])
    pixels = draw_pixels(vit, images)
    return MapInput(vit=chosen.vit, pixels=pixels, choice=chosen.choose, references=references)


@torch.no_grad()
def classify(module, pixels):
    found = module(pixels)
    return getattr(found, "logits", found)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_logit_is_the_librarys_own_and_its_trace_is_exact(name):
    module, vit = make(name)
    given = make_input(vit, "logit:2")
    own = classify(module, given.pixels)[:, 2]
    others = classify(module, given.references.pixels)[:, 2]
    torch.testing.assert_close(given.scores, own, rtol=1e-12, atol=1e-12)
    trace = trace_output(given)
    torch.testing.assert_close(trace.total, own - others.mean(), rtol=1e-10, atol=1e-10)
    assert trace.gap.max() <= 1e-8
    of_patches = trace.parts[:, 0, given.patches.start : given.patches.stop]
    torch.testing.assert_close(of_patches.sum(dim=1), trace.total, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ON_FEATURE)
@torch.no_grad()
def test_a_head_on_the_feature_makes_the_logits_of_it(name):
    module, vit = make(name)
    pixels = draw_pixels(vit, 2)
    logits = classify(module, pixels)
    torch.testing.assert_close(vit.classifier.head(vit.run(pixels)), logits, rtol=1e-12, atol=1e-12)
    if vit.blocks and vit.info.global_feature == "cls":
        rows = []
        vit.trace(pixels, [vit.last_layer], rows.append)
        embedded = choose(vit, "logit").vit.embed(rows[0].output)
        torch.testing.assert_close(embedded, logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ON_SEVERAL)
def test_a_head_on_several_tokens_leaves_out_legrad_alone(name):
    vit = choose(make(name)[1], "logit").vit
    for method in METHODS.values():
        if method.name == "legrad":
            with pytest.raises(UnsupportedModelError, match="a single token has no logit") as told:
                method.check(vit)
            assert "\n" not in str(told.value)
        elif method.check is not None:
            method.check(vit)


@pytest.mark.parametrize("name", ["vit", "dinov2", "timm_avg", "torchvision"])
def test_gradients_are_those_of_the_librarys_logits(name):
    module, vit = make(name)
    given = make_input(vit, "logit:1")
    kept = []

    def keep(_, args):
        kept.append(args[0].detach().requires_grad_())
        return (kept[0], *args[1:])

    with vit.encoder_blocks[0].register_forward_pre_hook(keep):
        logits = module(given.pixels)
    logits = getattr(logits, "logits", logits)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    wanted = (gradient * (kept[0] - given.references.mean_tokens)).sum(dim=-1)
    found = METHODS["gradient_input"].compute(given).values
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-10, atol=1e-10)


def test_a_digest_of_the_weights_is_kept_if_it_holds_the_head():
    bare, whole = make("vit")[1].hashed(), make("timm")[1].hashed()
    assert choose(bare, "logit").vit.weights_hash is None
    assert choose(whole, "logit").vit.weights_hash == whole.weights_hash


def test_the_class_that_an_image_gets_is_its_own():
    module, vit = make("vit")
    with torch.no_grad():  # else all images get one class
        module.classifier.bias -= classify(module, draw_pixels(vit, 6)).mean(dim=0)
    given = make_input(vit, "logit", images=6)
    logits = classify(module, given.pixels)
    classes = logits.argmax(dim=1)
    assert len(classes.unique()) > 1
    torch.testing.assert_close(given.scores, logits.amax(dim=1))
    assert given.target.name == "logit"
    # Of other images, the logit of the class that the first gets.
    torch.testing.assert_close(given.target.select(3).measure(logits), logits[:, classes[3]])
    one = make_input(vit, "logit", images=1).target
    assert one.name == f"logit {int(classes[0])} ({NAMES[int(classes[0])]})"


def test_a_class_is_known_by_number_or_name():
    vit = make("vit")[1]
    told = {text: choose(vit, f"logit:{text}").told for text in ("1", "Dog", "tench, tinca tinca")}
    assert told == {
        "1": "logit 1 (dog)",
        "Dog": "logit 1 (dog)",
        "tench, tinca tinca": "logit 4 (tench, Tinca tinca)",
    }
    assert choose(make("timm")[1], "logit:3").told == "logit 3"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("vit", "5", "expected a class of ViTForImageClassification, from 0 to 4"),
        ("torchvision_mlp", "5", "from 0 to 4"),
        ("vit", "crane", "classes 2, 3 of ViTForImageClassification have this name"),
        ("vit", "dgo", "has no class of this name.* from 0 to 4; did you mean dog?"),
        ("vit", "-1", "has no class of this name"),
        ("timm", "dog", "has no class of this name.*; it knows no names"),
        ("vit", "", "no target is called 'logit:'"),
    ],
)
def test_a_class_that_is_not_known_is_refused(name, text, told):
    with pytest.raises(UsageError, match=told) as caught:
        choose(make(name)[1], f"logit:{text}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_head_that_was_never_trained_is_refused(name):
    with pytest.raises(UnsupportedModelError, match="as a new one has before it is trained"):
        choose(wrap_model(CLASSIFIERS[name]()), "logit")


@pytest.mark.parametrize(
    "build",
    [
        TINY_TRANSFORMERS["vit"],
        TINY_TIMM["dinov2_reg"],
        TINY_TIMM["clip"],  # its head is a projection, part of the feature
        lambda: ViTForImageClassification(ViTConfig(**SIZE, num_labels=0)),
    ],
)
def test_a_model_without_a_head_has_no_logits(build):
    with pytest.raises(UnsupportedModelError, match="has no classifier, so there are no logits"):
        choose(wrap_model(build()), "logit:0")


def test_a_head_of_unknown_classes_is_refused():
    module = randomize(CLASSIFIERS["timm"]())
    module.head = torch.nn.LayerNorm(16)
    with pytest.raises(UnsupportedModelError, match=r"a LayerNorm, has no nn\.Linear"):
        choose(wrap_model(module), "logit")


def test_map_tokens_explains_logits_and_leaves_the_model_as_it_was():
    module, vit = make("dinov2")
    pixels, others = draw_pixels(vit, 2), draw_pixels(vit, 3, seed=1)
    summary = make_references(vit, [others])  # of the feature
    names = ["attention", "traced", "cdam"]
    made = map_tokens(vit, pixels, names, target="logit:0", references=others)
    again = map_tokens(module, pixels, names, target="logit:0", references=summary)
    wanted = classify(module, pixels)[:, 0] - classify(module, others)[:, 0].mean()
    torch.testing.assert_close(made["traced"].sum(dim=1), wanted)
    for name in names:
        torch.testing.assert_close(made[name], again[name], rtol=0, atol=0)
    assert vit.module is module.dinov2
    vit.to("cpu", torch.float32)
    assert module.classifier.weight.dtype == torch.float32
    assert map_tokens(vit, pixels.float(), ["cdam"], target="logit:0")["cdam"].isfinite().all()
    assert vit.classifier.num_classes == NUM_CLASSES
