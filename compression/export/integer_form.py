"""The deployed form of a compressed network in an engine's arithmetic: codes in, sums of codes, codes out.

Fake quantization computes with the codes' floats, whose sums are a millionth off; where a value lies halfway
between two codes it falls on either, and what a deep network makes of that is a step or two at its end. Sums
of codes are exact, in any order. What is left is how an engine gets from a sum to a code, which
``Dialect.arithmetic`` says: then network and file put out the same numbers, not nearly the same.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from leanfront.compression.export.deployed_form import activation_grids, fold, layer_weights
from leanfront.compression.export.dialects import QDQ, Arithmetic, Dialect
from leanfront.compression.export.weights import LayerWeights, bias_codes
from leanfront.compression.graph import Kernel, kernels
from leanfront.compression.graph.operations import operation
from leanfront.compression.layers import kind_of
from leanfront.compression.policy import tensor_bits
from leanfront.compression.policy.grids import ActivationGrid, with_moved
from leanfront.compression.policy.precision import computes_in_integers, summands
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import QUANTIZER, quantizers

_EXACT = 2.0**24
"""Below it floats of 32 bits hold every integer."""
_FIXED_BITS = 20
"""Fraction bits of the larger of XNNPACK's two multipliers of a sum (src/microparams-init.c)."""
_STEP_BITS = 8
"""Fraction bits of its multiplier from one grid to another (the same)."""


@torch.no_grad()
def in_integers(compressed: Compressed, dialect: Dialect = QDQ) -> Compressed:
    """The deployed form (``fold``), whose layers in integers add codes, in the arithmetic of an engine.

    What the engine computes in floats is computed as in ``fold``. For comparing with files: it has no
    gradient.
    """
    folded = fold(compressed, dialect)
    form = _Form(compressed, folded.module, dialect)
    for kernel in form.kernels:
        form.put(kernel)
    for name in quantizers(folded.module):
        folded.module.set_submodule(QUANTIZER + name, form.onto_grid(name))
    folded.module.recompile()
    return folded


class _Form:
    """What is known of a network while its layers change places with those of an engine.

    counted: tensor -> the grid in whose steps the floats before its own grid are counted; counts: the same of
    the layer whose floats those are.
    """

    def __init__(self, compressed: Compressed, module: fx.GraphModule, dialect: Dialect) -> None:
        self.module, self.dialect, self.policy = module, dialect, compressed.policy
        self.kernels = kernels(compressed.network)
        wanted = tensor_bits(self.kernels, compressed.policy)
        bits = dialect.held_bits(self.kernels, wanted, compressed.network.outputs)
        grids = with_moved(activation_grids(compressed), self.kernels, bits)
        self.grids = {name: grid for name, grid in grids.items() if bits[name] <= 8}
        self.held = layer_weights(compressed)
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.by_name = {kernel.name: kernel for kernel in self.kernels}
        self.counted: dict[str, ActivationGrid] = {}
        self.counts: dict[str, ActivationGrid] = {}
        if dialect.arithmetic.adds == "in steps":
            alone = summands(self.kernels, compressed.network.outputs)
            for kernel in self.kernels:
                self._count_in_steps(kernel, alone)

    def _count_in_steps(self, kernel: Kernel, alone: Collection[str]) -> None:
        """A sum of a layer's floats and of a tensor on a grid is counted in the steps of that grid.

        ``alone``: layers whose floats nothing else reads.
        """
        if not self._operands(kernel) or kernel.name not in self.grids:
            return
        on_grid = [name for name in kernel.inputs if name in self.grids]
        rest = [self.by_name[name] for name in kernel.inputs if name not in self.grids]
        floats = [
            read.name for read in rest if read.name in alone and self._integer(read) and not read.activation
        ]
        if len(on_grid) == len(floats) == 1:
            self.counted[kernel.name] = self.counts[floats[0]] = self.grids[on_grid[0]]

    def _operands(self, kernel: Kernel) -> tuple[fx.Node, ...]:
        """The two tensors of a sum; nothing of another operation, or of a sum that scales one of them."""
        if not operation(kernel.op).adds:
            return ()  # a join that is left out has no node
        node = self.nodes[kernel.nodes[0].name]
        found = tuple(operand for operand in node.args if isinstance(operand, fx.Node))
        plain = not node.kwargs and len(found) == len(node.args) == len(kernel.inputs) == 2
        return found if plain else ()

    def _integer(self, kernel: Kernel) -> bool:
        return kernel.layer is not None and computes_in_integers(kernel.layer, self.policy[kernel.layer.name])

    def onto_grid(self, name: str) -> "OntoGrid":
        """What takes a tensor's floats onto its grid."""
        unit = _step(self.counted[name]) if name in self.counted else 1.0
        return OntoGrid(self.grids[name], self.dialect.arithmetic, unit, self._integer(self.by_name[name]))

    def put(self, kernel: Kernel) -> None:
        """Put what the engine computes in the place of what a kernel begins with."""
        if self._integer(kernel):
            self._put_layer(kernel)
        elif operands := self._operands(kernel):
            self._put_sum(kernel, operands)
        elif operation(kernel.op).form == "concat" and self.dialect.arithmetic.adds == "fixed":
            self._put_between(kernel)

    def _put_layer(self, kernel: Kernel) -> None:
        assert kernel.layer is not None
        name, arithmetic = str(self.nodes[kernel.nodes[0].name].target), self.dialect.arithmetic
        layer, read = self.module.get_submodule(name), self.grids[kernel.inputs[0]]
        kind = kind_of(layer)
        assert kind is not None
        grid = self.grids.get(kernel.name)
        if arithmetic.rescales and grid is None and not kind.last:
            return  # a kernel of floats
        held, policy = self.held[kernel.layer.name], self.policy[kernel.layer.name]
        finer = self.dialect.finer(kernel.layer, policy)
        if arithmetic.rescales:
            codes, _ = bias_codes(held, finer, read.scale)
            self.module.set_submodule(name, Rescaled(layer, read, held, codes, finer, grid))
        else:
            self.module.set_submodule(name, Scaled(layer, read, held, self.counts.get(kernel.name)))

    def _put_sum(self, kernel: Kernel, operands: tuple[fx.Node, ...]) -> None:
        node = self.nodes[kernel.nodes[0].name]
        if kernel.name in self.counted:
            made: nn.Module = SumInSteps(self.counted[kernel.name], kernel.inputs[0] in self.grids)
        elif self.dialect.arithmetic.adds in _SUMS and {*kernel.inputs, kernel.name} <= self.grids.keys():
            grids = [self.grids[source] for source in kernel.inputs]
            made = _SUMS[self.dialect.arithmetic.adds](grids, self.grids[kernel.name])
        else:
            return
        name = "sum_" + node.name
        self.module.add_submodule(name, made)
        with self.module.graph.inserting_before(node):
            call = self.module.graph.call_module(name, tuple(operands))
        node.replace_all_uses_with(call)
        self.module.graph.erase_node(node)

    def _put_between(self, kernel: Kernel) -> None:
        """Tensors that are joined go onto one grid before."""
        if not {*kernel.inputs, kernel.name} <= self.grids.keys():
            return  # joined as floats
        node, to = self.nodes[kernel.nodes[0].name], self.grids[kernel.name]
        joined = node.args[0]
        assert isinstance(joined, list | tuple)
        moved = []
        for place, (source, read) in enumerate(zip(kernel.inputs, joined, strict=True)):
            moved.append(read)
            if self.grids[source] == to:
                continue
            name = f"between_{place}_{node.name}"
            self.module.add_submodule(name, FixedStep(self.grids[source], to))
            with self.module.graph.inserting_before(node):
                moved[-1] = self.module.graph.call_module(name, (read,))
        node.args = (moved, *node.args[1:])


class _Sums(nn.Module):
    """A layer that reads a grid's codes and adds them up, times codes of weights: exact, whatever the order.

    ``added``: (out_channels,) integers that each sum begins with.
    """

    def __init__(
        self,
        layer: nn.Module,
        read: ActivationGrid,
        codes: NDArray[np.int64],
        added: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        kind = kind_of(layer)
        assert kind is not None
        self.layer, self.kind, self.read_scale = layer, kind, _step(read)
        device = next(layer.parameters()).device
        channels = kind.channels(layer)[1]
        offsets = np.zeros(channels, np.int64) if added is None else added
        # whatever the axes of the weight: no sum is longer than what all weights of a channel, or all, give
        reach = np.abs(codes).sum(axis=tuple(range(1, codes.ndim)) if kind.out_axis == 0 else None)
        furthest = float(np.max(reach * (2**read.bits - 1)) + np.abs(offsets).max(initial=0))
        self.floats = torch.float32 if furthest < _EXACT else torch.float64
        layer.register_parameter("weight", nn.Parameter(torch.from_numpy(codes).to(device, self.floats)))
        layer.register_parameter("bias", nn.Parameter(torch.from_numpy(offsets).to(device, self.floats)))
        layer.requires_grad_(False)

    def sums(self, x: Tensor) -> Tensor:
        """Of the codes of a tensor on the grid, as floats of 32 bits."""
        summed: Tensor = self.layer((x / self.read_scale).round_().to(self.floats))
        return summed.float()

    def by_channel(self, values: NDArray[np.float32], like: Tensor) -> Tensor:
        """Values of each output channel, so that they broadcast with what the layer puts out."""
        shape = [1] * like.dim()
        shape[self.kind.channel_axis(like.dim())] = -1
        return torch.from_numpy(values).to(like.device).reshape(shape)


class Rescaled(_Sums):
    """Bias among the sums, which one factor takes onto the grid of what is put out; to floats without."""

    def __init__(
        self, layer: nn.Module, read: ActivationGrid, held: LayerWeights, bias: NDArray[np.int32], finer: int,
        grid: ActivationGrid | None,
    ) -> None:  # fmt: skip
        assert held.codes is not None
        assert held.scales is not None
        super().__init__(layer, read, held.codes.astype(np.int64) * finer, bias.astype(np.int64))
        steps = np.float32(read.scale) * (held.scales / np.float32(finer))
        self.factors = steps if grid is None else steps / np.float32(grid.scale)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        sums = self.sums(x)
        scaled = sums * self.by_channel(self.factors, sums)
        if self.grid is None:
            return scaled
        low, high = _ends(self.grid)
        return scaled.round_().clamp_(low, high).mul_(_step(self.grid))


class Scaled(_Sums):
    """Sums times their step, then the bias, in floats of 32 bits; ``counts``: then in the codes of that grid,
    less its zero."""

    def __init__(
        self, layer: nn.Module, read: ActivationGrid, held: LayerWeights, counts: ActivationGrid | None
    ) -> None:
        assert held.codes is not None
        assert held.scales is not None
        bias = layer.bias
        assert isinstance(bias, Tensor)
        self.bias = bias.detach().cpu().numpy()
        super().__init__(layer, read, held.codes.astype(np.int64))
        self.steps = np.float32(read.scale) * held.scales
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        sums = self.sums(x)
        scaled = sums * self.by_channel(self.steps, sums) + self.by_channel(self.bias, sums)
        if self.counts is None:
            return scaled
        step = np.float32(self.counts.scale)
        return scaled.sub_(float(self.counts.zero_point * step)).mul_(float(np.float32(1) / step))


class OntoGrid(nn.Module):
    """Floats, counted in ``unit``, onto a grid as an engine does it: by the step, or its reciprocal, or by
    how many codes there are for the range. ``fused``: as part of a layer, where what is multiplied is not
    rounded before it is added."""

    def __init__(
        self, grid: ActivationGrid, arithmetic: Arithmetic, unit: float = 1.0, fused: bool = False
    ) -> None:
        super().__init__()
        self.low, self.high = _ends(grid)
        self.step = _step(grid)
        self.way, self.fused = arithmetic.rounds, fused
        step, levels = np.float32(grid.scale), np.float32(2**grid.bits - 1)
        low, high = (np.float32(end) * step / np.float32(unit) for end in (self.low, self.high))
        spread = levels / (high - low) if self.way == "spread" else 1 / step
        self.spread, self.offset = float(spread), 0.0
        if self.way == "spread":
            self.offset = float(levels * -low / (high - low) if fused else -low * spread)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if self.way == "divides":
            codes = (x / self.step).round_()
        elif self.way == "multiplies":
            codes = (x * self.spread).round_()
        else:
            wide = x.double() if self.fused and self.offset else x
            codes = (wide * self.spread + self.offset).to(x.dtype).round_().add_(self.low)
        return codes.clamp_(self.low, self.high).mul_(self.step)


class SumInSteps(nn.Module):
    """The sum of floats that are counted in the codes of a grid, less its zero, and of the codes of a tensor
    on it, as OpenVINO adds them."""

    def __init__(self, grid: ActivationGrid, first_on_grid: bool) -> None:
        super().__init__()
        self.step, self.zero, self.first_on_grid = _step(grid), grid.zero_point, first_on_grid

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Tensors that broadcast."""
        on_grid, floats = (one, other) if self.first_on_grid else (other, one)
        return (on_grid / self.step).round_().add_(self.zero).add_(floats)


class RatioSum(nn.Module):
    """The sum of two tensors on grids onto a third, each times the ratio of the steps, as onnxruntime has it
    (MlasQLinearAdd): fused multiplications and additions, the first operand last."""

    def __init__(self, grids: list[ActivationGrid], to: ActivationGrid) -> None:
        super().__init__()
        self.steps, self.zeros = [_step(grid) for grid in grids], [grid.zero_point for grid in grids]
        self.low, self.high = _ends(to)
        self.step = _step(to)
        self.ratios = [float(np.float32(grid.scale) / np.float32(to.scale)) for grid in grids]
        last = np.float32(np.float32(self.ratios[1]) * np.float32(self.zeros[1]))
        zeros = np.float32(self.ratios[0] * self.zeros[0] + float(last))
        self.offset = float(np.float32(to.zero_point) - zeros)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Tensors that broadcast."""
        first, second = (
            (x / step).round_().add_(zero).double().mul_(ratio)
            for x, step, zero, ratio in zip((one, other), self.steps, self.zeros, self.ratios, strict=True)
        )
        codes = (first + (second + self.offset).float()).to(one.dtype).round_().add_(self.low)
        return codes.clamp_(self.low, self.high).mul_(self.step)


class FixedSum(nn.Module):
    """The sum of two tensors on grids onto a third, with multipliers of integers, as XNNPACK has it."""

    def __init__(self, grids: list[ActivationGrid], to: ActivationGrid) -> None:
        super().__init__()
        self.steps = [_step(grid) for grid in grids]
        self.low, self.high = _ends(to)
        self.step = _step(to)
        ratios = [np.float32(grid.scale) / np.float32(to.scale) for grid in grids]
        self.shift = _FIXED_BITS - (int(np.frexp(max(ratios))[1]) - 1)
        self.multipliers = [int(np.rint(np.ldexp(np.float64(ratio), self.shift))) for ratio in ratios]

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Tensors that broadcast."""
        first, second = (
            (x / step).round_().long() * multiplier
            for x, step, multiplier in zip((one, other), self.steps, self.multipliers, strict=True)
        )
        codes = (first + second + (1 << (self.shift - 1))) >> self.shift
        return codes.clamp_(self.low, self.high).to(one.dtype).mul_(self.step)


class FixedStep(nn.Module):
    """From one grid to another, with a multiplier of 8 fraction bits, as XNNPACK has it."""

    def __init__(self, grid: ActivationGrid, to: ActivationGrid) -> None:
        super().__init__()
        self.read_step, self.step = _step(grid), _step(to)
        self.low, self.high = _ends(to)
        ratio = np.float32(grid.scale) / np.float32(to.scale)
        self.multiplier = int(np.rint(np.ldexp(np.float64(ratio), _STEP_BITS)))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        codes = (x / self.read_step).round_().long() * self.multiplier
        codes = (codes + (1 << (_STEP_BITS - 1))) >> _STEP_BITS
        return codes.clamp_(self.low, self.high).to(x.dtype).mul_(self.step)


_SUMS: Mapping[str, Callable[[list[ActivationGrid], ActivationGrid], nn.Module]] = {
    "ratios": RatioSum,
    "fixed": FixedSum,
}


def _step(grid: ActivationGrid) -> float:
    """As files hold it."""
    return float(np.float32(grid.scale))


def _ends(grid: ActivationGrid) -> tuple[int, int]:
    """The lowest and the highest code, counted from 0."""
    return -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
