"""What is done to each layer, and the precision and size that follow from it. No torch."""

from leanfront.compression.policy.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.precision import integer_kernels, tensor_bits

__all__ = ["LayerPolicy", "Policy", "PolicyError", "integer_kernels", "tensor_bits"]
