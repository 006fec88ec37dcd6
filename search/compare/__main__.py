"""One more worker of a comparison (``sharing``); what it is given comes by standard input."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from leanfront.search.compare.compare import join_compare
from leanfront.search.compare.sharing import Shared

if __name__ == "__main__":
    given = json.load(sys.stdin)
    with suppress(OSError):  # when the memory is used up, a worker is what the kernel should end
        Path("/proc/self/oom_score_adj").write_text("500")
    join_compare(lambda: os.getppid() != given["parent"], Shared.read(given["shared"]), **given["known"])
