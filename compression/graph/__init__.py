"""What a network is: layers, the operations between them, kernels, branches. No torch."""

from leanfront.compression.graph.branches import Branch
from leanfront.compression.graph.kernels import Kernel, kernels
from leanfront.compression.graph.network import Network
from leanfront.compression.graph.nodes import Layer, LayerShape, Node, Segment

__all__ = ["Branch", "Kernel", "Layer", "LayerShape", "Network", "Node", "Segment", "kernels"]
