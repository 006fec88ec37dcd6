"""What a network costs on a part: measured tables corrected by whole networks, or a roofline. No torch."""

import os

# From 1.29 on, PyPI's onnxruntime writes a device id under the home folder as soon as it is imported, and
# sends what it runs (names and hashes of models) to Microsoft, unless it was told not to before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from latency_models.cost import Cost, CostModel, LayerCost, TableError

__all__ = ["Cost", "CostModel", "LayerCost", "TableError"]
