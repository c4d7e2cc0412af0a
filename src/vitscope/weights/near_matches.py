"""What a mistyped name may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def describe_near_matches(name: str, known: Iterable[str]) -> str:
    """The known names nearest to a given one, as the end of an error message."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    # 0.6 is where a swapped or lost letter is still near and another model is not.
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, cutoff=0.6)]
    if not near:
        return ""
    return f"; did you mean {', '.join(near[:-1])}{' or ' if near[1:] else ''}{near[-1]}?"
