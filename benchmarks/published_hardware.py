"""Write docs/validation.md: for each kind of device predicted beside published figures, with plots.

python -m benchmarks.published_hardware
"""

from pathlib import Path

from benchmarks import published_fpga, published_processors, published_sparsity
from benchmarks.validation_summary import summary

DOCS = Path(__file__).resolve().parents[1] / "docs"

HEAD = """# How far to trust the hardware profiles

Profiles of hardware that is not on the desk are calibrated on measurements that other people published.
This page holds each against such measurements: predicted beside published, with what was fitted and what was
left out. `python -m benchmarks.published_hardware` writes it; the figures that it reads are in
`benchmarks/published/` with their sources. Files that may only be compared with are read from
`../shared/hardware` (or `$LEANFRONT_PUBLISHED`) when they are there, and their rows are not repeated here.

MAPE is the mean of |predicted / published - 1|. "Left out" means: the numbers behind a prediction were fitted
without that row, and without the others of its group. The shipped profiles are fitted to all rows.
"""


def main() -> None:
    """Write the document and its plots."""
    parts = (published_processors, published_sparsity, published_fpga)
    sections = [section for part in parts for section in part.sections()]
    text = [HEAD.strip(), *(section.markdown(DOCS) for section in (summary(sections), *sections))]
    (DOCS / "validation.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
