"""What a network is: layers, the operations between them, kernels, branches. No torch."""

from leanfront.compression.graph.branches import Branch
from leanfront.compression.graph.kernels import Kernel, kernels
from leanfront.compression.graph.network import Network
from leanfront.compression.graph.nodes import Layer, LayerShape, Node, Segment, Spelling, Written, Zipped
from leanfront.compression.graph.operations import Operation, operation

__all__ = [
    "Branch",
    "Kernel",
    "Layer",
    "LayerShape",
    "Network",
    "Node",
    "Operation",
    "Segment",
    "Spelling",
    "Written",
    "Zipped",
    "kernels",
    "operation",
]  # fmt: skip
