"""Hardware-aware, automated compression search for neural networks.

Everything that is public has its name here; it is loaded when it is asked for, so that importing leanfront
costs nothing and the command line starts without torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Here, before anything of ours imports onnxruntime: from 1.29 on PyPI's onnxruntime writes a device id under
# the home folder as soon as it is imported, and sends what it runs (names and hashes of models) to Microsoft,
# unless it was told not to before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from leanfront import metrics as metrics
    from leanfront import readers as readers
    from leanfront.hw_profiles import HardwareProfile as Profile
    from leanfront.networks import (
        Captured,
        CompressedNetwork,
        Exported,
        capture,
        compress,
        cost,
        export,
        uniform,
    )
    from leanfront.runs import Picked, Run, compare, search
    from leanfront.search.scores import Metric
    from leanfront.search.task import ArrayData, Task, TaskError, load_state

_HOMES = {
    "leanfront.networks": (
        "Captured", "CompressedNetwork", "Exported", "capture", "compress", "cost", "export", "uniform",
    ),
    "leanfront.runs": ("Picked", "Run", "compare"),
    "leanfront.search.scores": ("Metric",),
    "leanfront.search.task": ("ArrayData", "Task", "TaskError", "load_state"),
}  # fmt: skip
"""Module -> the public names that it has."""

__all__ = [
    "ArrayData", "Captured", "CompressedNetwork", "Exported", "Metric", "Picked", "Profile", "Run", "Task",
    "TaskError", "capture", "compare", "compress", "cost", "export", "load_state", "metrics", "readers",
    "search", "uniform",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ("metrics", "readers", "search"):  # the package search is called like the function
        return import_module(f"leanfront.{name}")
    if name == "Profile":
        return import_module("leanfront.hw_profiles").HardwareProfile
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'leanfront' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
