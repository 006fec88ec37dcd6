"""Goldens of the cascade sampler's proposals, in order."""

import gzip
import json
from collections.abc import Iterator

from tests.goldens import subjects
from tests.goldens.stored import json_difference

KEPT = subjects.FOLDER / "proposals.json.gz"
TOLERANCE = 1e-5
"""Of what is expected: another processor rounds the kernel's matrices otherwise."""


def make() -> None:
    """Write the proposals."""
    found = {"gains": subjects.gains(), "proposals": subjects.proposals()}
    text = json.dumps(found, separators=(",", ":"))
    KEPT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def differences() -> Iterator[str]:
    """The first proposal that is another: those behind it know of it, and say nothing more."""
    stored = json.loads(gzip.decompress(KEPT.read_bytes()))
    if (what := json_difference(stored["gains"], subjects.gains(), TOLERANCE)) is not None:
        yield f"expected gains: {what}"
    kept = stored["proposals"]
    came = json.loads(json.dumps(subjects.proposals()))
    for number, (before, after) in enumerate(zip(kept, came, strict=True)):
        if (what := json_difference(before, after, TOLERANCE)) is not None:
            others = sum(a["policy"] != b["policy"] for a, b in zip(kept, came, strict=True))
            yield f"proposal {number}: {what} (of {len(kept)} proposals {others} are others)"
            return
