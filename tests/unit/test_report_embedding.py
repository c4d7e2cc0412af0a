"""Data inside the page: nothing of it can end its element, and all of it comes back."""

import json
from base64 import b64decode
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vitscope.report.embedding import (
    digest_of,
    embed_json,
    embed_script,
    encode_image,
    encode_map,
    make_policy,
)

texts = st.text(st.characters(codec=None))  # half surrogate pairs too
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=12,
)


@given(trees)
@example("</script><script>alert(1)</script>")
@example("<!--<script>")
@example("\u2028\u2029&amp;\ud800")
def test_any_data_comes_back_and_none_of_it_is_markup(tree):
    text = embed_json(tree)
    assert not set(text) & set("<>&\u2028\u2029")
    assert text.isascii()
    assert json.loads(text) == tree


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_never_gets_into_the_page(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        embed_json({"value": value})


def test_a_script_cannot_end_its_element():
    text = embed_script('const a = "</script>", b = /<!--/;')
    assert "</script" not in text
    assert "<!--" not in text


def test_the_policy_names_exactly_what_may_run():
    policy = make_policy(["one()", "two()"], ["p {}"])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"{digest_of('one()')} {digest_of('two()')}"
    assert "unsafe" not in policy
    # The digest as a browser computes it: SHA-256 of the UTF-8 text, base64.
    digest = digest_of("é")
    assert b64decode(digest.removeprefix("'sha256-").rstrip("'")) == sha256("é".encode()).digest()


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_maps_come_back_within_half_a_step(heads, rows, columns, signed, seed):
    values = np.random.default_rng(seed).normal(size=(heads, rows, columns)).astype(np.float32)
    values = values if signed else np.abs(values)
    encoded = encode_map(values, signed=signed)
    levels = np.frombuffer(b64decode(encoded["data"]), dtype=np.uint8).astype(float)
    scale = np.asarray(encoded["scale"])[:, None]
    unit = (levels - 128) / 127 if signed else levels / 255
    found = unit.reshape(heads, -1) * scale
    steps = 127 if signed else 255
    # Half a step, and five digits of the scale.
    tolerance = scale * (0.5 / steps + 1e-4)
    assert (np.abs(found - values.reshape(heads, -1)) <= tolerance).all()


def test_a_map_of_zeros_stays_one():
    encoded = encode_map(np.zeros((2, 3)))
    assert encoded["scale"] == [0.0]
    assert set(b64decode(encoded["data"])) == {0}


@pytest.mark.parametrize("shape", [(518, 518), (224, 448), (40, 60)])
def test_thumbnails_keep_the_shape_and_are_small(shape):
    pixels = np.full((*shape, 3), (200, 30, 60), dtype=np.uint8)
    image = Image.open(BytesIO(b64decode(encode_image(pixels))))
    assert image.format == "JPEG"
    assert max(image.size) == min(336, max(shape))
    assert image.size[0] / image.size[1] == pytest.approx(shape[1] / shape[0], rel=0.02)
    assert np.asarray(image)[0, 0] == pytest.approx((200, 30, 60), abs=6)
