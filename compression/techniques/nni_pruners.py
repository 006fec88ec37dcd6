"""What the pruners of nni say of layers, asked in a process of its own: its import changes torch.

nni was archived by its authors (last release 3.0, in 2023), so nothing else in leanfront depends on it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

PROGRAM = Path(__file__).with_name("nni_process.py")


class NniError(ValueError):
    """nni failed."""


def asked(pruner: str, weights: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]] = ()) -> list[Tensor]:
    """What a pruner of nni, a class of ``nni.compression.pruning``, ranks the outputs of layers by.

    weights: of each layer (outputs, values); gradients: of each of some batches, the same of each layer.
    Returns: of each layer (outputs,), float64.

    Raises:
        NniError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="leanfront-nni-") as folder:
        source, target = Path(folder, "input.pt"), Path(folder, "output.pt")
        torch.save((pruner, list(weights), [list(batch) for batch in gradients]), source)
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM), str(source), str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise NniError(f"nni's {pruner} failed on this network: {said[-1]}")
        found: list[Tensor] = torch.load(target, weights_only=True)
    return found
