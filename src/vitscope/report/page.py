"""Saved results as one HTML file."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitscope.errors import UsageError
from vitscope.figures.saved import ModelResult, load_results, tell_apart
from vitscope.files.json_files import write_text
from vitscope.files.storage import never, staged_file
from vitscope.report.all_images import collect_tables, tabulate_failures
from vitscope.report.chapters import CHAPTERS, make_chapter
from vitscope.report.comparison import list_compared, tabulate_compared
from vitscope.report.embedded_images import MAX_BYTES, collect_images
from vitscope.report.embedding import (
    as_maths,
    as_written,
    draw_key,
    embed_json,
    embed_script,
    make_policy,
)
from vitscope.report.judgements import describe_judgement_card
from vitscope.report.remedies import describe_remedies_card
from vitscope.report.vega import plot_histogram
from vitscope.report.vega_parts import Spec
from vitscope.report.verdicts import describe_explained, describe_origin, describe_verdict

_MOST_DATA_BYTES, _LEAST_TABLE_BYTES = 22 * 2**20, 2**20
"""Most bytes for images with all their numbers, so that the page has less than 25 MB; and those
that are left for the table of all images in any case."""
_STATIC_PX, _MOST_STATIC = 420, 4
"""Width of a chart that is there before JavaScript runs, and how many each figure has: a chart
takes 50 ms and 11 kB."""
_NO_DIGEST, _HEAD_LETTERS = "0" * 32, 4096
_DIGEST = re.compile('<meta name="vitscope-digest" content="([0-9a-f]{32})">')
_SCRIPTS = (
    *("charts.js", "numbers.js", "exports.js", "sorting.js", "maps.js"),
    *("gallery.js", "view.js", "all_images.js", "links.js", "print.js"),
)
_OF_REPORT = ("all_images.js", "links.js")
"""What only a report has."""
_SECTIONS = (
    ("verdict", "Verdict"),
    ("compared", "Comparison"),
    ("judged", "Judged maps"),
    ("remedies", "Remedies"),
    ("sources", "Sources"),
    ("layers", "Layers"),
    ("tokens", "Special tokens"),
    ("images", "Images"),
    ("gallery", "Gallery"),
    ("all-images", "All images"),
    ("definitions", "Definitions"),
)
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
    judgements = [result for result in results if result.kind == "judgement"]
    remedies = [result for result in results if result.kind == "remedies"]
    explained = [result for result in results if result.kind == "explanation"]
    compared = list_compared(results)
    sections = _choose_sections({result.kind for result in results}, several=len(compared) > 1)
    chapters = {
        key: make_chapter(key, compared if key == "compared" else results)
        for key in CHAPTERS
        if key in sections
    }
    if not audits:  # what only audits have is not missed
        chapters = {
            key: [one for one in figures if not one.missing.startswith("no result of the kind")]
            for key, figures in chapters.items()
        }
        sections = {key: name for key, name in sections.items() if chapters.get(key, True)}
    charts = {
        f"{figure.key}/{index}": chart.spec
        for figures in chapters.values()
        for figure in figures
        for index, chart in enumerate(figure.charts)
    }
    images = collect_images(results, max_bytes=max_image_bytes)
    left = max(_LEAST_TABLE_BYTES, _MOST_DATA_BYTES - len(embed_json(images)))
    images |= collect_tables(results, left)
    galleries = [one["label"] for one in images["galleries"] if one["side_by_side"]]
    failures = tabulate_failures(audits)
    labels = [one["label"] for one in images["distributions"]]
    for index, label in enumerate(labels):
        words = f"spread over images, {label}: the number chosen above"
        charts[f"distribution/{index}"] = plot_histogram(words)
    scripts = [embed_script(_bundle_library()), _read_scripts()]
    style = _read_template("report.css")
    return (
        _load_environment()
        .get_template("report.html.j2")
        .render(
            title=_TITLES[next(iter(sections))],
            version=metadata.version("vitscope"),
            digest=_NO_DIGEST,
            policy=make_policy(scripts, [style]),
            style=as_written(style),
            scripts=[as_written(script) for script in scripts],
            charts=as_written(embed_json(charts)),
            images=as_written(embed_json(images)),
            sections=sections,
            has_audits=bool(audits),
            cards=list(map(describe_verdict, audits)) or list(map(describe_explained, explained)),
            comparison=tabulate_compared(compared) if "compared" in sections else None,
            judgements=[describe_judgement_card(result) for result in judgements],
            remedies=[describe_remedies_card(result) for result in remedies],
            chapters=chapters,
            distributions=labels,
            failures=failures,
            has_images=bool(images["galleries"]),
            side_by_side=bool(galleries),
            before_and_after=any(label.endswith("before and after") for label in galleries),
            models_side_by_side=any(label.startswith("Side by side") for label in galleries),
            definitions=read_definitions(),
            origins=[describe_origin(result) for result in results],
        )
    )


def render_explaining_page(
    models: Mapping[str, Sequence[int]], *, has_report: bool, most_bytes: int
) -> str:
    """The text of the page of `vitscope serve`; `models` are layers by id."""
    names = [name for name in _SCRIPTS if name not in _OF_REPORT]
    scripts = [embed_script("\n".join(map(_read_template, [*names, "serve.js"])))]
    style = _read_template("report.css") + _read_template("serve.css")
    return (
        _load_environment()
        .get_template("serve.html.j2")
        .render(
            title="Can this attention map be read?",
            version=metadata.version("vitscope"),
            digest=_NO_DIGEST,
            policy=f"{make_policy(scripts, [style])}; connect-src 'self'",
            style=as_written(style),
            scripts=[as_written(script) for script in scripts],
            charts="{}",
            images=as_written(embed_json(collect_images([]) | {"tables": []})),
            models=models,
            has_report=has_report,
            most_bytes=most_bytes,
        )
    )


def _choose_sections(kinds: Collection[str], *, several: bool) -> dict[str, str]:
    of_kinds = {"judgement": "judged", "remedies": "remedies"}
    left_out = {section for kind, section in of_kinds.items() if kind not in kinds}
    if "audit" not in kinds:
        left_out.add("all-images")
    if not several:
        left_out.add("compared")
    if not set(kinds) - set(of_kinds):  # nothing else has the other chapters
        left_out |= {"verdict", "sources", "layers", "tokens", "images"}
    return {key: name for key, name in _SECTIONS if key not in left_out}


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


def _read_scripts() -> str:
    # One module, so that its files share names without adding globals to the window.
    return embed_script("\n".join(map(_read_template, _SCRIPTS)))


def _read_template(name: str) -> str:
    return files("vitscope.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _load_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vitscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["maths"] = as_maths
    environment.globals |= {
        "key_of": draw_key,
        "draw_chart": _draw_chart,
        "most_drawn": _MOST_STATIC,
    }
    return environment


@cache
def read_definitions() -> dict[str, Mapping[str, str]]:
    """Title and text of every definition, by its anchor, in the order of the page."""
    text = files("vitscope.report").joinpath("definitions.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
