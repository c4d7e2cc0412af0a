"""How a verdict is cited: in a sentence, in BibTeX, and in a model card."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vitscope.files.printable import escape_markdown, printable, without_folders
from vitscope.images.paths import name_folder
from vitscope.results.choices import describe_settings
from vitscope.results.schema import AuditSummary, JudgementSummary, Provenance

_TEX = {letter: f"\\{letter}" for letter in "$&#%_"}
_TEX |= {"{": "(", "}": ")"}  # BibTeX counts braces, escaped ones too
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {"−": "$-$", "±": r"$\pm$"}
_AUDITED = "Can the attention maps be believed?"
_JUDGED = "Which map may be published?"
_METHOD = """@inproceedings{lappe2025register,
  title = {Register and {[CLS]} tokens induce a decoupling of local and global features in large
    {ViTs}},
  author = {Lappe, Alexander and Giese, Martin A.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2025},
  url = {https://arxiv.org/abs/2505.05892}
}"""


@dataclass(frozen=True)
class Citation:
    """A verdict with all that it rests on."""

    sentence: str
    bibtex: str  # entries of the verdict, and of the paper of the method
    card: str  # Markdown


def cite(
    summary: AuditSummary | JudgementSummary,
    provenance: Provenance,
    paths: Iterable[str],
    run: str = "",
) -> Citation:
    """Cite a verdict of a run of this name, whose images are at these paths."""
    if isinstance(summary, AuditSummary):
        title, about, verdict = _AUDITED, "the attention maps", summary.last.verdict.text
    else:
        title, about, verdict = _JUDGED, "the maps", summary.verdict.text
    model = printable(without_folders(summary.model.id))
    (height, width) = summary.preprocessing.size
    layer = "" if summary.layer is None else f"layer {summary.layer}, "
    model_told = f"{layer}{height} x {width} px, {summary.model.dtype}"
    name = printable(name_folder(paths))
    images = f"{summary.data.num_images:,} images" + (f" of {name}" if name else "")
    run = printable(without_folders(run))
    settings = describe_settings(summary) or "default"
    version = str(provenance.get("versions", {}).get("vitscope", "of unknown version"))
    date, weights = (str(provenance.get(key, "")) for key in ("finished", "weights_hash"))
    tool, date = printable(f"vitscope {version}"), printable(date[:10])
    sentence = (
        f"Verdict of {tool} on {about} of {model} ({model_told}) over {images}"
        + (f" (run {run})" if run else "")
        + f": {printable(verdict)}. Settings: {settings}."
    )
    # No two verdicts that a paper cites side by side may have one key.
    told_apart = "\n".join((weights, settings, run)).encode(errors="backslashreplace")
    digest = hashlib.sha256(told_apart).hexdigest()[:6]
    parts = ("vitscope", model, summary.KIND, summary.data.num_images, date, digest)
    key = re.sub(r"[^\w.]+", "-", "-".join(map(str, parts)), flags=re.ASCII)
    rows = (
        ("verdict", verdict),
        ("model", f"{model}, {model_told}" + (f", weights {weights}" if weights else "")),
        ("images", images),
        ("run", run),
        ("settings", settings),
        ("measured with", ", ".join(filter(None, (tool, date)))),
        ("notes", " ".join((*summary.model.notes, *summary.data.notes))),
    )
    cells = (
        (escape_markdown(printable(without_folders(cell))) for cell in row)
        for row in rows
        if row[1]
    )
    return Citation(
        sentence,
        bibtex=f"@misc{{{key},\n"
        f"  title = {{Verdict on {about} of {{{_escape_tex(model)}}}}},\n"
        f"  howpublished = {{{_escape_tex(tool)}}},\n"
        + (f"  year = {{{date[:4]}}},\n" if date else "")
        + f"  note = {{{_escape_tex(sentence)}}}\n}}\n\n{_METHOD}\n",
        card=f"### {title}\n\n|  |  |\n| --- | --- |\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in cells),
    )


def _escape_tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
