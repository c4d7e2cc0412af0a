"""Saved results as one HTML file."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitscope.errors import UsageError
from vitscope.figures.saved import ModelResult, as_sentence, load_results, tell_apart
from vitscope.files.json_files import write_text
from vitscope.files.storage import never, staged_file
from vitscope.report.all_images import collect_tables, tabulate_failures
from vitscope.report.chapters import CHAPTERS, make_chapter, read_words
from vitscope.report.embedded_images import MAX_BYTES, collect_images
from vitscope.report.embedding import (
    as_maths,
    as_written,
    draw_key,
    embed_json,
    embed_script,
    make_policy,
)
from vitscope.report.side_by_side import list_compared
from vitscope.report.vega_parts import Spec
from vitscope.report.verdicts import (
    describe_explained,
    describe_judgement_card,
    describe_origin,
    describe_remedies_card,
    describe_verdict,
    tabulate_compared,
)

_MOST_DATA_BYTES, _LEAST_TABLE_BYTES = 22 * 2**20, 2**20
"""Most bytes for images with all their numbers, so that the page has less than 25 MB; and those
that are left for the table of all images in any case."""
_STATIC_PX = 420
"""Width of a chart that is there before JavaScript runs."""
_NO_DIGEST, _HEAD_LETTERS = "0" * 32, 4096
_DIGEST = re.compile('<meta name="vitscope-digest" content="([0-9a-f]{32})">')
_SCRIPTS = (
    *("charts.js", "numbers.js", "exports.js", "sorting.js"),
    *("maps.js", "gallery.js", "view.js", "print.js"),
)
"""What both pages have."""
_MODELS = {"audit", "one-shot", "explanation"}
_SECTIONS = {
    "verdict": ("Verdict", _MODELS),
    "compared": ("Comparison", {"audit"}),
    "judged": ("Judged maps", {"judgement"}),
    "remedies": ("Remedies", {"remedies"}),
    "sources": ("Sources", _MODELS),
    "layers": ("Layers", _MODELS),
    "tokens": ("Special tokens", _MODELS),
    "images": ("Images", _MODELS),
    "gallery": ("Gallery", {*_MODELS, "judgement", "remedies"}),
    "all-images": ("All images", {"audit"}),
    "definitions": ("Definitions", {*_MODELS, "judgement", "remedies"}),
}
"""Name of each section, and the kinds of results that have it."""
_TITLES = {
    "verdict": "Can these attention maps be believed?",
    "judged": "Which map may be published?",
    "remedies": "Which remedy helps this model?",
}


def write_report(
    results: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    max_image_bytes: int = MAX_BYTES,
) -> Path:
    """Write saved results as one HTML file that opens from disk and loads nothing.

    Args:
        results: Results, or folders with results anywhere below.
        out: File to write, completely or not at all.
        overwrite: Whether an earlier report there is replaced.
        max_image_bytes: Most bytes for images and maps.

    Returns:
        The file.

    Raises:
        UsageError: If no result is given, a folder has none, or something else is at `out`.
        ResultError: If a result is damaged.
        VitscopeError: If the file cannot be written.
    """
    if not results:
        raise UsageError("no result was given: name one or more folders of results")
    found = load_results([Path(folder) for folder in results])
    target = Path(out)
    with staged_file(target, replaces=is_report if overwrite else never) as staging:
        page = render_report(found, max_image_bytes)
        write_text(staging, page.replace(_NO_DIGEST, _digest(page), 1))
    return target


def is_report(path: Path) -> bool:
    """Whether a file is a report and may be replaced."""
    page = path.read_bytes().decode(errors="replace")
    found = _DIGEST.search(page, 0, _HEAD_LETTERS)
    return found is not None and found[1] == _digest(page.replace(found[1], _NO_DIGEST, 1))


def _digest(page: str) -> str:
    return blake2b(page.encode(errors="backslashreplace"), digest_size=16).hexdigest()


def render_report(results: Sequence[ModelResult], max_image_bytes: int = MAX_BYTES) -> str:
    """The text of the page."""
    results = tell_apart(results)
    audits = [result for result in results if result.kind == "audit"]
    explained = [result for result in results if result.kind == "explanation"]
    compared = list_compared(results)
    kinds = {result.kind for result in results}
    sections = {key: name for key, (name, of) in _SECTIONS.items() if of & kinds}
    if len(compared) < 2:
        sections.pop("compared", None)
    chapters = {
        key: make_chapter(key, compared if key == "compared" else results)
        for key in CHAPTERS
        if key in sections
    }
    sections = {key: name for key, name in sections.items() if chapters.get(key, True)}
    images = collect_images(results, max_bytes=max_image_bytes)
    left = max(_LEAST_TABLE_BYTES, _MOST_DATA_BYTES - len(embed_json(images)))
    images |= collect_tables(results, left)
    galleries = [one["label"] for one in images["galleries"] if one["side_by_side"]]
    charts = {
        f"{figure.key}/{index}": chart.spec
        for figures in chapters.values()
        for figure in figures
        for index, chart in enumerate(figure.charts)
    }
    return _render(
        "report.html.j2",
        [_bundle_library(), _read_templates(*_SCRIPTS, "all_images.js", "links.js")],
        _read_templates("report.css"),
        charts=charts,
        images=images,
        title=_TITLES[next(iter(sections))],
        sections=sections,
        has_audits=bool(audits),
        cards=list(map(describe_verdict, audits)) or list(map(describe_explained, explained)),
        comparison=tabulate_compared(compared) if "compared" in sections else None,
        judgements=[describe_judgement_card(one) for one in results if one.kind == "judgement"],
        remedies=[describe_remedies_card(one) for one in results if one.kind == "remedies"],
        chapters=chapters,
        failures=tabulate_failures(audits),
        has_images=bool(images["galleries"]),
        side_by_side=bool(galleries),
        before_and_after=any(label.endswith("before and after") for label in galleries),
        models_side_by_side=any(label.startswith("Side by side") for label in galleries),
        definitions=read_words("definitions.toml"),
        origins=[describe_origin(result) for result in results],
    )


def render_explaining_page(
    models: Mapping[str, Sequence[int]], *, has_report: bool, most_bytes: int
) -> str:
    """The text of the page of `vitscope serve`; `models` are layers by id."""
    return _render(
        "serve.html.j2",
        [_read_templates(*_SCRIPTS, "serve.js")],
        _read_templates("report.css", "serve.css"),
        policy="; connect-src 'self'",
        charts={},
        images=collect_images([]) | {"tables": []},
        title="Can this attention map be read?",
        models=models,
        has_report=has_report,
        most_bytes=most_bytes,
    )


def _render(
    template: str,
    scripts: Sequence[str],
    style: str,
    *,
    policy: str = "",
    charts: Mapping[str, Spec],
    images: Mapping[str, Any],
    **shown: Any,
) -> str:
    scripts = list(map(embed_script, scripts))
    return (
        _load_environment()
        .get_template(template)
        .render(
            version=metadata.version("vitscope"),
            digest=_NO_DIGEST,
            policy=make_policy(scripts, [style]) + policy,
            style=as_written(style),
            scripts=map(as_written, scripts),
            charts=as_written(embed_json(charts)),
            images=as_written(embed_json(images)),
            **shown,
        )
    )


def _draw_chart(spec: Spec) -> Markup:
    """A chart that is there before, or without, JavaScript."""
    return as_written(rename_clips(vl_convert.vegalite_to_svg({**spec, "width": _STATIC_PX})))


def rename_clips(svg: str) -> str:
    """Give clip paths names of their own, because Vega in the browser counts from 1 too."""
    return re.sub(r'(id="|url\(#)clip', r"\1static-clip", svg)


@cache
def _bundle_library() -> str:
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _read_templates(*names: str) -> str:
    # Scripts are one module, so that they share names without adding globals to the window.
    folder = files("vitscope.report").joinpath("templates")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


@cache
def _load_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vitscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"drawn": _draw_chart, "maths": as_maths, "sentence": as_sentence}
    environment.globals["key_of"] = draw_key
    return environment
