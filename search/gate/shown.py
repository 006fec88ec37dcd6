"""Which operation is the first that differs, where two forms of a network do not put out the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.program import Arguments, called, evaluating, tensors_in
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.export.template import Template
from leanfront.compression.export.walk import shown
from leanfront.compression.graph import kernels, operation
from leanfront.compression.policy.precision import computes_in_integers
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import QUANTIZER, quantizers
from leanfront.search.gate.masked import Held, Kept, masked
from leanfront.search.gate.tensors import (
    FAR,
    FAR_IN_HALVES,
    FLOATS,
    HALVES,
    File,
    copied,
    in_steps,
    read_by,
    share_of_range,
    tolerance,
    width,
)

_MOST_NAMED = 4
_ONE_STEP, _RARE_STEPS = 1.05, 2.05
"""Steps by which one operation may differ from what it is in the file, at 99.9 % of its values and at all."""


@dataclass(frozen=True)
class _Call:
    """One call of a part of a module: the tensors that it read and put out."""

    name: str
    read: tuple[Tensor, ...]
    made: tuple[Tensor, ...]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor, by the name of its node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if isinstance(made, Tensor):
            self.seen[n.name] = made.detach().clone()
        return made


def every_tensor(module: fx.GraphModule, given: Arguments) -> dict[str, Tensor]:
    """Node name -> its tensor, of one call in evaluation mode."""
    recorder = _Recorder(module)
    with evaluating(module):
        recorder.run(*read_by(module.graph, copied(given, module)), enable_io_processing=False)
    return recorder.seen


def said(module: fx.GraphModule, node: fx.Node) -> str:
    """An operation for a sentence: its name, what it is, and the user's line where that is known."""
    if node.op == "call_module":
        return f"{node.target!r} ({type(module.get_submodule(str(node.target))).__name__})"
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    trace = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    lines = [line for line in trace if line.startswith("File ")]
    place = f", {lines[-1]}" if lines else ""
    return f"{node.name!r} ({what}{place})"


def first_in_capture(model: nn.Module, captured: fx.GraphModule, given: Arguments) -> str:
    """Where a captured network leaves the user's module: by the parts that both have under one name."""
    names = {str(node.target) for node in captured.graph.nodes if node.op == "call_module"}
    theirs, ours = _calls(model, names, given), _calls(captured, names, given)
    places: dict[str, int] = {}
    far = tolerance(model)
    different: list[str] = []
    for call in ours:
        place = places[call.name] = places.get(call.name, -1) + 1
        same = [other for other in theirs if other.name == call.name]
        if place >= len(same):
            continue  # not called in the user's module: what is in front of it
        if share_of_range(same[place].read, call.read) > far:
            if different:
                return f"the first operation that differs is {different[0]}"
            between = _between(captured, call.name)
            return f"the first operation that differs is in front of {call.name!r}{between}"
        if share_of_range(same[place].made, call.made) > far:
            part = captured.get_submodule(call.name)
            different.append(f"{call.name!r} ({type(part).__name__})")
    if different:
        return f"the first operation that differs is {different[0]}"
    last = [node for node in captured.graph.nodes if node.op == "output"]
    between = _said_between(captured, last[0]) if last else ""
    return f"the first operation that differs is behind the last layer{between}"


def _calls(module: nn.Module, names: set[str], given: Arguments) -> list[_Call]:
    found: list[_Call] = []
    handles = []
    reading: dict[str, list[tuple[Tensor, ...]]] = {}

    def before(name: str) -> Callable[..., None]:
        # before the call: an operation in place may change what was read
        return lambda part, args: reading.setdefault(name, []).append(_kept(args))

    def behind(name: str) -> Callable[..., None]:
        return lambda part, args, made: found.append(_Call(name, reading[name].pop(), _kept(made)))

    for name in sorted(names):
        try:
            part = module.get_submodule(name)
        except AttributeError:
            continue
        handles += [part.register_forward_pre_hook(before(name)), part.register_forward_hook(behind(name))]
    try:
        with evaluating(module):
            called(module, copied(given, module))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _kept(values: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone() for tensor in tensors_in(values))


def _between(module: fx.GraphModule, name: str) -> str:
    node = next(node for node in module.graph.nodes if node.op == "call_module" and node.target == name)
    return _said_between(module, node)


def _said_between(module: fx.GraphModule, node: fx.Node) -> str:
    """The operations between a node and the parts or inputs before it."""
    waiting, found = list(node.all_input_nodes), set()
    while waiting:
        one = waiting.pop()
        if one.op in ("call_function", "call_method") and one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    named = [said(module, one) for one in module.graph.nodes if one in found]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f": among {', '.join(named[:_MOST_NAMED])}{more}" if named else ""


def first_in_cut(whole: fx.GraphModule, cut: fx.GraphModule, kept: Kept, given: Arguments, held: Held) -> str:
    """Where a cut network leaves the uncut one with the removed channels out."""
    ours = every_tensor(cut, given)
    found: list[str] = []
    known: dict[fx.Node, tuple[torch.Size, Tensor]] = {}  # shape, and the channels that stay

    def seen(node: fx.Node, zeros: Tensor, others: Tensor) -> None:
        if found or node.name not in ours:
            return
        theirs = ours[node.name]
        expected = zeros if zeros.shape == theirs.shape else None
        if (axis := _cut_axis(zeros, theirs)) is not None:
            moved = (zeros != others).transpose(0, axis).flatten(1)
            stays = (~moved.any(1)).nonzero()[:, 0]
            for shape, before in (known[one] for one in node.all_input_nodes if one in known):
                if len(stays) != theirs.shape[axis] and shape == zeros.shape:
                    stays = before  # a gain of 0 hides what was removed
            if len(stays) == theirs.shape[axis]:
                known[node] = (zeros.shape, stays)
                expected = zeros.index_select(axis, stays)
        if expected is not None and share_of_range([expected], [theirs]) > FLOATS:
            found.append(said(whole, node))

    masked(whole, cut, kept, given, seen, held)
    return _sentence(found)


def _cut_axis(whole: Tensor, cut: Tensor) -> int | None:
    """The one axis along which a tensor was cut; None where there is none, or several."""
    if whole.dim() != cut.dim():
        return None
    axes = [axis for axis in range(whole.dim()) if whole.shape[axis] != cut.shape[axis]]
    return axes[0] if len(axes) == 1 else None


class _Led(fx.Interpreter):
    """Runs a network in which every operation reads what the file has computed, not what it has itself: so
    each is held against the file alone, and what rounding does to it does not reach the next."""

    def __init__(self, module: fx.GraphModule, theirs: Mapping[str, Tensor], steps: "_Steps") -> None:
        super().__init__(module)
        self.theirs, self.steps = theirs, steps
        self.largest = 0.0
        self.first: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        theirs = self.theirs.get(n.name)
        if theirs is None or not isinstance(made, Tensor):
            return made
        if theirs.shape != made.shape and theirs.numel() == made.numel():
            theirs = theirs.reshape(made.shape)  # a file may keep dimensions of one
        apart = self.steps.apart(n.name, made, theirs)
        self.largest = max(self.largest, apart)
        if apart > 1 and self.first is None:
            self.first = n
        return theirs.to(made.dtype) if theirs.shape == made.shape else made


@dataclass(frozen=True)
class _Steps:
    """What a node may differ by: ``grids``, name -> the step of the grid that it is held on; ``integers``:
    nodes that integer kernels make, which are held on none; all others compute in floats, and may differ by
    ``floats``, ``far`` from 0 by more (``of_floats``); ``shares``, which are parts of 1, by as much of that,
    however little comes out: engines compute a sigmoid to so many digits."""

    grids: Mapping[str, float]
    integers: frozenset[str]
    shares: frozenset[str]
    floats: float
    far: float

    def apart(self, name: str, ours: Tensor, theirs: Tensor) -> float:
        """How far, as a share of what is allowed: a value between two steps may be rounded either way."""
        if name in self.grids or name in self.integers:
            steps = {0: self.grids[name]} if name in self.grids else {}
            most, largest = in_steps([ours], [theirs], steps)
            return max(most / _ONE_STEP, largest / _RARE_STEPS)
        apart = share_of_range([ours], [theirs], far=self.far)
        if name in self.shares:
            apart *= min(1.0, width(ours, self.far))
        return apart / self.floats


@dataclass(frozen=True)
class Operations:
    """A file held against its network operation by operation. ``first``: a sentence about the first that
    differs, "" where none does."""

    first: str


def operations(
    template: Template, compressed: Compressed, example: Arguments, dialect: Dialect = QDQ
) -> Operations:
    """Hold every operation of a file against that of its network, each fed with what the file has
    computed."""
    model, values = shown(template, compressed, dialect)
    module = compressed.module
    names = _nodes_of_values(module, values)
    steps = _allowed(compressed)
    content = dialect.plain(model).SerializeToString()
    for optimise in (False, True) if dialect.fused else (False,):
        file = File(content, optimise)
        arrays = dict(zip(file.outputs, file.arrays(example), strict=True))
        theirs = {name: torch.as_tensor(arrays[value]) for value, name in names.items() if value in arrays}
        led = _Led(module, theirs, steps)
        with evaluating(module):
            led.run(*read_by(module.graph, copied(example, module)), enable_io_processing=False)
        if led.first is not None:
            how = ", as onnxruntime fuses it" if optimise else ""
            return Operations(f"{_sentence([_reads(module, led.first)])}{how}")
    return Operations("")


def _nodes_of_values(module: fx.GraphModule, values: Mapping[str, str]) -> dict[str, str]:
    """Value of a file -> the node of the network that computes it: of nodes that are one tensor of the file
    (a norm that is folded into its layer) the last, behind its quantizer if it has one."""
    quantized = {
        str(node.target).removeprefix(QUANTIZER): node.name
        for node in module.graph.nodes
        if node.op == "call_module" and str(node.target).startswith(QUANTIZER)
    }
    return {
        values[node.name]: quantized.get(node.name, node.name)
        for node in module.graph.nodes
        if node.name in values
    }


def _allowed(compressed: Compressed) -> _Steps:
    held = quantizers(compressed.module)
    grids = {
        node.name: held[str(node.target).removeprefix(QUANTIZER)].grid().scale
        for node in compressed.module.graph.nodes
        if node.op == "call_module" and str(node.target).startswith(QUANTIZER)
    }
    policy = compressed.policy
    integers = {
        node.name
        for kernel in kernels(compressed.network)
        if kernel.layer is not None and computes_in_integers(kernel.layer, policy[kernel.layer.name])
        for node in kernel.nodes
    }
    rows = {node.name: operation(node.op) for node in compressed.network.nodes}
    shares = {name for name, row in rows.items() if row.bounded and not row.clips}
    return _Steps(grids, frozenset(integers), frozenset(shares), *of_floats(compressed))


def of_floats(compressed: Compressed) -> tuple[float, float]:
    """Share of a tensor's range by which what computes in floats may differ between a network and its file,
    and how far from 0 its values may lie before that counts: more where layers have 16 bits."""
    floats = tolerance(compressed.module)
    if 16 in {layer.weight_bits for layer in compressed.policy.values()}:
        return max(floats, HALVES), FAR_IN_HALVES
    return floats, FAR


def _reads(module: fx.GraphModule, node: fx.Node) -> str:
    """An operation for a sentence; a quantizer stands for what it quantizes."""
    if node.op == "call_module" and str(node.target).startswith(QUANTIZER):
        return said(module, node.all_input_nodes[0])
    return said(module, node)


def _sentence(found: Sequence[str]) -> str:
    if not found:
        return "no operation can be named that differs first"
    return f"the first operation that differs is {found[0]}"
