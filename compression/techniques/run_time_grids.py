"""Tensors that are quantized while a network runs, on a grid of their own in each inference."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.dynamic import in_steps, is_dynamic
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


class RunTimeLstm(nn.Module):
    """An LSTM that quantizes each example's sequence, and its state at each step, as onnxruntime's
    DynamicQuantizeLSTM does on one thread. Called as aten.lstm.input is. ``rows``: of its batch, how many are
    one example's."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.quantizer = RunTimeQuantizer(rows)

    def forward(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: (batch, steps, features), or steps first; states: hidden and cell, each (layers x directions,
        batch, width). The output in the order of x, and the last states."""
        x = x if batch_first else x.transpose(0, 1)
        each, directions = 4 if has_biases else 2, 1 + bidirectional
        last_states: list[tuple[Tensor, Tensor]] = []
        for layer in range(num_layers):
            if layer and dropout and train:
                x = nn.functional.dropout(x, dropout)
            made = []
            for back in range(directions):
                place = layer * directions + back
                own = parameters[place * each : (place + 1) * each]
                out, last = self._one_way(x.flip(1) if back else x, states[0][place], states[1][place], own)
                made.append(out.flip(1) if back else out)
                last_states.append(last)
            x = torch.cat(made, -1)
        hidden, cell = (torch.stack(one) for one in zip(*last_states, strict=True))
        return (x if batch_first else x.transpose(0, 1)), hidden, cell

    def _one_way(
        self, x: Tensor, hidden: Tensor, cell: Tensor, own: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One direction of one layer, from the first step to the last."""
        bias = own[2] + own[3] if len(own) == 4 else None
        gates = nn.functional.linear(self.quantizer(x), own[0], bias)
        out = []
        for step in range(x.shape[1]):
            at_step = gates[:, step] + nn.functional.linear(self.quantizer(hidden), own[1])
            entered, kept, proposed, shown = at_step.chunk(4, 1)
            cell = kept.sigmoid() * cell + entered.sigmoid() * proposed.tanh()
            hidden = shown.sigmoid() * cell.tanh()
            out.append(hidden)
        return torch.stack(out, 1), (hidden, cell)


def attach(traced: Traced, network: Network, policy: Policy) -> None:
    """Put a quantizer in front of every use of a layer that a policy wants so, and inside of every LSTM, in
    place."""
    module: fx.GraphModule = traced.module
    by_name = {node.name: node for node in module.graph.nodes}
    steps = in_steps(network)
    for node in network.nodes:
        layers = steps.get(node.name, () if node.layer is None else (node.layer,))
        read_alone = node.layer is not None and network.layer[node.layer].weight_only
        if not layers or read_alone or not is_dynamic(policy[layers[0]]):
            continue
        call = by_name[node.name]
        name = f"{QUANTIZER}of_{node.name}"
        if node.name in steps:
            _replace(module, call, name, traced.shapes[node.inputs[0]])
            continue
        read = call.args[0]
        assert isinstance(read, fx.Node)
        module.add_submodule(name, RunTimeQuantizer(traced.shapes[node.inputs[0]][0]))
        with module.graph.inserting_before(call):
            call.replace_input_with(read, module.graph.call_module(name, (read,)))
    module.recompile()


def _replace(module: fx.GraphModule, node: fx.Node, name: str, read: Sequence[int]) -> None:
    """Call a RunTimeLstm in the place of the operator whose first output a node is, in place. ``read``: shape
    of what it reads, of one example."""
    call = node if node.target is torch.ops.aten.lstm.input else node.all_input_nodes[0]
    assert call.target is torch.ops.aten.lstm.input
    batch_first = bool(call.args[8])
    module.add_submodule(name, RunTimeLstm(read[0 if batch_first else 1]))
    with module.graph.inserting_before(call):
        made = module.graph.call_module(name, call.args, call.kwargs)
    made.meta = dict(call.meta)
    call.replace_all_uses_with(made)
    module.graph.erase_node(call)
