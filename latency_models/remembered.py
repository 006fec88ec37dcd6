"""What takes long and follows from what it was made of: kept in the cache folder under a hash of that."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import leanfront
from leanfront.latency_models.files import replace_file
from leanfront.latency_models.kernel_table.table import cache_folder

T = TypeVar("T")


def remembered(
    kind: str, key: str, make: Callable[[], T], plain: Callable[[T], Any], read: Callable[[Any], T]
) -> T:
    """What was made before under this key, or is made now.

    Without a cache folder that can be written, and where what lies there cannot be read, it is made again.

    Args:
        kind: folder in the cache. key: a hash of whatever it depends on. plain: to values of JSON; None: not
            to be kept. read: from them.
    """
    path = cache_folder() / kind / f"{key}.json"
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        found = make()
    if (values := plain(found)) is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(values) + "\n")
        except OSError:
            pass
    return found


@cache
def source_digest(*rooms: str) -> str:
    """Of the source in folders of leanfront: what is kept follows from what this code does."""
    digest = hashlib.blake2b(digest_size=16)
    root = Path(leanfront.__file__).parent
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
