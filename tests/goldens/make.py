"""Write the goldens anew: ``python -m tests.goldens.make [kernels] [costs] [files] [proposals] [run]``.

README.md says when that may be done. Without words all but the kernels, which onnxruntime made and which the
prices are of; the stored run and the stored file, which version 0.1.0 made, are never made anew.
"""

import argparse
import gzip
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.goldens import costs, files, proposing, run, subjects


def kernels() -> None:
    """What onnxruntime makes of the networks: another version of it, or another processor, makes others."""
    text = json.dumps(subjects.stored_kernels(), separators=(",", ":"))
    subjects.KERNELS.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


PARTS = {
    "kernels": kernels,
    "costs": costs.make,
    "files": files.make,
    "proposals": proposing.make,
    "run": run.make,
}
USUAL = ["costs", "files", "proposals", "run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=USUAL)
    for part in parser.parse_args().parts:
        PARTS[part]()
        print(part, "written")


if __name__ == "__main__":
    main()
