"""Dialects: how a kind of file spells layers, tensors on a grid and packed weights, and which engine runs it.

``walk`` walks the graph of a network, ``network_model`` makes one of shapes alone;
both ask a dialect how to write what is in it. A kind of file of your own is a subclass of ``Dialect``, made
known with ``register`` (in a task file, for instance) and asked for by name. No torch.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from leanfront.compression.export.onnx_writer import Writer
from leanfront.compression.export.weights import LayerWeights, along, bias_codes, finer_steps, in_groups
from leanfront.compression.graph import Kernel, Layer, Network, Spelling
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.dynamic import check_dynamic, is_dynamic
from leanfront.compression.policy.grids import ActivationGrid, GridKind, all_of
from leanfront.compression.policy.guards import Guarded
from leanfront.compression.policy.layer_size import stored_bits
from leanfront.compression.policy.precision import computes_in_integers, summands

if TYPE_CHECKING:
    from leanfront.compression.export.template import Template
    from leanfront.compression.export.zeros_in_file import Counted


class DialectError(ValueError):
    """A kind of file that is not known, that cannot be written here, or that cannot hold a network."""


@dataclass(frozen=True)
class LayerCall:
    """One layer to be written.

    op: of ONNX: Conv, ConvTranspose, Gemm, for one product at each position MatMul, or Gather. read: the
    tensor that it reads, and ``grid`` that tensor's grid, if it has one. weights: in torch's layout, for a
    MatMul (in, out). between_integers, clipped: see ``Guarded``. name: of its node; where a layer is used
    several times each use has one of its own, and what it has in common with the others is written once.
    """

    layer: Layer
    op: str
    read: str
    weights: LayerWeights
    policy: LayerPolicy
    grid: ActivationGrid | None
    between_integers: bool
    clipped: bool
    attributes: Mapping[str, Any]
    name: str

    @property
    def axis(self) -> int:
        """Of the output channels in the weight."""
        return 1 if self.op in ("ConvTranspose", "MatMul", "Gather") else 0

    @property
    def integer(self) -> bool:
        """Whether it computes in integers."""
        return computes_in_integers(self.layer, self.policy)


def layer_call(
    kernel: Kernel,
    op: str,
    read: str,
    weights: LayerWeights,
    policy: LayerPolicy,
    grids: Mapping[str, ActivationGrid],
    guards: Guarded,
    attributes: Mapping[str, Any],
) -> LayerCall:
    """The layer of a kernel to be written. ``weights``: in torch's layout; ``grids``: of all kernels."""
    assert kernel.layer is not None
    return LayerCall(
        layer=kernel.layer,
        op=op,
        read=read,
        weights=weights.transposed() if op == "MatMul" else weights,
        policy=policy,
        grid=grids.get(kernel.nodes[0].source),
        between_integers=kernel.name in guards.between,
        clipped=kernel.name in guards.clipped,
        attributes=attributes,
        name=kernel.label,
    )


class Opened(Protocol):
    """A file, opened by what runs it on this machine."""

    @property
    def inputs(self) -> Iterable[str]:
        """Names of its inputs, those that it reads."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of its outputs, in their order."""

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What it puts out for inputs by name, as the network has them: floats, channels first."""


@dataclass(frozen=True)
class Arithmetic:
    """How an engine's kernels get from sums of codes to codes, in floats of 32 bits, operation by operation.

    rescales: the bias is one of the sum's codes, and one factor takes the sum onto the next grid; else the
    sum is multiplied by its step, the bias is added in floats, and that is rounded as other floats are.
    rounds: floats are divided by a grid's step, multiplied by its reciprocal, or spread: multiplied by the
    number of codes over the width of the range. adds: two tensors on grids as floats, each times the ratio of
    its step and the sum's, with fixed multipliers of integers (with which tensors also go from one grid to
    another), or, where one is still in floats, in steps of the other.
    """

    rescales: bool = False
    rounds: Literal["divides", "multiplies", "spread"] = "divides"
    adds: Literal["floats", "ratios", "fixed", "in steps"] = "floats"


@dataclass(frozen=True)
class Rule:
    """What an engine asks of a file, checked where the engine is not. source: where it says so. broken:
    sentences, one for each place where a file breaks the rule."""

    says: str
    source: str
    broken: Callable[[onnx.ModelProto], list[str]]


class Dialect:
    """A kind of file. These methods write everything in floats; a dialect overrides what it spells otherwise.

    name: what a user asks for. engine: what runs it, as profiles name it; suffix: of the file's name.
    modules, extra: what writing and running it needs besides leanfront's own packages, and what of leanfront
    brings them. runs_here: its answers can be had on this machine; what is promised of a file whose answers
    cannot is not checked, and said to be so. fused: onnxruntime runs it, and the kernels that it fuses are
    held against ``promises_integers``. limited: its engine has not all operations of ONNX; ``cannot`` says
    which. halves: layers of 16 bits are in float16 in the file. dynamic: layers may be quantized while they
    run (``compression.policy.dynamic``). narrowest_tensor: bits of the narrowest integers that its kernels
    read. group_norms: it runs GroupNormalization itself, as of opset 21. pads_means: the zeros around a
    tensor, where it takes means of windows, are those of the tensor's grid. drops_dimensions: what there is
    for each channel behind a sum or a mean that drops dimensions is put where the channels are then. rules:
    what its engine asks of it.
    grids: where the zeros of tensors' grids lie, for a network that is trained for such a file.
    rounds_biases: integer kernels add codes, so that biases have steps; else floats. rounds_summands: what a
    layer puts out is rounded to its grid before a sum; else the engine adds it as it is. arithmetic: of its
    integer kernels (``compression.export.integer_form``). spelling: what the
    size of a file depends on. priced: latency tables are made of such files, so that latencies are promises
    about it. restates: a tensor that is only moved is held on its grid once more, as onnxruntime wants it.
    exact: such a file puts out what the torch network does, but for the rounding of floats and of values
    between two steps: it is held against the network before it is written. accuracy_tolerance, agreement: how
    far accuracies of file and torch network may lie apart, and the least share of examples on which both give
    the same answer.
    """

    name = ""
    engine = "onnxruntime"
    suffix = ".onnx"
    modules: tuple[str, ...] = ()
    extra = ""
    runs_here = True
    fused = True
    limited = False
    halves = False
    dynamic = False
    narrowest_tensor = 1
    group_norms = False
    pads_means = True
    drops_dimensions = True
    rules: tuple[Rule, ...] = ()
    grids: GridKind = "affine"
    rounds_biases = True
    rounds_summands = True
    arithmetic = Arithmetic()
    spelling = Spelling()
    priced = False
    restates = True
    exact = False
    accuracy_tolerance = 0.002
    agreement = 0.995

    @property
    def missing(self) -> str:
        """Which packages are not installed, and how to install them; "" where none is missing."""
        lacking = [module for module in self.modules if find_spec(module) is None]
        if not lacking:
            return ""
        return (
            f"files of kind {self.name!r} need the package {lacking[0].replace('_', '-')}, which is not"
            f" installed: pip install 'leanfront[{self.extra}]'"
        )

    @property
    def not_run(self) -> str:
        """Why a file's own engine does not run it on this machine; "" where it does."""
        return ""

    @property
    def ran(self) -> str:
        """What runs such files on this machine, with its version."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def cannot(self, node: onnx.NodeProto) -> str:
        """Why the engine cannot run a node of the float graph, as in "no kernel for Einsum"; "" where it
        can."""
        return ""

    def takes(self, layer: Layer, weight_bits: int, activation_bits: int) -> bool:
        """Whether such a file can hold a layer with these bits, and the engine has a kernel for it."""
        return activation_bits >= self.narrowest_tensor

    def held_bits(
        self, kernels: tuple[Kernel, ...], bits: Mapping[str, int], outputs: Sequence[str]
    ) -> dict[str, int]:
        """Kernel -> bits at which such a file holds its output, where a policy wants it at ``bits``; 32: in
        floats, those among them that the engine adds as they are. ``outputs``: of the network."""
        if self.rounds_summands:
            return dict(bits)
        return {**bits, **dict.fromkeys(summands(kernels, outputs), 32)}

    def finer(self, layer: Layer, policy: LayerPolicy) -> int:
        """How many steps of an integer layer's kernel make one code of its weight."""
        return finer_steps(policy.weight_bits)

    def finished(self, model: onnx.ModelProto, network: Network, policy: Policy) -> bytes:
        """The file, of the graph that the walk wrote."""
        return bytes(model.SerializeToString())

    def counted(self, content: bytes) -> "Counted":
        """How many weights of a file are 0."""
        from leanfront.compression.export.zeros_in_file import in_onnx

        return in_onnx(content)

    def plain(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph that the walk wrote, in operations that onnxruntime has."""
        return model

    def measured(self, graph: "Template") -> Network | None:
        """The network, with what its nodes take in such a file; None: what they take in one of ONNX."""
        return None

    def opened(self, content: bytes, threads: int = 1) -> Opened | None:
        """A file, ready to run; None: onnxruntime runs it as it is.

        Raises:
            DialectError: the engine refuses the file.
        """
        return None

    def promises_integers(self, layer: Layer, policy: LayerPolicy) -> bool:
        """Whether onnxruntime runs a layer of such a file as an integer kernel; where not, as a float one."""
        return False

    def quantized(self, out: Writer, tensor: str, grid: ActivationGrid) -> str:
        """Hold a tensor on a grid; the tensor that its readers read."""
        return tensor

    def clips(self, bits: int) -> bool:
        """Whether a tensor of so many bits is cut to its grid's range, so that a ReLU6 may be a ReLU."""
        return False

    def padded(self, out: Writer, tensor: str, pads: str, grid: ActivationGrid) -> str:
        """Zeros around a tensor that is held on a grid."""
        return out.add("Pad", [tensor, pads])

    def reads(self, out: Writer, call: LayerCall) -> str:
        """The tensor that a layer reads."""
        return call.read

    def weight(self, out: Writer, call: LayerCall) -> str:
        """A layer's weight, as the tensor that its operation reads."""
        return out.own(call.weights.floats(call.axis).astype(np.float32))

    def bias(self, out: Writer, call: LayerCall) -> str:
        """A layer's bias, (out_channels,), the same."""
        return out.own(call.weights.bias)

    def layer(self, out: Writer, call: LayerCall) -> str:
        """A layer with its weights; the tensor that it puts out. Its node bears the layer's name."""
        name = call.name
        output = "" if name.startswith(("input", "output")) else name  # the file's own are called so
        if call.layer.looked_up:
            return self.looked_up(out, call, output)
        if call.layer.weight_only:
            return self.weight(out, call)
        read = self.reads(out, call)
        # a use that reads a constant computes in floats beside others in integers
        kind = "weight" if call.integer else "weight in floats"
        weight = out.once((kind, call.layer.name), lambda: self.weight(out, call))
        # what integer kernels add, where it is rounded, is counted in steps of what they read
        own = call.name if call.integer and self.rounds_biases else call.layer.name
        bias = out.once(("bias", own), lambda: self.bias(out, call))
        if call.op == "MatMul":
            return out.add("Add", [out.add("MatMul", [read, weight], name=name), bias])
        attributes = {"transB": 1} if call.op == "Gemm" else call.attributes
        return out.add(call.op, [read, weight, bias], name=name, output=output, **attributes)

    def looked_up(self, out: Writer, call: LayerCall, output: str) -> str:
        """Rows of a table; the tensor of floats, which is to be called ``output`` where that is not empty."""
        return out.add(call.op, [self.weight(out, call), call.read], name=call.layer.name, output=output)


class Qdq(Dialect):
    """QDQ as onnxruntime fuses it, the kind that runs fast.

    Integer layers become DequantizeLinear -> Conv or Gemm -> (Relu) -> QuantizeLinear with unsigned 8-bit
    activations, signed weights and int32 biases. Weights of 1 to 4 bits are stored packed (bits of bytes,
    INT2, INT4) and become int8, which onnxruntime folds away when the file is loaded: the file is small, the
    kernel is the int8 one.
    """

    name = "onnx"
    priced = True
    exact = True
    dynamic = True
    arithmetic = Arithmetic(rescales=True, adds="ratios")

    def promises_integers(self, layer: Layer, policy: LayerPolicy) -> bool:
        """Wherever its policy says so and onnxruntime has a kernel."""
        return computes_in_integers(layer, policy) or is_dynamic(policy)

    def quantized(self, out: Writer, tensor: str, grid: ActivationGrid) -> str:
        """QuantizeLinear and DequantizeLinear behind the tensor."""
        scale, zero = out.grid(grid)
        codes = out.add("QuantizeLinear", [tensor, scale, zero])
        if self.clips(grid.bits):
            # fewer levels than the storage type has; in floats it would keep kernels from fusing
            top = out.constant(np.uint8(2**grid.bits - 1))
            codes = out.add("Clip", [codes, out.constant(np.uint8(0)), top])
        return out.dequantized(codes, scale, zero)

    def clips(self, bits: int) -> bool:
        """Below the 8 bits of the type that holds the codes."""
        return bits < 8

    def padded(self, out: Writer, tensor: str, pads: str, grid: ActivationGrid) -> str:
        """Zeros around the codes themselves: onnxruntime would dequantize, pad and quantize again."""
        scale, zero = out.grid(grid)
        codes = out.add("Pad", [out.codes[tensor], pads, zero])
        return out.dequantized(codes, scale, zero)

    def reads(self, out: Writer, call: LayerCall) -> str:
        """Behind an operation that onnxruntime does not see through, where it would silently turn a float
        layer between integer tensors into an integer one."""
        return self.opaque(out, call.read) if call.between_integers else call.read

    def layer(self, out: Writer, call: LayerCall) -> str:
        """With the same behind a layer that onnxruntime would leave in floats for what clips its output."""
        if is_dynamic(call.policy):
            return self.run_time(out, call)
        made = super().layer(out, call)
        return self.opaque(out, made) if call.clipped and self.fused else made

    def run_time(self, out: Writer, call: LayerCall) -> str:
        """A linear layer that quantizes what it reads while it runs; onnxruntime makes one kernel of it."""
        held = call.weights if call.op == "MatMul" else call.weights.transposed()
        assert held.codes is not None
        assert held.scales is not None
        codes, step, zero = out.several("DynamicQuantizeLinear", [self.reads(out, call)], 3)
        stored: dict[str, NDArray[Any]] = {"codes": held.codes, "scales": held.scales, "bias": held.bias}
        weight, scales, bias = (
            out.once((what, call.layer.name), partial(out.own, values)) for what, values in stored.items()
        )
        sums = out.add("MatMulInteger", [codes, weight, zero], name=call.name)
        sums = out.add("Cast", [sums], to=TensorProto.FLOAT)
        sums = out.add("Mul", [sums, out.add("Mul", [step, scales])])
        named = call.op == "Gemm" and not call.name.startswith(("input", "output"))
        return out.add("Add", [sums, bias], output=call.name if named else "")

    @staticmethod
    def opaque(out: Writer, tensor: str) -> str:
        """The same values, behind an operation that onnxruntime does not see through."""
        return out.add("Max", [tensor, out.constant(np.float32(-3e38))])

    def weight(self, out: Writer, call: LayerCall) -> str:
        """Codes in few bits, or floats in 16, decoded once, when the file is loaded."""
        held, bits = call.weights, call.policy.weight_bits
        if held.codes is None or held.scales is None:
            if bits != 16:
                return super().weight(out, call)
            return out.add("Cast", [out.own(_half(call))], to=TensorProto.FLOAT)
        stored = self.stored_bits(bits)
        if not call.integer:  # a float kernel, and a small file
            return self.decoded(out, call, held.codes, held.scales)
        finer = self.finer(call.layer, call.policy)
        if stored == 1:
            name = out.add("Cast", [out.signs(held.codes, finer)], to=TensorProto.INT8)
        elif stored < 8:
            name = out.add("Cast", [self._codes(out, call, held.codes)], to=TensorProto.FLOAT)
            name = out.add("Mul", [name, out.constant(np.float32(finer))])
            name = out.add("Cast", [name], to=TensorProto.INT8)
        elif finer == 1:
            name = self._codes(out, call, held.codes)
        else:
            name = out.packed(held.codes * np.int8(finer), 8)
        decoding = [name, out.own(held.scales / np.float32(finer))]
        if call.layer.shape.op == "linear":
            # onnxruntime fuses an integer Gemm only when zero points are there, a Conv without, too
            decoding.append(out.constant(np.zeros(held.scales.shape, dtype=np.int8)))
        return out.add("DequantizeLinear", decoding, axis=call.axis)

    def _codes(self, out: Writer, call: LayerCall, codes: NDArray[np.int8]) -> str:
        """A layer's codes as they are, stored once for all its uses."""
        bits = self.stored_bits(call.policy.weight_bits)
        return out.once(("codes", call.layer.name), lambda: out.packed(codes, bits))

    def stored_bits(self, weight_bits: int) -> int:
        """Bits of the type that holds a weight's codes; single bits are unpacked from bytes, whatever types
        there are."""
        return stored_bits(weight_bits, self.spelling)

    def decoded(
        self, out: Writer, call: LayerCall, codes: NDArray[np.int8], scales: NDArray[np.float32]
    ) -> str:
        """The weight of a layer that computes in floats, from its codes. Where a scale is for a channel of
        one group alone they are multiplied in groups: else it is stored once for each channel that is read.
        """
        grouped = call.layer.groups_apart
        held = in_groups(codes, len(scales), call.axis) if grouped else codes
        stored = self.stored_bits(call.policy.weight_bits)
        if stored == 1:
            values = out.signs(held, 1)
        else:
            packed = out.packed(held, stored) if grouped else self._codes(out, call, held)
            values = out.add("Cast", [packed], to=TensorProto.FLOAT)
        if not grouped:
            return out.add("Mul", [values, out.own(along(scales, codes.shape, call.axis))])
        values = out.add("Mul", [values, out.own(scales.reshape(held.shape[0], 1, -1, 1))])
        return out.add("Reshape", [values, out.own(np.array(codes.shape, dtype=np.int64))])

    def looked_up(self, out: Writer, call: LayerCall, output: str) -> str:
        """Rows of codes, decoded once they are looked up: as fast as rows of floats, and a table of 8 bits or
        fewer takes a quarter of the memory while the file is run, too."""
        held = call.weights
        if held.codes is None or held.scales is None:
            if call.policy.weight_bits != 16:
                return super().looked_up(out, call, output)
            rows = out.add(call.op, [out.own(_half(call)), call.read], name=call.layer.name)
            return out.add("Cast", [rows], output=output, to=TensorProto.FLOAT)
        bits = self.stored_bits(call.policy.weight_bits)
        table = out.signs(held.codes, 1) if bits == 1 else out.packed(held.codes, bits)
        if bits < 8:
            table = out.add("Cast", [table], to=TensorProto.INT8)
        rows = out.add(call.op, [table, call.read], name=call.layer.name)
        decoded = out.add("Cast", [rows], to=TensorProto.FLOAT)
        return out.add("Mul", [decoded, out.own(held.scales)], output=output)

    def bias(self, out: Writer, call: LayerCall) -> str:
        """Of an integer layer as int32: a float one would make onnxruntime quantize layers on its own."""
        held = call.weights
        if not call.integer or held.scales is None or call.grid is None:
            return super().bias(out, call)
        codes, scales = bias_codes(held, self.finer(call.layer, call.policy), call.grid.scale)
        stored = [out.own(codes), out.own(scales)]
        if call.layer.shape.op == "linear":
            stored.append(out.constant(np.zeros_like(codes)))
        return out.add("DequantizeLinear", stored, axis=0)


def _half(call: LayerCall) -> NDArray[np.float16]:
    """A layer's weight, which was rounded to 16 bits before (``layer_weights``)."""
    with np.errstate(over="ignore"):
        return call.weights.floats(call.axis).astype(np.float16)


QDQ = Qdq()
_REGISTERED: dict[str, Dialect] = {QDQ.name: QDQ}
_ROOM = "leanfront.compression.export"
BUILT_IN: Mapping[str, str] = {
    QDQ.engine: QDQ.name,
    **{name: name for name in ("openvino", "tensorrt", "tflite", "qonnx")},
}  # fmt: skip
"""Engine -> the kind of file that is its own. Each is a module of its name in this room, imported (and
registered by it) when somebody asks: most need packages of their own."""


def register(dialect: Dialect) -> None:
    """Make a kind of file known by its name. The same name again takes the place of what was registered
    before: a task file may be loaded twice.

    Raises:
        DialectError: the name is empty, or that of leanfront's own kind.
    """
    if not dialect.name or dialect.name == QDQ.name:
        raise DialectError(
            f"a kind of file needs a name of its own, other than {QDQ.name!r}; {type(dialect).__name__} has"
            f" {dialect.name!r}"
        )
    _REGISTERED[dialect.name] = dialect


def dialect_of(name: str) -> Dialect:
    """The kind of file of a name.

    Raises:
        DialectError: there is none; those that there are, are listed.
    """
    if name not in _REGISTERED and name in BUILT_IN.values():
        import_module(f"{_ROOM}.{name}")
    if name not in _REGISTERED:
        own = [known for known in _REGISTERED if known not in BUILT_IN.values()]
        known = ", ".join(dict.fromkeys([QDQ.name, *own, *BUILT_IN.values()]))
        raise DialectError(
            f"no kind of file is called {name!r}; there are {known}. A task"
            " file adds one with leanfront.compression.export.dialects.register"
        )
    return _REGISTERED[name]


def dialect_for(to: str | None, engine: str) -> Dialect:
    """The kind of file that somebody asked for, else the one that an engine runs.

    Raises:
        DialectError: there is none of that name, or what it needs is not installed.
    """
    dialect = dialect_of(to or BUILT_IN[engine])
    if dialect.missing:
        otherwise = "" if to else f"; or ask for a file for onnxruntime: --to {QDQ.name}, [export] to"
        raise DialectError(f"{dialect.missing}{otherwise}")
    return dialect


_BITS = (*range(1, 9), 16, 32)
_PAIRS = list(itertools.product(_BITS, _BITS))


def _apart(one: tuple[int, int], other: tuple[int, int]) -> float:
    """How far two pairs of bits lie apart: in octaves, activations first."""
    return sum(abs(math.log2(a / b)) for a, b in zip(one, other, strict=True))


def check_holds(dialect: Dialect, network: Network, pairs: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Whether such files can hold a network under any policy with these bits.

    Args:
        pairs: layer -> bits of weights and activations that it may have.

    Raises:
        DialectError: a pair of bits has no kernel; the sentence names where, and what is nearest.
    """
    for layer in network.layers:
        wanted = pairs.get(layer.name, ())
        good = [pair for pair in _PAIRS if dialect.takes(layer, *pair)]
        for pair in wanted:
            if pair in good:
                continue
            near = min(good, key=partial(_apart, pair), default=None)
            nearest = f"; the nearest that it has is {near[0]} with {near[1]}" if near else ""
            raise DialectError(
                f"{dialect.engine} has no kernel for layer {layer.name!r} with weights of {pair[0]} and"
                f" activations of {pair[1]} bits{nearest}; leave the pair out of [space] weight_bits and"
                " activation_bits"
            )


def check_operations(dialect: Dialect, graph: onnx.GraphProto, prefix: str) -> None:
    """Whether the engine has all operations of a network's float graph. ``prefix``: of the values that are
    tensors of the network, which name the place.

    Raises:
        DialectError: it has not; the sentence names the first with its place.
    """
    place, lacking = "", []
    for node in reversed(graph.node):  # nodes within a tensor's computation come before the one that names it
        named = [value.removeprefix(prefix) for value in node.output if value.startswith(prefix)]
        place = named[0] if named else place
        if why := dialect.cannot(node):
            lacking.append(f"{place!r}: {why}")
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise DialectError(
            f"{dialect.engine} cannot run this network, at {lacking[-1]}{more}; compress a part without it,"
            f" or ask for a file for onnxruntime: [export] to = {QDQ.name!r}"
        )


def check_grids(dialect: Dialect, grids: Mapping[str, ActivationGrid]) -> None:
    """Whether the grids that a network was trained with are such as the engine has.

    Raises:
        DialectError: one is not; the sentence says what to do.
    """
    for tensor, grid in grids.items():
        if not grid.is_of(dialect.grids):
            where = f"tensor {tensor!r}, whose zero is integer {grid.zero_point} of {2**grid.bits}"
            raise DialectError(_for_another(dialect, where))


def check_trained_for(dialect: Dialect, kind: GridKind, policy: Policy) -> None:
    """The same before anything is trained on grids of a kind.

    Raises:
        DialectError: they may lie where the engine has none.
    """
    integers = any(layer.activation_bits <= 8 for layer in policy.there().values())
    if integers and not all_of(kind, dialect.grids):
        raise DialectError(_for_another(dialect, f"tensors whose zeros lie as in {kind} grids"))


def _for_another(dialect: Dialect, what: str) -> str:
    return (
        f"{dialect.engine} cannot hold {what}: the network is compressed for another engine; compress it for"
        f" this one: --to {dialect.name}, [export] to or the profile's engine before a search, in Python"
        f" compress(..., to={dialect.name!r})"
    )


def check_policy(dialect: Dialect, network: Network, policy: Policy) -> None:
    """The same for one policy."""
    check_dynamic(network, policy.there())
    # the kernel of an LSTM is onnxruntime's alone
    lacking = [
        name
        for name, one in policy.there().items()
        if is_dynamic(one)
        and not (dialect.dynamic and (dialect.fused or not network.layer[name].weight_only))
    ]
    if lacking:
        raise DialectError(
            f"{dialect.engine} cannot quantize layer {lacking[0]!r} while it runs; leave dynamic out there,"
            f" or ask for a file for onnxruntime: [export] to = {QDQ.name!r}"
        )
    bits = {name: [(one.weight_bits, one.activation_bits)] for name, one in policy.there().items()}
    check_holds(dialect, network, bits)
