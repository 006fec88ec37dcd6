"""What was cut or rounded put right without training: what each layer puts out is brought back to what it put
out before.

A layer that reads fewer channels, or others than before, gets the weights and the constant with which its
outputs are nearest to those of the uncompressed network (least squares: He et al. 2017, Channel Pruning,
equation 3; on what the compressed network reads, as in their section 3.2). Weights of few bits are then
rounded with regard to what they are multiplied with (``techniques/rounding.py``). One pass, in order: each
layer sees what those before it have become. The last layer of a residual branch makes up for what the other
operand of its addition has lost, too (their section 3.3).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leanfront.compression.capture.program import Arguments, evaluating
from leanfront.compression.export.weights import highest_code
from leanfront.compression.graph import Network
from leanfront.compression.graph.operations import by_aten
from leanfront.compression.layers import LayerKind, kind_of
from leanfront.compression.layers.products import (
    matrices,
    some_places,
    values_at,
    values_read,
    weight_of,
)
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import ActivationQuantizer, WeightQuantizer
from leanfront.compression.techniques.rounding import damped, rounded
from leanfront.compression.training.batch_norms import COARSE_BITS

_LEAST_GAIN = 0.01
"""Share of the largest gain of a batch norm below which a channel says next to nothing in its sum."""

MOST_OPERATIONS = 1.5e11
"""Multiplications that one layer may take to be fitted and rounded: some seconds of two cores. One that reads
25,088 values (VGG-16's first dense one) would take minutes in every trial."""

Classes = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Reference:
    """What a network puts out, layer by layer, on some inputs: what others that are made from it are fitted
    to.

    inputs: as the network takes them. classes: of its channels, as ``Traced`` has them. places: layer -> the
    places of its output that were looked at (pixels of some images), (places,). shapes: of its output.
    outputs: (places, channels); others: of layers in front of an addition, the same of its other operand,
    where that is of the same shape.
    """

    inputs: Arguments
    network: Network
    classes: Classes
    places: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    outputs: Mapping[str, Tensor]
    others: Mapping[str, Tensor]

    @staticmethod
    def of(module: fx.GraphModule, network: Network, classes: Classes, inputs: Arguments) -> "Reference":
        """Of a captured network, which stays as it is; in float32. ``inputs``: in the order of its own."""
        with evaluating(module), torch.autocast(_device(inputs).type, enabled=False):
            heard = _Listener(module)
            heard.run(*inputs.tensors, enable_io_processing=False)
        return Reference(inputs, network, classes, heard.places, heard.shapes, heard.outputs, heard.others)


def reconstruct(compressed: Compressed, reference: Reference, changed: frozenset[str]) -> None:
    """Fit the layers of a compressed network to a reference, in place.

    Args:
        compressed: made from the reference's network; its tensors are not rounded yet.
        reference: what is wanted.
        changed: the nodes whose values are not those of the reference (``batch_norms.changed_nodes``); layers
            that are none of them stay as they are.
    """
    with evaluating(compressed.module):
        fitter = _Fitter(compressed, reference, changed)
        fitter.run(*reference.inputs.tensors, enable_io_processing=False)


@dataclass(frozen=True, eq=False)
class _Use:
    """The one use of a layer. constant: what is added behind it, its bias or (taken away) the mean of a batch
    norm; norm: the batch norm in front of an addition, if no more is there; other: the other operand."""

    node: fx.Node
    part: nn.Module
    kind: LayerKind
    constant: Tensor | None = None
    norm: _BatchNorm | None = None
    other: fx.Node | None = None


def _uses(module: fx.GraphModule) -> dict[fx.Node, _Use]:
    """The layers that are used once and compute something."""
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    once = {name for name, count in calls.items() if count == 1}
    found = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target) in once:
            part = module.get_submodule(str(node.target))
            kind = kind_of(part)
            if kind is not None and not kind.weight_only:
                constant = _constant(module, node, part, once)
                found[node] = _Use(node, part, kind, constant, *_joined(module, node, once))
    return found


def _norm_behind(module: fx.GraphModule, node: fx.Node, once: set[str]) -> _BatchNorm | None:
    after = next(iter(node.users)) if len(node.users) == 1 else None
    name = str(after.target) if after is not None and after.op == "call_module" else None
    part = module.get_submodule(name) if name is not None and name in once else None
    return part if isinstance(part, _BatchNorm) and part.track_running_stats else None


def _constant(module: fx.GraphModule, node: fx.Node, part: nn.Module, once: set[str]) -> Tensor | None:
    if isinstance(bias := getattr(part, "bias", None), Tensor):
        return bias
    norm = _norm_behind(module, node, once)
    return None if norm is None else norm.running_mean


def _joined(
    module: fx.GraphModule, node: fx.Node, once: set[str]
) -> tuple[_BatchNorm | None, fx.Node | None]:
    """The batch norm between a layer and an addition, and the addition's other operand."""
    norm = _norm_behind(module, node, once)
    end = node if norm is None else next(iter(node.users))
    while len(end.users) == 1:
        (after,) = end.users
        if after.op == "call_module":
            if not isinstance(module.get_submodule(str(after.target)), ActivationQuantizer):
                break
            end = after
            continue
        row = by_aten.get(str(after.target)) if after.op == "call_function" else None
        others = [one for one in after.all_input_nodes if one is not end]
        if row is not None and row.adds and not after.kwargs and len(others) == 1:
            return norm, others[0]
        break
    return None, None


def _device(inputs: Arguments) -> torch.device:
    return inputs.tensors[0].device


class _Listener(fx.Interpreter):
    """Runs a network and notes what its layers put out."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.places: dict[str, Tensor] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.outputs: dict[str, Tensor] = {}
        self.others: dict[str, Tensor] = {}
        self._uses = _uses(module)
        self._joins: dict[fx.Node, list[_Use]] = {}
        for use in self._uses.values():
            if use.other is not None:
                self._joins.setdefault(use.other, []).append(use)

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and note it."""
        made = super().run_node(n)
        if n in self._uses:
            use = self._uses[n]
            self.places[n.name], self.shapes[n.name] = some_places(use.kind, made), made.shape
            self.outputs[n.name] = values_at(use.kind, made, self.places[n.name]).float()
            if use.other is not None and use.other in self.env:
                self._join(use, self.env[use.other])
        for use in self._joins.get(n, ()):
            if use.node.name in self.shapes:  # else it waits for the layer
                self._join(use, made)
        return made

    def _join(self, use: _Use, other: Any) -> None:
        name = use.node.name
        if isinstance(other, Tensor) and other.shape == self.shapes[name]:
            self.others[name] = values_at(use.kind, other, self.places[name]).float()


class _Fitter(fx.Interpreter):
    """Runs a compressed network and changes each layer before it is computed."""

    def __init__(self, compressed: Compressed, reference: Reference, changed: frozenset[str]) -> None:
        super().__init__(compressed.module)
        self._classes, self._reference = compressed.classes, reference
        self._uses = {
            node: use
            for node, use in _uses(compressed.module).items()
            if node.name in reference.outputs and node.name in changed
        }
        self._others: dict[fx.Node, Tensor] = {}
        self._wanted_others = {use.other for use in self._uses.values()}

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node; a layer after it was fitted."""
        if n in self._uses:
            given = self.env[n.args[0]]  # type: ignore[index]
            with torch.autocast(given.device.type, enabled=False):
                self._fit(self._uses[n], given)
        made = super().run_node(n)
        if n in self._wanted_others:  # it may have been let go when it is asked for
            self._others[n] = made
        return made

    def _fit(self, use: _Use, given: Tensor) -> None:
        """Change weights and constant of a layer that reads ``given``."""
        part, kind, constant = use.part, use.kind, use.constant
        held, quantizer = _held(part)
        if held is None:
            return
        weight = matrices(kind, part, held).float()
        if _operations(weight, quantizer) > MOST_OPERATIONS:
            return
        read = values_read(kind, part, given.float(), self._reference.places[use.node.name])
        wanted = self._wanted(use)
        wanted = wanted.reshape(len(wanted), *weight.shape[:2]).transpose(0, 1)
        mean, mean_wanted = read.mean(dim=1), wanted.mean(dim=1)
        if constant is not None:
            read, wanted = read - mean[:, None], wanted - mean_wanted[:, None]
        moments = damped(read.mT @ read / read.shape[1])
        missed = read.mT @ (wanted - read @ weight.mT) / read.shape[1]
        factor, failed = torch.linalg.cholesky_ex(moments)
        if bool(failed.any()) or not bool(torch.isfinite(missed).all()):
            return  # of values that are none nothing can be learnt: the score will say so
        weight = weight + torch.cholesky_solve(missed, factor).mT
        shown = _set(use, held, quantizer, weight, moments)
        if constant is not None:
            shift = (mean_wanted - (shown @ mean[..., None])[..., 0]).reshape(-1)
            constant.copy_(shift if constant is getattr(part, "bias", None) else constant - shift)

    def _wanted(self, use: _Use) -> Tensor:
        """What a layer is to put out without what is added behind it, (places, channels)."""
        name = use.node.name
        whole = self._reference.classes[name]
        left = np.flatnonzero((whole < 0) | np.isin(whole, self._classes[name]))
        stays = torch.from_numpy(left).to(self._reference.outputs[name].device)
        wanted = self._reference.outputs[name][:, stays]
        other = self._others.get(use.other) if use.other is not None else None
        if other is None or name not in self._reference.others:
            return wanted
        if not _spread_alike(use.kind, other, self._reference.shapes[name]):
            return wanted
        had, places = self._reference.others[name][:, stays], self._reference.places[name]
        has = values_at(use.kind, other, places).float()
        if has.shape != had.shape:
            return wanted
        if use.norm is None:
            return wanted + had - has
        assert use.norm.running_var is not None
        gain = torch.rsqrt(use.norm.running_var + use.norm.eps)
        gain = gain * use.norm.weight if use.norm.affine else gain
        heard = gain.abs() > _LEAST_GAIN * gain.abs().max()
        return wanted + torch.where(heard, (had - has) / torch.where(heard, gain, 1.0), 0.0)


def _spread_alike(kind: LayerKind, other: Any, shape: torch.Size) -> bool:
    """Whether something is a tensor of the shape of what a layer puts out, but for the number of channels."""
    if not isinstance(other, Tensor) or other.dim() != len(shape):
        return False
    axis = kind.channel_axis(len(shape))
    return all(d == axis or size == shape[d] for d, size in enumerate(other.shape))


def _held(part: nn.Module) -> tuple[Tensor | None, WeightQuantizer | None]:
    """The weight of a layer as training changes it, and what rounds it; None where another technique shows
    something else of it."""
    if not parametrize.is_parametrized(part, "weight"):
        weight = part.weight
        assert isinstance(weight, Tensor)
        return weight, None
    steps: Any = part.parametrizations["weight"]  # type: ignore[index]
    if len(steps) == 1 and isinstance(steps[0], WeightQuantizer):
        return steps.original, steps[0]
    return None, None


def _rounds(quantizer: WeightQuantizer) -> bool:
    """Whether its weights are so coarse that it matters how they are rounded; the scale of 1 bit follows
    them."""
    return 1 < quantizer.bits <= COARSE_BITS


def _operations(weight: Tensor, quantizer: WeightQuantizer | None) -> float:
    """Multiplications that it takes to fit weights (groups, outputs, values): a Cholesky factor of their
    second moments, and a product with these, or four where weights are rounded one after the other."""
    groups, outputs, values = weight.shape
    coarse = quantizer is not None and _rounds(quantizer)
    return float(groups) * values**2 * (values / 3 + (4 * outputs if coarse else outputs))


def _set(
    use: _Use, held: Tensor, quantizer: WeightQuantizer | None, weight: Tensor, moments: Tensor
) -> Tensor:
    """Give a layer weights (groups, outputs, values), on its grid where it has one; what it shows of them."""
    if quantizer is None or not _rounds(quantizer):
        held.copy_(weight_of(use.kind, use.part, weight, held))
        if quantizer is not None:
            quantizer.clip.fill_(1.0)
    else:
        found = rounded(weight, moments, quantizer.bits)
        held.copy_(weight_of(use.kind, use.part, found.weight, held))
        largest = found.codes.abs().amax(dim=2)
        top = highest_code(quantizer.bits)
        quantizer.clip.copy_(torch.where(largest > 0, top / largest.clamp(min=1.0), 1.0).reshape(-1))
        if quantizer.step is not None:
            quantizer.step.copy_(found.scales.reshape(-1))
    shown = use.part.weight
    assert isinstance(shown, Tensor)
    return matrices(use.kind, use.part, shown.detach()).float()
