import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leanfront.compression.export.network_model import network_model
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment, kernels
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.latency_models.benchmark.optimised_node import read_node
from leanfront.latency_models.measured.arena import Arena
from leanfront.latency_models.measured.footprint import Footprint, Made, Wanted, footprint
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.workspace import workspace_bytes
from leanfront.latency_models.memory import peak_memory_bytes


def image(
    name: str, op: str, inputs: tuple[str, ...], width: int, size: int, layer: str | None = None
) -> Node:
    return Node(name, op, inputs, (Segment(None, width),), (size, size), layer)


def residual() -> Network:
    """x (2 channels) -> a (8 channels) -> b (2 channels); b + x."""
    return Network(
        nodes=(
            image("x", "input", (), 2, 4),
            image("a", "conv2d", ("x",), 8, 4, "a"),
            image("b", "conv2d", ("a",), 2, 4, "b"),
            image("sum", "add", ("b", "x"), 2, 4),
        ),
        layers=(
            Layer("a", LayerShape("conv2d", 2, 8, (3, 3), out_height=4, out_width=4)),
            Layer("b", LayerShape("conv2d", 8, 2, (3, 3), out_height=4, out_width=4)),
        ),
        outputs=("sum",),
    )


def test_peak_of_a_residual_block_in_floats_is_known_on_paper() -> None:
    # while b runs: x (2), a (8) and b (2) are alive: 12 channels of 16 floats
    assert peak_memory_bytes(residual(), Policy.uniform(residual(), LayerPolicy())) == 12 * 16 * 4


def test_peak_in_integers_is_a_quarter() -> None:
    network = residual()
    integer = Policy.uniform(network, LayerPolicy(weight_bits=8, activation_bits=8))
    # x, a and b are held in bytes; the sum of two integer tensors is an integer tensor, too
    assert peak_memory_bytes(network, integer) == 12 * 16


def test_flattening_makes_no_tensor_and_outputs_stay_alive() -> None:
    network = Network(
        nodes=(
            image("x", "input", (), 4, 4),
            Node("flat", "flatten", ("x",), (Segment(None, 4, 16),)),
            Node("y", "linear", ("flat",), (Segment(None, 3),), (), "y"),
            Node("z", "linear", ("y",), (Segment(None, 5),), (), "z"),
        ),
        layers=(Layer("y", LayerShape("linear", 64, 3)), Layer("z", LayerShape("linear", 3, 5))),
        outputs=("y", "z"),
    )
    policy = Policy.uniform(network, LayerPolicy())
    assert peak_memory_bytes(network, policy) == (64 + 3) * 4  # x while y runs; later only y and z


WINDOW = " kernel_shape=3|3 pads=1|1|1|1 strides=1|1"
CONV = "com.microsoft.nchwc.Conv(f32[1x16x8x8], =f32[16x16x3x3], =f32[16])" + WINDOW
INTEGER_CONV = (
    "com.microsoft.QLinearConv(u8[1x8x8x{0}], =f32[], =u8[], =s8[{1}x{2}x3x3], =f32[{1}], =s8[],"
    " =f32[], =u8[]) channels_last=1 group={3}" + WINDOW
)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (CONV, 0),
        (INTEGER_CONV.format(16, 16, 16, 1), 8 * 9 * 64),  # a pointer per weight position and output position
        (
            INTEGER_CONV.format(16, 18, 16, 1),
            4 * 18 * 64 + 9 * 16 * 64,
        ),  # 18: no multiple of 4, sums and inputs
        (INTEGER_CONV.format(16, 16, 1, 16), 8 * 9 * 64),
        (INTEGER_CONV.format(3, 16, 3, 1), 4 * 16 * 64 + 27 * 64 + 64),  # sums, inputs; 1728 rounded to 1792
        (INTEGER_CONV.format(8, 8, 1, 8), 4 * 8 * 64 + 8 * 9 * 64),  # sums and pointers
        ("ConvTranspose(f32[1x8x8x8], =f32[8x4x2x2], =f32[4]) kernel_shape=2|2 strides=2|2", 4 * 16 * 64),
        ("com.microsoft.NhwcMaxPool(u8[1x8x8x16]) kernel_shape=2|2 strides=2|2", 8 * 4 * 16),
    ],
)
def test_working_buffers_are_known_on_paper(key: str, expected: int) -> None:
    assert workspace_bytes(key) == expected


REORDER = "com.microsoft.nchwc.ReorderOutput(f32[1x16x8x8]) channels=12 channels_last=0"
KIND = (True, (1, 16, 8, 8))


def test_a_kernel_hands_on_all_that_it_makes() -> None:
    """A blocked convolution, and the reorder behind it: a shortcut may read the one, a layer the other."""
    found = footprint((CONV, REORDER))
    assert [(t.size_bytes, t.node, t.last) for t in found.made] == [(4096, 0, 1), (3072, 1, 1)]
    shown = dict(found.shown)
    assert shown[True, True, (1, 16, 8, 8)] == 0  # blocked
    assert shown[False, True, (1, 12, 8, 8)] == 1
    assert (False, True, (1, 16, 8, 8)) not in shown


def test_what_a_branch_dequantizes_waits_for_its_reader() -> None:
    quantize = "QuantizeLinear(f32[1x12x8x8], =f32[], =u8[]) axis=1"
    transpose = "Transpose(u8[1x12x8x8]) perm=0|2|3|1"
    dequantize = "DequantizeLinear(u8[1x12x8x8], =f32[], =u8[]) axis=1"
    found = footprint((CONV, REORDER, quantize, transpose, dequantize))
    assert found.nodes == 4
    assert found.late is not None
    assert [t.size_bytes for t in found.late.made] == [3072]
    assert footprint((CONV, REORDER, quantize, dequantize)).late is None  # nothing else runs meanwhile


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("Slice(f32[1x16x32x30], =0|1, =9223372036854775807|7, =2|3, =2|3)", (1, 16, 16, 2)),
        ("Pad(f32[1x16x8x8], =0|8|0|0|0|8|0|0) mode=constant", (1, 32, 8, 8)),
        ("Reshape(f32[1x64x192], =0|-1|3|64)", (1, 64, 3, 64)),
        ("Squeeze(f32[1x64x1x3x64], =2)", (1, 64, 3, 64)),
        ("com.microsoft.nchwc.ReorderOutput(f32[1x16x8x8]) channels=12 channels_last=0", (1, 12, 8, 8)),
    ],
)
def test_shapes_that_nodes_make_are_known_on_paper(key: str, shape: tuple[int, ...]) -> None:
    assert read_node(key).shape == shape


def chain(*widths: int) -> Network:
    """Convolutions a, b, ... of 4x4 positions one behind the other, of so many channels."""
    names = "abcdefgh"[: len(widths)]
    before = ("x", *names)
    return Network(
        nodes=(
            image("x", "input", (), 2, 4),
            *(image(n, "conv2d", (r,), w, 4, n) for n, r, w in zip(names, before, widths, strict=False)),
        ),
        layers=tuple(
            Layer(n, LayerShape("conv2d", r, w, (3, 3), out_height=4, out_width=4))
            for n, r, w in zip(names, (2, *widths), widths, strict=False)
        ),
        outputs=(names[-1],),
    )


def look(kind: int) -> tuple[None, bool, tuple[int]]:
    return (None, True, (kind,))


def layer(kind: int, size: int, *read: int) -> Footprint:
    """One node that reads tensors of some kinds and makes one of a kind."""
    made = Made((True, (kind,)), size, 0, 0)
    return Footprint(1, (made,), tuple(Wanted(0, (look(k),)) for k in read), ((look(kind), 0),))


def peak(network: Network, footprints: Sequence[Footprint]) -> int:
    """Of one policy; a batch says the same."""
    arena = Arena(kernels(network), network.outputs)
    numbers = [arena.number(one) for one in footprints]
    found = arena.peak_bytes(numbers)
    assert arena.peaks_bytes(np.array([numbers, numbers]).T).tolist() == [found] * 2
    return found


def test_a_buffer_waits_for_the_next_tensor_of_its_shape() -> None:
    """a -> b (another shape) -> c -> d (a's shape): a's buffer is held while c is made, and d takes it."""
    network = chain(8, 4, 4, 8, 2)
    first = [Footprint(), layer(1, 1024), layer(2, 512, 1), layer(3, 512, 2)]
    last = layer(5, 256, 1)
    assert peak(network, [*first, layer(1, 1024, 3), last]) == 1024 + 512 + 512 + 256  # the output is beside
    # if d is of another shape, a's room is free: c goes to its beginning, d behind c
    assert peak(network, [*first, layer(4, 1024, 3), layer(5, 256, 4)]) == 512 + 1024 + 256
    assert peak(network, [*first, layer(4, 1280, 3), layer(5, 256, 4)]) == 512 + 1280 + 256


def test_the_smallest_gap_that_is_large_enough_is_taken() -> None:
    """Gaps of 512 and 1024 are left between tensors that are still read: 512 goes to the first."""
    network = chain(1, 1, 1, 1, 1, 1, 1, 1)
    ends = layer(9, 256, 2, 4, 6, 7)
    steps = [layer(1, 1024), layer(2, 256, 1), layer(3, 512, 1), layer(4, 256, 1, 3), layer(6, 512, 4)]
    steps += [layer(7, 1024, 4), ends]
    # [1: 1024][2: 256][3: 512][4: 256]; 6 takes the gap of 3, 7 that of 1; the output is beside
    assert peak(network, [Footprint(), *steps, Footprint()]) == 1024 + 256 + 512 + 256 + 256


def residual_of(c: Footprint, summed: Footprint, b: Footprint | None = None) -> int:
    """a -> b -> c, c + a, then the output (256 bytes) beside the block."""
    shapes = (("a", 2, 8), ("b", 8, 8), ("c", 8, 8), ("end", 8, 2))
    network = Network(
        nodes=(
            image("x", "input", (), 2, 4),
            image("a", "conv2d", ("x",), 8, 4, "a"),
            image("b", "conv2d", ("a",), 8, 4, "b"),
            image("c", "conv2d", ("b",), 8, 4, "c"),
            image("sum", "add", ("c", "a"), 8, 4),
            image("end", "conv2d", ("sum",), 2, 4, "end"),
        ),
        layers=tuple(
            Layer(name, LayerShape("conv2d", before, after, (3, 3), out_height=4, out_width=4))
            for name, before, after in shapes
        ),
        outputs=("end",),
    )
    b = b or layer(1, 1024, 1)
    return peak(network, [Footprint(), layer(1, 1024), b, c, summed, layer(2, 256, 1)]) - 256


def test_an_addition_within_a_layer_is_written_over_its_other_operand() -> None:
    wanted = (Wanted(0, (look(1),)), Wanted(0, (look(1),), over=0))
    fused = replace(layer(1, 1024), wanted=wanted)
    assert residual_of(fused, Footprint()) == 2 * 1024
    assert residual_of(layer(1, 1024, 1), layer(1, 1024, 1, 1)) == 3 * 1024


def test_the_other_operand_of_an_addition_is_that_of_the_addition() -> None:
    """b hands on two tensors, c reads the second and adds a's, which looks like b's first."""
    both = replace(
        layer(1, 1024, 1),
        nodes=2,
        made=(Made((True, (1,)), 1024, 0, 1), Made((True, (3,)), 256, 1, 1)),
        shown=((look(1), 0), (look(3), 1)),
    )
    wanted = (Wanted(0, (look(3),)), Wanted(0, (look(1),), over=0))
    fused = replace(layer(1, 1024), wanted=wanted)
    assert residual_of(fused, Footprint(), both) == 2 * 1024 + 256


def test_what_is_late_runs_when_it_is_read() -> None:
    """a also makes, from its tensor, another of 1024 bytes for d: at once, it is held while b and c run."""
    network = chain(1, 1, 1, 1, 1)
    both = replace(
        layer(1, 512),
        nodes=2,
        made=(Made((True, (1,)), 512, 0, 1), Made((True, (2,)), 1024, 1, 1)),
        shown=((look(1), 0), (look(2), 1)),
    )
    late = replace(layer(1, 512), late=layer(2, 1024, 1))
    rest = [layer(3, 2048, 1), layer(4, 2048, 3), layer(5, 256, 2, 4), layer(6, 256, 5)]
    assert peak(network, [Footprint(), both, *rest]) == 512 + 1024 + 2048 + 2048 + 256
    # late, it is made where b's tensor was; a's is held until then
    assert peak(network, [Footprint(), late, *rest]) == 512 + 2048 + 2048 + 256


@pytest.mark.parametrize("bits", [8, 32])
def test_the_peak_is_what_onnxruntime_allocates(bits: int, tmp_path: Path) -> None:
    shapes = (("a", "x", 3, 16), ("b", "a", 16, 32), ("c", "b", 32, 16))
    network = Network(
        nodes=(
            image("x", "input", (), 3, 16),
            *(image(name, "conv2d", (read,), after, 16, name) for name, read, _, after in shapes),
        ),
        layers=tuple(
            Layer(name, LayerShape("conv2d", before, after, (3, 3), out_height=16, out_width=16))
            for name, _, before, after in shapes
        ),
        outputs=("c",),
    )
    policy = Policy.uniform(network, LayerPolicy(0.0, bits, bits))
    structure = Structure(network, network_model)
    arena = Arena(structure.kernels, structure.outputs)
    numbers = [arena.number(footprint(part)) for part in structure.observe(network, policy)]
    (tmp_path / "model.onnx").write_bytes(network_model(network, policy))
    count = (
        "import sys, counted_arena as c; print(c.CountedArena().run_bytes(open(sys.argv[1], 'rb').read()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", count, str(tmp_path / "model.onnx")],
        cwd=Path(__file__).parents[2] / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    assert arena.peak_bytes(numbers) == int(told.stdout)
