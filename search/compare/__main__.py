"""One more worker of a comparison (``sharing``); what it is given comes by standard input."""

import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path

from leanfront.search.compare.compare import join_compare

if __name__ == "__main__":
    parent, *given = pickle.load(sys.stdin.buffer)
    with suppress(OSError):  # when the memory is used up, a worker is what the kernel should end
        Path("/proc/self/oom_score_adj").write_text("500")
    join_compare(lambda: os.getppid() != parent, *given)
