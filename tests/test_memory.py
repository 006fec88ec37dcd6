import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compression.policy import Layer, LayerPolicy, LayerShape, Network, Node, Policy, Segment, kernels
from latency_models.arena import GAPS, Arena
from latency_models.memory import peak_memory_bytes
from latency_models.network_model import network_model
from latency_models.structure import Structure
from latency_models.workspace import Footprint, footprint, workspace_bytes


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
        (INTEGER_CONV.format(16, 16, 1, 16), 8 * 9 * 64),
        (INTEGER_CONV.format(3, 16, 3, 1), 4 * 16 * 64 + 27 * 64 + 64),  # sums, inputs; 1728 rounded to 1792
        (INTEGER_CONV.format(8, 8, 1, 8), 4 * 8 * 64 + 8 * 9 * 64),  # sums and pointers
        ("ConvTranspose(f32[1x8x8x8], =f32[8x4x2x2], =f32[4]) kernel_shape=2|2 strides=2|2", 4 * 16 * 64),
        ("com.microsoft.NhwcMaxPool(u8[1x8x8x16]) kernel_shape=2|2 strides=2|2", 8 * 4 * 16),
    ],
)
def test_working_buffers_are_known_on_paper(key: str, expected: int) -> None:
    assert workspace_bytes(key) == expected


def test_a_kernel_holds_what_its_nodes_read_and_make() -> None:
    reorder = "com.microsoft.nchwc.ReorderOutput(f32[1x16x8x8]) channels=16 channels_last=0"
    found = footprint((CONV, reorder), 16 * 64)
    assert found.handed_bytes == 4096
    assert found.making_bytes == 2 * 4096
    assert [size for _, size in found.local] == [4096]


def test_a_buffer_waits_for_the_next_tensor_of_its_shape() -> None:
    """a (kept for later) -> b (another shape) -> c (a's shape): while b is made, a's buffer is held."""
    network = Network(
        nodes=(
            image("x", "input", (), 2, 4),
            image("a", "conv2d", ("x",), 8, 4, "a"),
            image("b", "conv2d", ("a",), 4, 4, "b"),
            image("c", "conv2d", ("b",), 4, 4, "c"),
            image("d", "conv2d", ("c",), 8, 4, "d"),
            image("e", "conv2d", ("d",), 2, 4, "e"),
        ),
        layers=tuple(
            Layer(name, LayerShape("conv2d", before, after, (3, 3), out_height=4, out_width=4))
            for name, before, after in (("a", 2, 8), ("b", 8, 4), ("c", 4, 4), ("d", 4, 8), ("e", 8, 2))
        ),
        outputs=("e",),
    )

    def tensor(kind: int, size: int, read: int) -> Footprint:
        return Footprint(size, (True, (kind,)), size + read, size)

    waits = [Footprint(), tensor(1, 1024, 0), tensor(2, 512, 1024), tensor(3, 512, 512), tensor(1, 1024, 512)]
    other = [*waits[:4], tensor(4, 1024, 512)]
    arena = Arena(kernels(network), network.outputs)
    peaks = []
    for footprints in (waits, other):
        numbers = [arena.number(one) for one in (*footprints, tensor(5, 256, 1024))]
        peaks.append(arena.peak_bytes(numbers))
        assert arena.peaks_bytes(np.array([numbers, numbers]).T).tolist() == [peaks[-1]] * 2
    assert peaks[0] == round(GAPS * (1024 + 512 + 512)) + 256  # while c runs; the output comes beside it
    assert peaks[1] == round(GAPS * (1024 + 512)) + 256


@pytest.mark.parametrize("bits", [8, 32])
def test_the_peak_is_near_what_onnxruntime_allocates(bits: int, tmp_path: Path) -> None:
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
    parts, state = structure.observe(network, policy), structure.state(network, policy)
    arena = Arena(structure.kernels, structure.outputs)
    numbers = [
        arena.number(footprint(part, width * positions))
        for part, width, positions in zip(parts, state, structure.positions, strict=False)
    ]
    (tmp_path / "model.onnx").write_bytes(network_model(network, policy))
    count = (
        "import sys, counted_arena as c; print(c.CountedArena().run_bytes(open(sys.argv[1], 'rb').read()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", count, str(tmp_path / "model.onnx")],
        cwd=Path(__file__).parents[1] / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    )
    assert arena.peak_bytes(numbers) == pytest.approx(int(told.stdout), rel=0.15)


@pytest.mark.parametrize("fused", [True, False])
def test_an_addition_within_a_layer_takes_no_buffer_of_its_own(fused: bool) -> None:
    """a -> b -> c, c + a: fused into c, the sum is written over a; two buffers do. Else c needs a third."""
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
            for name, before, after in (("a", 2, 8), ("b", 8, 8), ("c", 8, 8), ("end", 8, 2))
        ),
        outputs=("end",),
    )
    kind = (True, (1, 8, 4, 4))
    conv = Footprint(1024, kind, 2048, 1024)
    nothing, end = Footprint(), Footprint(256, (True, (1, 2, 4, 4)), 1280, 256)
    summed = nothing if fused else Footprint(1024, kind, 2048, 1024, in_place=True)
    arena = Arena(kernels(network), network.outputs)
    c = Footprint(1024, kind, 2048, 1024, in_place=fused)
    numbers = [arena.number(one) for one in (nothing, conv, conv, c, summed, end)]
    assert arena.peak_bytes(numbers) == round(GAPS * (2 if fused else 3) * 1024) + 256
    assert arena.peaks_bytes(np.array(numbers)[:, None])[0] == arena.peak_bytes(numbers)
