"""Inputs and outputs of networks as tensors, whatever containers they come in; how far two of them lie
apart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from leanfront.compression.capture.program import Arguments, called, evaluating, tensors_in
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.latency_models.benchmark.timing import session

FLOATS = 1e-4
"""Share of a tensor's range by which two computations in floats may differ."""
HALVES = 8 * 2.0**-10
"""The same in half precision."""
FAR, FAR_IN_HALVES = 20.0, 4.0
"""How many times as far from 0 as their range values may lie before that distance counts: in half precision
the last digit is a 1024th of it, and two of those are allowed."""
STEPS = 3.0
"""Quantization steps by which a file and its network may differ, at ``SHARE`` of the outputs."""
SHARE = 0.999

_NUDGE = 1e-6


def read_by(graph: fx.Graph, given: Arguments) -> tuple[Any, ...]:
    """Arguments as the inputs of a graph take them: each leaf of its own, or, where it takes fewer than there
    are, each argument."""
    leaves = pytree.tree_leaves(given)
    taken = sum(node.op == "placeholder" for node in graph.nodes)
    return tuple(leaves if len(leaves) <= taken else (*given.args, *given.kwargs.values()))


def batch_size(given: Arguments) -> int:
    """Examples in a batch: what its first tensor with dimensions has. 1 where there is none."""
    return next((len(tensor) for tensor in tensors_in(given) if tensor.dim()), 1)


def one_by_one(given: Arguments) -> list[Arguments]:
    """A batch as batches of one. What has another first dimension than the batch is the same for each."""
    size = batch_size(given)

    def taken(leaf: Any, index: int) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size
        return leaf[index : index + 1] if batched else leaf

    return [pytree.tree_map(lambda leaf, i=index: taken(leaf, i), given) for index in range(size)]


def together(examples: Sequence[Arguments]) -> Arguments:
    """Batches of one as one batch."""
    flat = [pytree.tree_flatten(example) for example in examples]
    leaves = []
    for parts in zip(*(leaves for leaves, _ in flat), strict=True):
        batched = isinstance(parts[0], Tensor) and parts[0].dim() > 0 and len(parts[0]) == 1
        leaves.append(torch.cat(parts) if batched else parts[0])
    joined: Arguments = pytree.tree_unflatten(leaves, flat[0][1])
    return joined


def drawn_like(example: Arguments, count: int, seed: int, in_place: bool = False) -> list[Arguments]:
    """Random batches of one like an example: floats normal, with its mean and deviation if it has any; of
    integers and truth values (and of floats that are not finite: masks) those that the example has, each
    where it is with ``in_place`` (columns of a table have values of their own)."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel():
            return leaf
        values = leaf.detach().cpu()
        if values.is_floating_point() and bool(values.isfinite().all()):
            noise = torch.randn(values.shape, generator=generator)
            wide = values.float()
            deviation = float(wide.std(correction=0))
            if deviation > 0:
                noise = noise * deviation + wide.mean()
            return noise.to(leaf.dtype).to(leaf.device)
        if in_place:
            return leaf
        picked = torch.randint(values.numel(), values.shape, generator=generator)
        return values.reshape(-1)[picked].to(leaf.device)

    return [pytree.tree_map(drawn, example) for _ in range(count)]


def copied(given: Arguments, module: nn.Module) -> Arguments:
    """Arguments that a module may change in place, where its parameters are."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def copy(leaf: Any) -> Any:
        return leaf.detach().to(device, copy=True) if isinstance(leaf, Tensor) else leaf

    found: Arguments = pytree.tree_map(copy, given)
    return found


def answers(module: nn.Module, given: Arguments) -> list[Tensor]:
    """The tensors that a module puts out in evaluation mode. What is given stays as it is."""
    with evaluating(module):
        return [tensor.detach().clone() for tensor in tensors_in(called(module, copied(given, module)))]


def answers_of_each(module: nn.Module, examples: Iterable[Arguments]) -> list[Tensor]:
    """The outputs of batches of one, each output's joined."""
    return joined(answers(module, example) for example in examples)


def joined(each: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Lists of outputs, output by output: those without dimensions stacked, the others in a row."""
    return [
        torch.cat([part.reshape(1) if part.dim() == 0 else part for part in parts])
        for parts in zip(*each, strict=True)
    ]


class _InOnnxruntime:
    """A file in onnxruntime, as ``Opened``."""

    def __init__(self, model: bytes, optimise: bool, threads: int) -> None:
        self._session = session(model, threads, optimise=optimise)
        self.inputs = {value.name for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._session.run(None, dict(feed))
        return found


class File:
    """An exported network in its engine, called as its module is."""

    def __init__(self, model: bytes, optimise: bool = True, threads: int = 1, dialect: Dialect = QDQ) -> None:
        """``optimise``: whether onnxruntime changes a file of its own kind; one that is meant for another
        engine it computes as it stands.

        Raises:
            TableError, DialectError: onnxruntime, or another engine, refuses the file.
        """
        optimise = optimise and dialect.fused
        self._opened = dialect.opened(model, threads) or _InOnnxruntime(model, optimise, threads)
        self._inputs = set(self._opened.inputs)
        self.outputs: tuple[str, ...] = tuple(self._opened.outputs)

    def arrays(self, example: Arguments) -> list[NDArray[Any]]:
        """What it puts out for a batch of one. Its inputs are called input, input1 ... in the order of the
        tensors that go in; one that it does not read, it may not have."""
        feed = {}
        for index, tensor in enumerate(tensors_in(example)):
            name = f"input{index or ''}"
            if name in self._inputs:
                feed[name] = tensor.detach().cpu().contiguous().numpy()
        return self._opened.run(feed)

    def answers(self, examples: Iterable[Arguments]) -> list[Tensor]:
        """The outputs of batches of one, each output's joined."""
        return joined([torch.from_numpy(np.asarray(a)) for a in self.arrays(one)] for one in examples)


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Value for value, (n,) float64; infinite where one is a number and the other is none, or where the
    shapes differ."""
    if ours.shape != theirs.shape:
        return torch.full((1,), math.inf, dtype=torch.float64)
    one, other = ours.detach().cpu().double().reshape(-1), theirs.detach().cpu().double().reshape(-1)
    apart = (one - other).abs()
    same = (one == other) | (one.isnan() & other.isnan())
    apart[same] = 0.0
    return apart.nan_to_num(nan=math.inf, posinf=math.inf)


def width(tensor: Tensor, far: float = FAR) -> float:
    """The range of a tensor's finite values; of values that lie far from 0 beside each other that distance
    over ``far``: floats have no more digits. Never 0."""
    values = tensor.detach().cpu().double()
    values = values[values.isfinite()]
    if not values.numel():
        return 1.0
    low, high = (float(value) for value in torch.aminmax(values))
    return max(high - low, max(abs(low), abs(high)) / far, 1e-12)


def tolerance(module: nn.Module) -> float:
    """Share of a tensor's range by which a computation in the module's floats may differ."""
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return max([FLOATS, *(8 * float(torch.finfo(kind).eps) for kind in kinds)])


def share_of_range(ours: Sequence[Tensor], theirs: Sequence[Tensor], *, far: float = FAR) -> float:
    """The largest difference of any output, as a share of the range that ``ours`` has. ``far``: see
    ``width``."""
    if len(ours) != len(theirs):
        return math.inf
    pairs = zip(ours, theirs, strict=True)
    return max((_largest(difference(a, b)) / width(a, far) for a, b in pairs), default=0.0)


def share_of_all(ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]]) -> float:
    """The same of the outputs of several batches: the range is that of all of them. A single number that a
    network puts out for one example has none, and what floats round of the sum that it is may be much of it.
    """
    alone = max(map(share_of_range, ours, theirs), default=0.0)
    if not math.isfinite(alone):
        return alone
    together = ([[tensor.reshape(-1) for tensor in batch] for batch in batches] for batches in (ours, theirs))
    return share_of_range(*map(joined, together))


def grid_step(tensor: Tensor, bits: int = 8) -> float:
    """The step of a grid of so many bits that holds a tensor, whose range has 0 in it as all grids' do."""
    values = tensor.detach().cpu().double()
    values = values[values.isfinite()]
    low, high = (float(v) for v in torch.aminmax(values)) if values.numel() else (0.0, 1.0)
    return max(max(high, 0.0) - min(low, 0.0), 1e-12) / float(2**bits - 1)


def in_steps(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], steps: Mapping[int, float], bits: int = 8
) -> tuple[float, float]:
    """Differences in quantization steps: at ``SHARE`` of the values of the output where that is largest, and
    at all of them. ``steps``: index of an output -> the step of the grid that it has; the others' are those
    of a grid of ``bits`` that holds them."""
    if len(ours) != len(theirs):
        return math.inf, math.inf
    most, largest = 0.0, 0.0
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        apart = difference(one, other) / (steps.get(index) or grid_step(one, bits))
        if apart.numel():
            most = max(most, at_share(apart))
            largest = max(largest, _largest(apart))
    return most, largest


def at_share(apart: Tensor) -> float:
    """What ``SHARE`` of some differences do not exceed."""
    # no interpolation: between a number and infinity there is none
    rank = min(apart.numel() - 1, math.ceil(SHARE * apart.numel()) - 1)
    return float(apart.sort().values[rank])


def nudged(inputs: Any, seed: int = 0, summed: bool = False) -> Any:
    """Inputs a millionth off: what floats round. ``summed``: they are sums, which are off by a share of what
    was summed, however little comes out: as all values are on average."""
    generator = torch.Generator().manual_seed(seed)

    def off(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        off_by = _NUDGE * torch.randn(leaf.shape, generator=generator).to(leaf)
        if not summed:
            return leaf * (1 + off_by)
        return leaf + leaf[leaf.isfinite()].square().mean().sqrt() * off_by

    return pytree.tree_map(off, inputs)


def _largest(apart: Tensor) -> float:
    return float(apart.max()) if apart.numel() else 0.0
