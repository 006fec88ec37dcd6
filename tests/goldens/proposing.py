"""Goldens of the cascade sampler's proposals, in order."""

import gzip
import json
from collections.abc import Iterator

from tests.goldens import subjects
from tests.goldens.stored import json_difference

KEPT = subjects.FOLDER / "proposals.json.gz"


def make() -> None:
    """Write the proposals."""
    text = json.dumps(subjects.proposals(), separators=(",", ":"))
    KEPT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def differences() -> Iterator[str]:
    """The first proposal that is another: those behind it know of it, and say nothing more."""
    kept = json.loads(gzip.decompress(KEPT.read_bytes()))
    came = json.loads(json.dumps(subjects.proposals()))
    for number, (before, after) in enumerate(zip(kept, came, strict=True)):
        if (what := json_difference(before, after)) is not None:
            others = sum(a["policy"] != b["policy"] for a, b in zip(kept, came, strict=True))
            yield f"proposal {number}: {what} (of {len(kept)} proposals {others} are others)"
            return
