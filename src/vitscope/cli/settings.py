"""Settings on the command line: parsers, and groups of options."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from cyclopts import Group, Parameter, Token

from vitscope.config import (
    AuditConfig,
    JudgeConfig,
    OneShotConfig,
    ReproductionConfig,
    RunConfig,
)
from vitscope.errors import UsageError


def parse_size(text: str) -> int | tuple[int, int]:
    """Parse an input size in pixels: one number for a square, or HEIGHTxWIDTH."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise UsageError(
            f"size {text!r}: expected pixels such as 518, or HEIGHTxWIDTH as in 224x336"
        )
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard: two numbers such as 3/16, counted from 1."""
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"shard {text!r}: expected one of 1/N to N/N, such as 3/16")
    return int(found[1]), int(found[2])


def parse_layers(text: str) -> str | tuple[int, ...]:
    """Parse a choice of layers: last, all, or block numbers separated by commas, as in 3,-1."""
    if text in {"last", "all"}:
        return text
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise UsageError(
            f"layers {text!r}: expected last, all, or block numbers such as 3,7"
        ) from None


def parse_width(text: str) -> float:
    """Parse a width with its unit, 3.5in or 9cm, as inches."""
    number, unit = text[:-2].strip(), text[-2:]
    try:
        return float(number) / {"in": 1.0, "cm": 2.54}[unit]
    except (KeyError, ValueError):
        raise UsageError(
            f"width {text!r}: expected inches such as 3.5in, or centimetres such as 9cm"
        ) from None


def parse_words(text: str) -> list[str]:
    """Parse a list of words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _as_word(parse: Callable[[str], Any], shown: str, **settings: Any) -> Parameter:
    def convert(_: object, tokens: Sequence[Token]) -> Any:
        return parse(",".join(token.value for token in tokens))  # several in a file of options

    return Parameter(
        converter=convert,
        n_tokens=1,
        accepts_keys=False,
        metavar=shown,
        show_choices=False,
        **settings,
    )


Source = Annotated[
    str,
    Parameter(
        required=True,
        help="Folders (searched recursively), images, text files of paths, tar shards, Parquet "
        "files, or URLs (s3://, gs://, hf://, https://).",
    ),
]
Result = Annotated[Path, Parameter(required=True)]


class AuditSettings(AuditConfig):
    """Settings of `vitscope audit`."""


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(JudgeConfig):
    """Settings of `vitscope judge`.

    Attributes:
        dtype: Precision of the model.
        removals: Ways to remove patches, of which the first decides: shuffle (the default), drop,
            mean, blur, black, linear.
        shard: One part of the images, such as 3/16, for `vitscope merge`.
    """

    left_out = "batch_size num_workers draft renormalize cls_term gallery"

    limit: int = 50
    dtype: Literal["float32", "float64"] = "float32"


class ExplainSettings(RunConfig):
    """Settings of `vitscope explain`.

    Attributes:
        size: Pixels of the shorter side, or HEIGHTxWIDTH to crop to; the judgement's or the model's
            own by default.
    """

    left_out = "batch_size num_workers draft seed renormalize cls_term"


class OneShotSettings(OneShotConfig):
    """Settings of `vitscope one-shot`."""


class ReproductionSettings(ReproductionConfig):
    """Settings of `vitscope reproduce`."""


Command = TypeVar("Command", bound=Callable[..., None])

_WHAT = """
folder images model layer layers size imagenet smoke families sizes checkpoints masks reference
cls_term renormalize classifier readout metrics maps target removals references judged remedy
one_shot scenes only
"""
_OPTIONS = {
    "What": _WHAT,
    "How much": "limit num_images draws examples seed verified trace sanity score judge",
    "Output": "out name overwrite resume report format style width caption heads overlays "
    "features gallery config quiet json log",
    "Speed": "device dtype batch_size num_workers draft",
    "Scale": "engine address shard shard_size",
    "Server": "host port",
}
_GROUPS = {
    option: Group(name, sort_key=number)
    for number, (name, options) in enumerate(_OPTIONS.items(), 1)
    for option in options.split()
}


_QUOTED = r"(?<![\w\]])(['\"]).*?\1(?!\w)"
_KEYWORD = re.compile(
    rf"{_QUOTED}|\b(give|with|and|or|as|set|needs) ({'|'.join(_GROUPS)})="
    r"(?:True|'(\w+)'|\((\d+), (\d+)\)|(-?\d+(?:\.\d+)?))(?![\w+/]|\.\w)"
)


def in_options(text: str) -> str:
    """A message whose keyword arguments, but no paths, are options of the command line."""
    return _KEYWORD.sub(_as_option, text)


def _as_option(found: re.Match[str]) -> str:
    _, before, name, word, height, width, number = found.groups()
    if not name:
        return found[0]
    value = word or number or (f"{height}x{width}" if height else "")
    return f"{before} --{name.replace('_', '-')} {value}".rstrip()


_SHORT = {"model": "-m", "out": "-o", "quiet": "-q"}
_PARSED = {
    "size": _as_word(parse_size, "518|224x336"),
    "layers": _as_word(parse_layers, "last|all|3,7", allow_leading_hyphen=True),  # of -3,-1
    "maps": _as_word(parse_words, "A,B"),
    "metrics": _as_word(parse_words, "A,B"),
    "removals": _as_word(
        lambda text: parse_words(text) or JudgeConfig.removals, "A,B", show_default=False
    ),
    "masks": Parameter(metavar="PATH"),
    "width": _as_word(parse_width, "3.5in|9cm"),
    "shard": _as_word(parse_shard, "3/16"),
}
"""How options are parsed that have a form of their own."""


def group_options(command: Command) -> Command:
    """Assign the options of a command and its settings to groups, and tell how they are parsed."""
    hints = get_type_hints(command, include_extras=True)
    settings = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    for name, kind in settings.items():  # each field is an option
        command.__annotations__[name] = Annotated[kind, Parameter(name="*")]
    for annotated in (command, *settings.values()):
        left_out = getattr(annotated, "left_out", "").split()
        for name, hint in get_type_hints(annotated, include_extras=True).items():
            if name in left_out:
                annotated.__annotations__[name] = Annotated[hint, Parameter(parse=False)]
            elif name in _GROUPS:
                place = Parameter(group=_GROUPS[name], alias=_SHORT.get(name))
                own = _PARSED.get(name, Parameter())
                annotated.__annotations__[name] = Annotated[hint, own, place]
    return command
