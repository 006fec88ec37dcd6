"""Which channels a network can do without: the table of criteria. All speak of the uncompressed network.

A criterion is one row of ``CRITERIA``. What it says of a class of channels is compared with others of the
same block alone, so only the order counts.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.program import Arguments, evaluating
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.weights import in_groups
from leanfront.compression.layers import kind_of
from leanfront.compression.layers.products import matrices, some_places, values_read
from leanfront.compression.techniques.nni_pruners import asked
from leanfront.compression.techniques.prune import weighed
from leanfront.compression.techniques.rounding import damped

Scores = NDArray[np.float64]
"""Of each class of channels how much is lost without it; NaN where nothing is known."""
_Line = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at besides the weights. inputs: a batch, in the order of the network's own;
    gradients: of each of some batches of training, parameter -> gradient of the task's loss."""

    inputs: Arguments | None = None
    gradients: Sequence[Mapping[str, Tensor]] = ()


@dataclass(frozen=True)
class Criterion:
    """One way to say what a channel is worth. needs: "weights" alone, "inputs" or "gradients", too; package:
    what must be installed."""

    name: str
    of: Callable[[Traced, Evidence], Scores]
    needs: Literal["weights", "inputs", "gradients"] = "weights"
    package: str = ""


def importance(traced: Traced, name: str, evidence: Evidence | None = None) -> Scores:
    """What a criterion says of each class of channels (``Traced.importance``). Groups of which it knows
    nothing are judged by the L2 norm: without a batch norm "batchnorm" says nothing, for instance."""
    known = CRITERIA[name].of(traced, evidence or Evidence())
    usual = _norms(traced, torch.square)
    groups = {number: key[0] for key, number in traced.block_numbers.items()}
    group_of = np.array([groups.get(int(block), "") for block in traced.blocks])
    for group in set(group_of):
        own = group_of == group
        if np.isnan(known[own]).any():
            known[own] = usual[own]
    return known


class _Means:
    """Means over whatever says something of a class."""

    def __init__(self, traced: Traced) -> None:
        self._sums, self._counts = (np.zeros(len(traced.blocks)) for _ in range(2))

    def add(self, line: _Line, values: Tensor) -> None:
        there = line >= 0
        np.add.at(self._sums, line[there], values.detach().double().cpu().numpy()[there])
        np.add.at(self._counts, line[there], 1.0)

    def found(self) -> Scores:
        return np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1.0), np.nan)


def _norms(traced: Traced, each: Callable[[Tensor], Tensor]) -> Scores:
    """Of all weights that read or write a channel the sum, mean over the layers (Li et al. 2017, Pruning
    Filters, section 3.1, for L1; Fang et al. 2023, DepGraph, equation 4)."""
    means = _Means(traced)
    for line, values in weighed(traced.module, traced.network, traced.classes, each=each):
        means.add(line, values)
    return means.found()


def _modules(traced: Traced) -> Iterator[tuple[str, nn.Module, _Line]]:
    """Each layer and norm once: its name, itself, and the classes of what it puts out."""
    done: set[str] = set()
    for node in traced.module.graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and name not in done and node.name in traced.classes:
            done.add(name)
            yield name, traced.module.get_submodule(name), traced.classes[node.name]


def _rows(module: nn.Module, weight: Tensor) -> Tensor | None:
    """A layer's weight (outputs, values); None where it computes nothing."""
    kind = kind_of(module)
    if kind is None or kind.weight_only:
        return None
    outputs = kind.channels(module)[1]
    return in_groups(weight, outputs, kind.out_axis).transpose(1, 2).reshape(outputs, -1)


def _layers(traced: Traced) -> Iterator[tuple[str, nn.Module, Tensor, _Line]]:
    """Each layer that computes something, with its weight (outputs, values)."""
    for name, module, line in _modules(traced):
        weight = getattr(module, "weight", None)
        rows = None if weight is None else _rows(module, weight.detach())
        if rows is not None:
            yield name, module, rows, line


def _batch_norms(traced: Traced, evidence: Evidence) -> Scores:
    """The gain of the batch norm behind a channel (Liu et al. 2017, Network Slimming, section 3)."""
    means = _Means(traced)
    for _, module, line in _modules(traced):
        if isinstance(module, _BatchNorm) and module.affine:
            means.add(line, module.weight.abs())
    return means.found()


def _median(traced: Traced, evidence: Evidence) -> Scores:
    """The sum of distances to all other filters of its layer: what is near the geometric median can be made
    of the others (He et al. 2019, FPGM, equation 6). In shares of the layer's mean."""
    means = _Means(traced)
    for _, _, rows, line in _layers(traced):
        apart = torch.cdist(rows, rows).sum(dim=1)
        means.add(line, apart / apart.mean().clamp(min=1e-30))
    return means.found()


def _taylor(traced: Traced, evidence: Evidence) -> Scores:
    """The squared change of the loss to first order if a channel were 0, mean over batches: gradient times
    value of a gate behind it, which is that of what a batch norm multiplies and adds, or else a layer
    (Molchanov et al. 2019, Importance Estimation, equations 8 and 9)."""
    modules = list(_modules(traced))
    norms = np.zeros(len(traced.blocks), dtype=np.bool_)
    for _, module, line in modules:
        if isinstance(module, _BatchNorm) and module.affine:
            norms[line[line >= 0]] = True
    totals = np.zeros(len(traced.blocks))
    known = np.zeros(len(traced.blocks), dtype=np.bool_)
    for gradients in evidence.gradients:
        change = np.zeros(len(traced.blocks))
        for name, module, line in modules:
            gate = _gate(name, module, gradients)
            if gate is None or len(gate) != len(line):
                continue
            is_norm = kind_of(module) is None
            there = (line >= 0) & (norms[np.maximum(line, 0)] == is_norm)
            np.add.at(change, line[there], gate.double().cpu().numpy()[there])
            known[line[there]] = True
        totals += change**2
    return np.where(known, totals / max(len(evidence.gradients), 1), np.nan)


def _gate(name: str, module: nn.Module, gradients: Mapping[str, Tensor]) -> Tensor | None:
    """Of each channel that a layer or norm puts out its parameters times their gradients, summed."""
    products: dict[str, Tensor] = {
        key: parameter.detach() * gradients[f"{name}.{key}"]
        for key, parameter in module.named_parameters(recurse=False)
        if f"{name}.{key}" in gradients
    }
    if "weight" not in products:
        return None
    rows = products["weight"] if kind_of(module) is None else _rows(module, products["weight"])
    if rows is None or (kind_of(module) is None and rows.dim() != 1):
        return None
    found = rows if rows.dim() == 1 else rows.sum(dim=1)
    return found + products["bias"] if "bias" in products else found


def _second_order(traced: Traced, evidence: Evidence) -> Scores:
    """What the layers that read a channel lose without it, once their other weights were fitted again: of the
    squared error of their outputs the share w' [H^-1]^-1 w, H the second moments of what they read (Hassibi
    and Stork 1993, Optimal Brain Surgeon, equation 5, for all weights of a channel together)."""
    assert evidence.inputs is not None
    totals = np.full(len(traced.blocks), np.nan)
    with evaluating(traced.module):
        reader = _Reader(traced.module)
        reader.run(*evidence.inputs.tensors, enable_io_processing=False)
    for name, matrix, moments in reader.found:
        line = traced.classes[name]
        groups, _, count = matrix.shape
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
        whole = ((matrix @ moments) * matrix).sum().clamp(min=1e-30)
        inside = len(line) // groups
        window = count // inside
        if inside * groups != len(line) or window * inside != count:
            continue
        blocks = inverse.reshape(groups, inside, window, inside, window).diagonal(dim1=1, dim2=3)
        own = torch.linalg.inv(blocks.permute(0, 3, 1, 2).double())
        weights = matrix.reshape(groups, -1, inside, window).transpose(1, 2).double()
        lost = ((weights @ own) * weights).sum(dim=(2, 3)).reshape(-1) / whole
        there = line >= 0
        totals[line[there]] = np.nan_to_num(totals[line[there]])
        np.add.at(totals, line[there], lost.cpu().numpy()[there])
    return totals


class _Reader(fx.Interpreter):
    """Runs a network and keeps of each layer that computes something the name of the tensor that it reads,
    its weight as matrices, and the second moments of what they are multiplied with."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[tuple[str, Tensor, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and look at what it has read."""
        made = super().run_node(n)
        part = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        kind = None if part is None else kind_of(part)
        if part is not None and kind is not None and not kind.weight_only:
            source = n.args[0]
            assert isinstance(source, fx.Node)
            read = values_read(kind, part, self.env[source].float(), some_places(kind, made))
            weight = part.weight
            assert isinstance(weight, Tensor)
            moments = damped(read.mT @ read / read.shape[1])
            self.found.append((source.name, matrices(kind, part, weight.detach()).float(), moments))
        return made


def _random(traced: Traced, evidence: Evidence) -> Scores:
    """By lot, always the same: what every other criterion must beat."""
    return np.random.default_rng(0).permutation(len(traced.blocks)).astype(np.float64)


def _by_nni(pruner: str, traced: Traced, evidence: Evidence) -> Scores:
    """What a pruner of nni says of the layers that put a channel out, in shares of the layer's mean."""
    layers = list(_layers(traced))
    batches = [
        [_gradient_rows(module, rows, batch.get(f"{name}.weight")) for name, module, rows, _ in layers]
        for batch in evidence.gradients
    ]
    means = _Means(traced)
    worth = asked(pruner, [rows for _, _, rows, _ in layers], batches)
    for found, (_, _, _, line) in zip(worth, layers, strict=True):
        means.add(line, found / found.mean().clamp(min=1e-30))
    return means.found()


def _gradient_rows(module: nn.Module, rows: Tensor, gradient: Tensor | None) -> Tensor:
    found = None if gradient is None else _rows(module, gradient)
    return torch.zeros_like(rows) if found is None else found


CRITERIA: Mapping[str, Criterion] = {
    row.name: row
    for row in (
        Criterion("l2", lambda traced, evidence: _norms(traced, torch.square)),
        Criterion("l1", lambda traced, evidence: _norms(traced, torch.abs)),
        Criterion("batchnorm", _batch_norms),
        Criterion("median", _median),
        Criterion("taylor", _taylor, "gradients"),
        Criterion("second-order", _second_order, "inputs"),
        Criterion("random", _random),
        Criterion("nni.l1", partial(_by_nni, "L1NormPruner"), "weights", "nni"),
        Criterion("nni.l2", partial(_by_nni, "L2NormPruner"), "weights", "nni"),
        Criterion("nni.fpgm", partial(_by_nni, "FPGMPruner"), "weights", "nni"),
        Criterion("nni.taylor", partial(_by_nni, "TaylorPruner"), "gradients", "nni"),
    )
}
"""Name -> criterion; the first is the usual one."""


class CriterionError(ValueError):
    """A criterion that nobody knows."""


def criteria_of(names: Sequence[str]) -> list[Criterion]:
    """The rows of these names.

    Raises:
        CriterionError: there is none of a name, or what it is asked of is not installed.
    """
    for name in names:
        if name not in CRITERIA:
            raise CriterionError(
                f"criterion must name what says which channels are cut, not {name!r}; there are"
                f" {', '.join(CRITERIA)}"
            )
        package = CRITERIA[name].package
        if package and importlib.util.find_spec(package) is None:
            raise CriterionError(
                f"criterion {name!r} asks {package}, which is not installed: pip install"
                f" 'leanfront[{package}]', or take one of"
                f" {', '.join(row.name for row in CRITERIA.values() if not row.package)}"
            )
    return [CRITERIA[name] for name in names]
