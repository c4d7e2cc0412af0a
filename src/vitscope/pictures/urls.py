"""URLs: what is one, and what of it may be shown.

Requirements met here:

- User and password are not shown, whichever signs stand in them, nor is what follows an address of
  the web: its query (a signature, a token) and its fragment.
"""

import re

from vitscope.files.storage import printable

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"([^:@]*|\[[^]@]*\])(:\d*)?")


def is_url(name: str) -> bool:
    """Whether a name is a URL and no path.

    Args:
        name: What a person gave.

    Returns:
        True for s3://, https:// and the like.
    """
    return _URL.match(name) is not None


def is_web(url: str) -> bool:
    """Whether a URL is one of the web, where a query and a fragment follow the path.

    Args:
        url: Any URL; in those of other stores a ? and a # are parts of a name.

    Returns:
        True for http:// and https://.
    """
    return url.partition("://")[0].lower() in {"http", "https"}


def show_url(url: str) -> str:
    """A URL as it may be shown.

    Args:
        url: Any URL.

    Returns:
        The URL without user and password, and without query and fragment where it has them,
        printable. Where a ? or a # lets nobody say whether what follows is of a password or of a
        query, nothing is shown but the scheme and three dots.
    """
    scheme, _, rest = url.partition("://")
    ends = "/?#" if is_web(url) else "/"
    if not _HOST.fullmatch(re.split(f"[{ends}]", rest, maxsplit=1)[0]):
        # A password may hold a /; a @ behind the first one is then its end and not of the path.
        first, slash, path = rest.partition("/")
        secret, _, host = (first if "@" in first else rest).rpartition("@")
        rest = f"{host}{slash}{path}" if "@" in first else host
        if is_web(url) and re.search("[?#]", secret):
            rest = "..."
    if is_web(url):
        rest = re.split("[?#]", rest, maxsplit=1)[0]
    return printable(f"{scheme}://{rest}")
