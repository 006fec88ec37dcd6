"""THE table of operations: one row for each value of ``Node.op`` says all that anybody asks of it.

Code asks the row (``operation(node.op).same_range``) and compares no names. What has no row is opaque: its
channels stay, it costs what it moves, and it is said of it that nobody knows more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Work = Literal["free", "values", "product", "layer", "opaque"]
"""What a processor has to do. free: another view of a tensor that is there, or a constant. values: a handful
of operations for each value, bound by memory traffic on any part. product: a product of two tensors, neither
of them weights. layer: weights that a policy says how to store. opaque: nobody knows."""

Stream = Literal["free", "placed", "window", "mean", "element", "product", "layer", "opaque"]
"""What an engine of an FPGA has to do. placed: values are written where they are wanted, nothing is computed.
window: each value of each window is read. mean: every value is read, one for each channel is written.
element: one result for each element; sigmoids and the like are tables of 256 entries on integers. product: as
on a processor."""

Fuses = Literal["", "layer", "arithmetic", "anything"]
"""Behind what a node becomes part of the kernel before it: nothing, layers without activation, layers and
what ``takes_activation``, anything that is computed."""

Channels = Literal[
    "", "meet", "along", "reduced", "each", "moved", "joined", "padded", "contracted", "looked up"
]
"""What happens to channels. "": they are mixed, or nobody knows: they stay. meet: value by value, with those
of the other operands. along: each line of some dimensions alone. reduced: these dimensions go. each: every
channel of an image alone. moved: values are moved and none computed. joined, padded, contracted:
concatenation, padding, matrix products. looked up: the columns of a table."""

Form = Literal[
    "", "given", "unary", "binary", "concat", "window", "global", "mean", "linear", "nearest", "moved", "norm"
]
"""How a node that takes about as long is made from shapes alone."""


@dataclass(frozen=True)
class Operation:
    """One row. All that is not said is No.

    name: value of ``Node.op``. aten: the overloads that it is, "aten.relu.default"; those in place are not
    named again. onnx: types of ONNX that it is in every setting; the first is how it is written.
    work, stream: what a processor and an FPGA have to do. reads_held: all that a node stores is read for each
    inference (not where rows are looked up in it).
    weight_only: a policy says in how many bits its weights are stored, and what comes out are floats.
    in_steps: its weights are multiplied once for each step of a sequence. at_run_time: there is a kernel of
    it that quantizes what it reads while it runs.
    given: the caller hands it over. written: it is a node in a file. stored: its values are in the file.
    adds: a sum, which is one of two operands without the other. activation: one that layers are followed by.
    clips: it bounds values, and engines leave it out in front of a quantizer that does. folds: if all that it
    reads besides is constant, engines make it part of what it follows where that ``absorbs``.
    fuses, takes_activation: see ``Fuses``. parameters: numbers that it holds for each channel, where it is
    not folded.
    same_range: it moves values and computes none, so its output keeps the quantizer of its input.
    within_inputs: no value beyond those that go in (in a padding with zeros, and 0). same_tensor: another
    view of the tensor that it reads.
    integer: engines have a kernel for integers. joining: which they use if all that is joined is held in
    integers. never_negative; keeps_sign: never negative where nothing that goes in is. bounded: from 0 to 6.
    channels: see ``Channels``. form: how a stand-in is made from shapes. file_bytes: what a node takes in a
    file besides its name and what it holds, with its attributes and small constants (mean of 130 exported
    networks), where that was not measured (``Node.written``).
    """

    name: str
    aten: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    work: Work = "values"
    stream: Stream = "element"
    reads_held: bool = True
    weight_only: bool = False
    in_steps: bool = False
    at_run_time: bool = False
    given: bool = False
    written: bool = True
    stored: bool = False
    adds: bool = False
    activation: bool = False
    clips: bool = False
    folds: bool = False
    absorbs: bool = False
    fuses: Fuses = ""
    takes_activation: bool = False
    parameters: int = 0
    same_range: bool = False
    within_inputs: bool = False
    same_tensor: bool = False
    integer: bool = False
    joining: bool = False
    never_negative: bool = False
    keeps_sign: bool = False
    bounded: bool = False
    channels: Channels = ""
    form: Form = ""
    file_bytes: int = 40

    @property
    def layer(self) -> bool:
        """Whether it computes with weights which a policy may cut and quantize."""
        return self.work == "layer"

    @property
    def looked_up(self) -> bool:
        """Whether rows of a table are read by number."""
        return self.channels == "looked up"


def _aten(names: str) -> tuple[str, ...]:
    """Overloads by their names, "relu add.Tensor"; without one it is the default."""
    return tuple(f"aten.{name if '.' in name else name + '.default'}" for name in names.split())


def _onnx(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _in_place(name: str) -> str:
    """ "aten.relu_.default" of "aten.relu.default"."""
    return name if name.startswith("python.") else "{}.{}_.{}".format(*name.split("."))


_PYTHON = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)
"""Operators of Python on sizes."""

_PLAIN = Operation("")
_MOVED = Operation(
    "", stream="placed", channels="moved", form="moved", same_range=True, within_inputs=True, integer=True,
    keeps_sign=True
)  # fmt: skip
_VIEW = replace(_MOVED, work="free", stream="free", same_tensor=True)
_ACTIVATION = Operation("", form="unary", activation=True, channels="meet")
_CONSTANT = Operation("", work="free", stream="free", form="given")
_LAYER = Operation("", work="layer", stream="layer", integer=True)
_NORM = Operation("", form="norm")

OPAQUE = Operation("other", work="opaque", stream="opaque")
"""The row of whatever has none."""

_ROWS = (
    OPAQUE,
    # what is there before anything is computed
    replace(_CONSTANT, name="input", given=True, written=False),
    replace(
        _CONSTANT, name="constant", file_bytes=20, stored=True,
        aten=_aten(
            "zeros zeros_like new_zeros zero ones ones_like new_ones full full_like new_full "
            "empty.memory_format empty_like new_empty arange arange.start arange.start_step linspace eye "
            "eye.m scalar_tensor tril_indices triu_indices"
        ),
        onnx=_onnx("ConstantOfShape Range"),
    ),
    replace(
        _CONSTANT, name="number", written=False,
        aten=(
            *_aten(
                "sym_size.int sym_numel sym_stride.int _assert_tensor_metadata _assert_scalar "
                "_assert_async.msg sym_constrain_range_for_size _local_scalar_dense item"
            ),
            *(f"python.{name}" for name in _PYTHON),
        ),
    ),
    # layers
    replace(_LAYER, name="conv2d", absorbs=True, aten=_aten("conv2d conv2d.padding")),
    replace(_LAYER, name="conv_transpose2d", aten=_aten("conv_transpose2d.input"), integer=False),
    replace(_LAYER, name="linear", at_run_time=True, aten=_aten("linear")),
    replace(_CONSTANT, name="weights", written=False, weight_only=True),  # that other arithmetic reads
    # other arithmetic with weights, which stands in ``Node.macs``
    replace(
        _PLAIN, name="convolution", file_bytes=148,
        aten=_aten(
            "conv1d conv1d.padding conv3d conv3d.padding conv_transpose1d conv_transpose3d.input "
            "convolution bilinear"
        ),
    ),
    replace(
        _PLAIN, name="lstm", file_bytes=1680, in_steps=True, at_run_time=True, aten=_aten("lstm.input"),
        onnx=_onnx("LSTM"),
    ),
    replace(
        _PLAIN, name="recurrent", file_bytes=1680, in_steps=True,
        aten=_aten("gru.input rnn_tanh.input rnn_relu.input lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
        onnx=_onnx("GRU RNN"),
    ),
    replace(
        _PLAIN, name="attention", onnx=_onnx("Attention"),
        aten=_aten("scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu"),
    ),
    replace(
        _PLAIN, name="embedding", channels="looked up", file_bytes=25, aten=_aten("embedding"),
        reads_held=False, weight_only=True,
    ),
    # products
    replace(
        _PLAIN, name="matmul", channels="contracted", file_bytes=26, work="product", stream="product",
        aten=_aten("matmul bmm mm mv dot baddbmm addmm addbmm addmv einsum"),
    ),
    # two tensors, value by value
    replace(
        _PLAIN, name="add", channels="meet", file_bytes=24, form="binary", adds=True, takes_activation=True,
        folds=True,
        integer=True,
        joining=True,
        keeps_sign=True, aten=_aten("add.Tensor add.Scalar"), onnx=_onnx("Add"),
    ),
    replace(
        _PLAIN, name="sub", channels="meet", file_bytes=26, form="binary", onnx=_onnx("Sub"),
        aten=_aten("sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar"),
    ),
    replace(
        _PLAIN, name="mul", channels="meet", file_bytes=23, form="binary", keeps_sign=True, folds=True,
        aten=_aten("mul.Tensor mul.Scalar"),
        onnx=_onnx("Mul"),
    ),
    replace(
        _PLAIN, name="div", channels="meet", file_bytes=26, form="binary", onnx=_onnx("Div"),
        aten=_aten("div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode"),
    ),
    replace(
        _PLAIN, name="identity_arithmetic", channels="meet", file_bytes=34, form="binary", folds=True
    ),
    # norms
    replace(
        _NORM, name="batchnorm", channels="each", fuses="layer", takes_activation=True, parameters=4,
        folds=True,
        aten=_aten(
            "batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit "
            "_native_batch_norm_legit.no_stats _native_batch_norm_legit_no_training"
        ),
        onnx=_onnx("BatchNormalization"),
    ),
    replace(
        _NORM, name="layernorm", file_bytes=35, stream="opaque", aten=_aten("layer_norm native_layer_norm"),
        onnx=_onnx("LayerNormalization"),
    ),
    replace(
        _NORM, name="rmsnorm", file_bytes=215, stream="opaque", aten=_aten("rms_norm _fused_rms_norm"),
        onnx=_onnx("RMSNormalization"),
    ),
    replace(
        _NORM, name="groupnorm", file_bytes=40, stream="opaque",
        aten=_aten("group_norm native_group_norm instance_norm"),
        onnx=_onnx("InstanceNormalization GroupNormalization"),
    ),
    # activations
    replace(
        _ACTIVATION, name="relu", file_bytes=20, aten=_aten("relu"), onnx=_onnx("Relu"), fuses="arithmetic",
        never_negative=True, clips=True,
    ),
    replace(
        _ACTIVATION, name="relu6", file_bytes=45, aten=_aten("relu6"), fuses="arithmetic",
        never_negative=True, bounded=True, clips=True
    ),
    replace(
        _PLAIN, name="clip", channels="meet", file_bytes=55, form="unary", clips=True, onnx=_onnx("Clip"),
        aten=_aten("hardtanh clamp clamp_min clamp_max clip"),
    ),
    replace(_ACTIVATION, name="hardswish", file_bytes=25, aten=_aten("hardswish"), onnx=_onnx("HardSwish")),
    replace(
        _ACTIVATION, name="hardsigmoid", file_bytes=60, aten=_aten("hardsigmoid"), onnx=_onnx("HardSigmoid"),
        never_negative=True, bounded=True,
    ),
    replace(_ACTIVATION, name="silu", file_bytes=46, aten=_aten("silu"), onnx=_onnx("Swish")),
    replace(_ACTIVATION, name="gelu", file_bytes=44, aten=_aten("gelu"), onnx=_onnx("Gelu")),
    replace(
        _ACTIVATION, name="sigmoid", file_bytes=23, aten=_aten("sigmoid"), onnx=_onnx("Sigmoid"),
        never_negative=True,
        bounded=True,
    ),
    replace(_ACTIVATION, name="tanh", file_bytes=20, aten=_aten("tanh"), onnx=_onnx("Tanh")),
    replace(_ACTIVATION, name="leaky_relu", file_bytes=42, aten=_aten("leaky_relu"), onnx=_onnx("LeakyRelu")),
    replace(
        _PLAIN, name="softmax", channels="along", file_bytes=44, form="unary", never_negative=True,
        bounded=True,
        onnx=_onnx("Softmax"),
        aten=_aten("softmax.int _softmax _safe_softmax"),
    ),
    replace(
        _PLAIN, name="log_softmax", channels="along", file_bytes=44, form="unary",
        aten=_aten("log_softmax.int _log_softmax"),
        onnx=_onnx("LogSoftmax"),
    ),
    replace(
        _PLAIN, name="elementwise", channels="meet", file_bytes=55, form="unary",
        aten=_aten(
            "abs absolute neg negative positive sign sgn exp exp2 expm1 log log2 log10 log1p sqrt rsqrt "
            "square reciprocal sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc "
            "erfinv sinc floor ceil round round.decimals trunc frac sigmoid_backward logit log_sigmoid elu "
            "selu celu softplus mish prelu _prelu_kernel rrelu hardshrink softshrink "
            "threshold pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor float_power.Tensor_Scalar "
            "clamp.Tensor clamp_min.Tensor clamp_max.Tensor maximum minimum "
            "max.other min.other fmax fmin addcmul addcdiv lerp.Scalar lerp.Tensor hypot floor_divide "
            "floor_divide.Scalar remainder.Scalar remainder.Tensor fmod.Scalar fmod.Tensor eq.Scalar "
            "eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar gt.Tensor "
            "ge.Scalar ge.Tensor isnan isinf isfinite nan_to_num where.self where.ScalarSelf "
            "where.ScalarOther where.Scalar masked_fill.Scalar masked_fill.Tensor logical_and logical_or "
            "logical_not logical_xor bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor "
            "bitwise_or.Scalar bitwise_xor.Tensor bitwise_not fill.Scalar fill.Tensor copy"
        ),
        onnx=_onnx(
            "Abs Neg Exp Log Sqrt Erf Reciprocal Elu Softplus Pow Min Max PRelu Where Sign Sin Cos "
            "Tan Asin Acos Atan Sinh Cosh Floor Ceil Round Mod Selu Celu Mish Softsign ThresholdedRelu "
            "Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not IsNaN IsInf BitwiseAnd BitwiseOr "
            "BitwiseNot"
        ),
    ),
    replace(  # into another type: between the floats of a network it is gone, see the normal form
        _PLAIN, name="cast", channels="meet", file_bytes=31, form="unary", keeps_sign=True,
        aten=_aten("to.dtype to.dtype_layout to.other _to_copy type_as"),
    ),
    replace(
        _PLAIN, name="sampled", file_bytes=66, form="unary", onnx=_onnx("GridSample Trilu"),
        aten=_aten(
            "grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator slice_scatter select_scatter "
            "tril triu glu _weight_norm"
        ),
    ),
    # pools and what sums up
    replace(
        _MOVED, name="maxpool", channels="each", file_bytes=164, stream="window", form="window",
        onnx=_onnx("MaxPool"),
        aten=_aten(
            "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
            "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
        ),
    ),
    replace(
        _PLAIN, name="avgpool", channels="each", file_bytes=152, stream="window", form="window",
        integer=True, keeps_sign=True,
        within_inputs=True, onnx=_onnx("AveragePool"),
        aten=_aten(
            "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
            "_adaptive_avg_pool2d _adaptive_avg_pool3d"
        ),
    ),
    replace(
        _PLAIN, name="global_avgpool", channels="each", file_bytes=31, stream="mean", form="global",
        integer=True,
        keeps_sign=True,
        within_inputs=True, onnx=_onnx("GlobalAveragePool"),
    ),
    replace(
        _PLAIN, name="mean", channels="reduced", file_bytes=96, stream="mean", form="mean",
        aten=_aten("mean.dim"),
    ),
    replace(
        _PLAIN, name="reduce", channels="reduced", file_bytes=75, stream="mean",
        aten=_aten(
            "mean sum sum.dim_IntList prod prod.dim_int amax amin aminmax max max.dim min min.dim median "
            "median.dim argmax argmin any any.dim any.dims all all.dim all.dims norm.Scalar "
            "norm.ScalarOpt_dim linalg_vector_norm var var.dim var.correction var_mean.dim "
            "var_mean.correction std std.dim std.correction logsumexp cumsum cumprod topk"
        ),
        onnx=_onnx(
            "ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
            "ReduceSumSquare ArgMax ArgMin CumSum TopK GlobalMaxPool"
        ),
    ),
    replace(
        _PLAIN, name="upsample", channels="each", file_bytes=258, form="linear", keeps_sign=True,
        aten=_aten(
            "upsample_linear1d upsample_linear1d.vec upsample_bilinear2d upsample_bilinear2d.vec "
            "upsample_trilinear3d upsample_trilinear3d.vec _upsample_bilinear2d_aa "
            "_upsample_bilinear2d_aa.vec"
        ),
    ),
    replace(
        _PLAIN, name="upsample_cubic", channels="each", file_bytes=258, form="linear",
        aten=_aten(
            "upsample_bicubic2d upsample_bicubic2d.vec _upsample_bicubic2d_aa _upsample_bicubic2d_aa.vec"
        ),
    ),
    replace(
        _PLAIN, name="upsample_nearest", channels="each", file_bytes=290, form="nearest", keeps_sign=True,
        aten=_aten(
            "upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec "
            "upsample_nearest3d upsample_nearest3d.vec _upsample_nearest_exact1d "
            "_upsample_nearest_exact1d.vec _upsample_nearest_exact2d _upsample_nearest_exact2d.vec "
            "_upsample_nearest_exact3d.vec"
        ),
    ),
    # what moves values
    replace(
        _MOVED, name="concat", channels="joined", file_bytes=39, form="concat", same_range=False,
        joining=True,
        onnx=_onnx("Concat"),
        aten=_aten("cat concat stack hstack vstack"),
    ),
    replace(
        _MOVED, name="slice", file_bytes=66,
        onnx=_onnx("Slice Split Gather GatherElements GatherND DepthToSpace SpaceToDepth"),
        aten=_aten(
            "slice.Tensor select.int narrow split.Tensor split.sizes "
            "split_with_sizes chunk tensor_split.sections unbind.int index.Tensor gather take_along_dim "
            "roll flip rot90 pixel_shuffle pixel_unshuffle channel_shuffle unfold im2col diagonal "
            "masked_select"
        ),
    ),
    replace(_MOVED, name="gather", file_bytes=0, aten=_aten("index_select")),
    replace(
        _MOVED, name="pad", channels="padded", file_bytes=124, onnx=_onnx("Pad"),
        aten=_aten(
            "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
            "replication_pad2d replication_pad3d"
        ),
    ),
    replace(
        _MOVED, name="transpose", file_bytes=44, onnx=_onnx("Transpose"),
        aten=_aten("permute transpose.int t swapaxes swapdims movedim.int movedim.intlist moveaxis.int"
                   " numpy_T mT adjoint"),
    ),
    replace(
        _PLAIN, name="expand", channels="moved", file_bytes=62, stream="placed", onnx=_onnx("Expand Tile"),
        aten=_aten("expand expand_as repeat tile repeat_interleave.self_int broadcast_to meshgrid"
                   " meshgrid.indexing"),
    ),
    # other views of a tensor
    replace(
        _VIEW, name="reshape", file_bytes=67, onnx=_onnx("Reshape Squeeze Unsqueeze"),
        aten=_aten(
            "view view_as reshape reshape_as _unsafe_view unflatten.int squeeze squeeze.dim squeeze.dims "
            "unsqueeze ravel atleast_1d atleast_2d atleast_3d view_as_real view_as_complex"
        ),
    ),
    replace(_VIEW, name="flatten", file_bytes=74, aten=_aten("flatten.using_ints"), onnx=_onnx("Flatten")),
    replace(
        _VIEW, name="identity", channels="meet", form="unary", fuses="anything",
        onnx=_onnx("Identity Dropout Cast"),  # files in half precision cast between floats
        aten=(
            *_aten(
                "clone alias contiguous detach lift lift_fresh lift_fresh_copy to.device dropout "
                "native_dropout feature_dropout alpha_dropout feature_alpha_dropout resolve_conj resolve_neg"
            ),
            "python.getitem",
        ),
    ),
    replace(_VIEW, name="alias", form="", written=False),
)  # fmt: skip

OPERATIONS: Mapping[str, Operation] = {row.name: row for row in _ROWS}
"""Name of an operation -> its row."""

by_aten: Mapping[str, Operation] = {
    spelled: row for row in _ROWS for name in row.aten for spelled in (_in_place(name), name)
}
"""Overload of an ATen operator -> the row that it is, out of place and in place."""

by_onnx: Mapping[str, Operation] = {kind: row for row in _ROWS for kind in row.onnx}
"""Type of an ONNX node -> the row that it is in every setting."""


def operation(name: str) -> Operation:
    """The row of a value of ``Node.op``; OPAQUE where there is none."""
    return OPERATIONS.get(name, OPAQUE)


def named(question: Callable[[Operation], bool]) -> tuple[str, ...]:
    """Names of the operations that say Yes."""
    return tuple(row.name for row in _ROWS if question(row))
