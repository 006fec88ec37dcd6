"""What somebody meant who wrote a name that there is not."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """The nearest of the known names as a question, with a space behind it; "" where none is near.

    Args:
        also: names that are near whatever they look like, after those that look alike.
    """
    near = [*difflib.get_close_matches(name, list(known), n=1), *also]
    return f"did you mean {near[0]!r}? " if near else ""
