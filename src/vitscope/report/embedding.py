"""Embedding untrusted data in the page so that no browser runs it."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup, escape
from PIL import Image

from vitscope.report.vega_parts import term_colour, term_shape

_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
_LONGEST_PX, _QUALITY = 336, 82
_PATHS = {
    "circle": "M6 1a5 5 0 1 0 0 10A5 5 0 1 0 6 1Z",
    "square": "M1.5 1.5h9v9h-9Z",
    "diamond": "M6 .5 11.5 6 6 11.5 .5 6Z",
    "cross": "M4 1h4v3h3v4H8v3H4V8H1V4h3Z",
    "triangle-up": "M6 1 11.5 11H.5Z",
    "triangle-down": "M6 11 .5 1h11Z",
    "triangle-right": "M1 .5 11 6 1 11.5Z",
    "stroke": "M0 4.5h12v3H0Z",
}
_SUBSCRIPT = re.compile(r"\b([A-Za-z])_([A-Za-z])\b")


def embed_json(content: Any) -> str:
    """JSON that is safe inside a script element."""
    # ASCII, since file names can contain lone surrogates, which UTF-8 cannot encode.
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def embed_script(source: str) -> str:
    """JavaScript that is safe inside a script element."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def as_written(text: str) -> Markup:
    """Text that goes into the page without escaping."""
    return Markup(text)  # noqa: S704 - results get here only through `embed_json`


def as_maths(text: str) -> Markup:
    """Text of this package with subscripts, such as c_g, as HTML."""
    return Markup(_SUBSCRIPT.sub(r"<i>\1</i><sub>\2</sub>", str(escape(text))))  # noqa: S704 - as above


def digest_of(source: str) -> str:
    """Source of an inline script or style in a content security policy."""
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"


def make_policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """A content security policy that blocks all requests and all other scripts and styles."""
    run = " ".join(map(digest_of, scripts))
    look = " ".join(map(digest_of, styles))
    return (
        f"default-src 'none'; script-src {run}; style-src {look}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def encode_image(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """Encode a thumbnail."""
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((_LONGEST_PX, _LONGEST_PX), Image.Resampling.LANCZOS)
    file = BytesIO()
    thumbnail.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return b64encode(file.getvalue()).decode()


def encode_bytes(values: UInt8[np.ndarray, "..."]) -> str:
    """Encode bytes as text."""
    return b64encode(values.tobytes()).decode()


def encode_map(
    values: Float[np.ndarray, "*head row column"], *, signed: bool = False
) -> dict[str, Any]:
    """Encode a map, or one per head, with one byte per patch."""
    maps = values.reshape(-1, values.shape[-2] * values.shape[-1]).astype(np.float64)
    scale = np.abs(maps).max(axis=1)
    unit = maps / np.where(scale > 0, scale, 1.0)[:, None]
    levels = np.rint(128 + 127 * unit) if signed else np.rint(255 * unit.clip(0, 1))
    return {
        "data": encode_bytes(levels.astype(np.uint8)),
        "scale": [float(f"{value:.5g}") for value in scale],
    }


def draw_key(term: str) -> Markup:
    """A term's marker, for a legend."""
    return Markup(
        '<svg viewBox="0 0 12 12" aria-hidden="true"><path fill="{}" d="{}"/></svg>'
    ).format(term_colour(term), _PATHS[term_shape(term)])
