"""The shared language: networks, layers, policies and the precision a policy gives each tensor. No torch."""

from compression.policy.branches import Branch
from compression.policy.kernels import Kernel, kernels
from compression.policy.network import Layer, LayerShape, Network, Node, Segment
from compression.policy.policy import LayerPolicy, Policy, PolicyError
from compression.policy.precision import integer_kernels, tensor_bits

__all__ = [
    "Branch",
    "Kernel",
    "Layer",
    "LayerPolicy",
    "LayerShape",
    "Network",
    "Node",
    "Policy",
    "PolicyError",
    "Segment",
    "integer_kernels",
    "kernels",
    "tensor_bits",
]
