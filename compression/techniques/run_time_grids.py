"""Tensors that are quantized while a network runs, on a grid of their own in each inference."""

import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.dynamic import is_dynamic
from leanfront.compression.techniques.quantize import QUANTIZER


class RunTimeQuantizer(nn.Module):
    """Rounds each example's tensor to unsigned integers of 8 bits as DynamicQuantizeLinear of ONNX does: from
    the smallest to the largest of its values, 0 among them, so that 0 is exact. Gradients pass as they are.

    rows: of a batch's tensor, how many along its first dimension are one example's. ``off``: the identity,
    for as long as that is wanted.
    """

    LEVELS = 255

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.rows = rows
        self.off = False

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if self.off:
            return x
        with torch.no_grad():
            values = x.detach().float().reshape(-1, self.rows, *x.shape[1:])
            others = list(range(1, values.dim()))
            low, high = values.amin(others, True).clamp(max=0), values.amax(others, True).clamp(min=0)
            step = (high - low) / self.LEVELS
            step = torch.where(step > 0, step, torch.ones_like(step))
            zero = torch.round(-low / step)
            codes = (torch.round(values / step) + zero).clamp(0, self.LEVELS)
            moved = ((codes - zero) * step).reshape(x.shape).to(x.dtype) - x
        return x + moved


def attach(traced: Traced, network: Network, policy: Policy) -> None:
    """Put a quantizer in front of every use of a layer that a policy wants so, in place."""
    module: fx.GraphModule = traced.module
    by_name = {node.name: node for node in module.graph.nodes}
    for node in network.nodes:
        if node.layer is None or not is_dynamic(policy[node.layer]):
            continue
        call = by_name[node.name]
        read = call.args[0]
        assert isinstance(read, fx.Node)
        name = f"{QUANTIZER}of_{node.name}"
        module.add_submodule(name, RunTimeQuantizer(traced.shapes[node.inputs[0]][0]))
        with module.graph.inserting_before(call):
            call.replace_input_with(read, module.graph.call_module(name, (read,)))
    module.recompile()
