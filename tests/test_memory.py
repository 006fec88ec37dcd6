from compression.policy import Layer, LayerPolicy, LayerShape, Network, Node, Policy, Segment
from latency_models.memory import peak_memory_bytes


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
