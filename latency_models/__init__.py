"""What a network costs on a part: measured tables corrected by whole networks, or a roofline. No torch."""

from leanfront.latency_models.cost import Cost, CostModel, LayerCost, TableError

__all__ = ["Cost", "CostModel", "LayerCost", "TableError"]
