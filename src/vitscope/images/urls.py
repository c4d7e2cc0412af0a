"""Recognise URLs, chained and mistyped ones too, and show them without user, password and query."""

import re

from vitscope.files.printable import printable

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"
_URL = re.compile(rf"(?:{_SCHEME}::)*[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = re.compile(rf"(?:{_SCHEME}::)*https?://", re.IGNORECASE)
_MISTYPED = re.compile(rf"\W*({_SCHEME})(?:[:;]+[/\\]|//)|.*://|.*:.*@", re.DOTALL)
_LINK = re.compile(rf"::{_SCHEME}:")
_HOST = re.compile(r"([^:@]*|\[[^]@]*\])(:\d*)?")


def is_url(name: str) -> bool:
    """Whether a name is a URL rather than a path."""
    return _URL.match(name) is not None


def resembles_url(name: str) -> bool:
    """Whether a name is a URL or could be a mistyped one."""
    return _MISTYPED.match(name) is not None


def is_web(url: str) -> bool:
    """Whether a URL is a web address, whose path a query and a fragment may follow."""
    return _WEB.match(url) is not None


def show_name(name: str) -> str:
    """A path or URL, mistyped or not, without secrets."""
    if is_url(name):
        return show_url(name)
    mistyped = _MISTYPED.match(name)
    if mistyped and re.search("[@?#]", name):
        return f"'{mistyped[1] or ''}...'"
    return repr(name)


def show_url(url: str) -> str:
    """A URL without secrets."""
    scheme, separator, rest = url.partition("://")
    if _LINK.search(rest):  # a chain, whose next link may contain another secret
        return printable(f"{scheme}://...")
    if not scheme.lower().endswith("file"):  # a third slash does not turn the host into a path
        separator += rest[: len(rest) - len(rest.lstrip("/"))]
        rest = rest.lstrip("/")
    ends = "/?#" if is_web(url) else "/"
    if not _HOST.fullmatch(re.split(f"[{ends}]", rest, maxsplit=1)[0]):
        # A password may contain a /: an @ after it then ends the password and is not part of the
        # path.
        first, slash, path = rest.partition("/")
        secret, _, host = (first if "@" in first else rest).rpartition("@")
        rest = f"{host}{slash}{path}" if "@" in first else host
        if is_web(url) and re.search("[?#]", secret):
            rest = "..."
    if is_web(url):
        rest = re.split("[?#]", rest, maxsplit=1)[0]
    return printable(f"{scheme}{separator}{rest}")
