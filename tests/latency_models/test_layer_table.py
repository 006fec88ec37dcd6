from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.latency_models.cost import TableError
from leanfront.latency_models.layer_table import COLUMNS, read_layer_table

NETWORKS = Path(__file__).parents[3] / "shared" / "hardware" / "networks"
HEADER = ",".join(COLUMNS)


def table(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "net.csv"
    path.write_text("\n".join((HEADER, *rows)) + "\n")
    return path


@pytest.mark.skipif(not NETWORKS.exists(), reason=f"no {NETWORKS}")
@pytest.mark.parametrize(
    ("name", "giga_macs"),
    [("resnet18_224", 1.814), ("resnet50_224", 4.089), ("vgg16_224", 15.470), ("mobilenet_v2_224", 0.3008)],
)
def test_macs_of_well_known_networks(name: str, giga_macs: float) -> None:
    assert read_layer_table(NETWORKS / f"{name}.csv").macs / 1e9 == pytest.approx(giga_macs, rel=5e-4)


@pytest.mark.skipif(not NETWORKS.exists(), reason=f"no {NETWORKS}")
@pytest.mark.parametrize("path", sorted(NETWORKS.glob("*.csv")), ids=lambda path: path.stem)
def test_every_published_table_keeps_its_shapes(path: Path) -> None:
    network = read_layer_table(path)
    assert len(network.layers) == len(path.read_text().splitlines()) - 1
    assert network.resized({}).layers == network.layers  # sources are as wide as the layers say
    if network.groups:
        policy = Policy.uniform(network, LayerPolicy(0.5))
        cut = network.resized(policy.channels(network))
        assert 0.2 < cut.macs / network.macs < 0.5  # a half squared, but for first, last and depthwise layers


def test_a_chain_reads_the_layer_before_and_is_cut_with_its_depthwise_layers(tmp_path: Path) -> None:
    network = read_layer_table(
        table(
            tmp_path,
            "a,conv2d,3,8,3,3,1,1,1,16,16,1",
            "b,conv2d,8,8,3,3,2,2,8,8,8,0",
            "c,conv2d,8,16,1,1,1,1,1,8,8,0",
            "d,linear,1024,10,1,1,1,1,1,1,1,1",
        )
    )
    assert [node.op for node in network.nodes] == ["input", "conv2d", "conv2d", "conv2d", "input", "linear"]
    assert [layer.group for layer in network.layers] == ["a", "a", "c", None]
    assert network.node["input"].spatial == (16, 16)
    cut = network.resized({"a": 4, "c": 6})
    shapes = [(s.in_channels, s.out_channels, s.groups) for s in (layer.shape for layer in cut.layers)]
    assert shapes == [(3, 4, 1), (4, 4, 4), (4, 6, 1), (6 * 64, 10, 1)]  # 8x8 features a channel


def test_a_branch_reads_the_last_layer_that_makes_its_shape(tmp_path: Path) -> None:
    network = read_layer_table(
        table(
            tmp_path,
            "a,conv2d,3,8,3,3,1,1,1,16,16,0",
            "b,conv2d,8,4,1,1,1,1,1,16,16,0",
            "c,conv2d,4,16,3,3,2,2,1,8,8,0",
            "shortcut,conv2d,8,16,1,1,2,2,1,8,8,0",
            "joined,conv2d,32,16,1,1,1,1,1,8,8,0",
            "pooled,conv2d,16,16,1,1,1,1,1,4,4,0",
        )
    )
    reads = {node.name: node.inputs for node in network.nodes}
    assert reads["shortcut"] == ("a",)
    assert reads["joined"] == ("joined.input",)  # two tensors in one: nothing makes it
    assert reads["pooled"] == ("pooled.input",)  # the layer before, pooled


def test_a_pool_between_layers_is_a_source_that_is_cut_along(tmp_path: Path) -> None:
    network = read_layer_table(
        table(tmp_path, "a,conv2d,3,8,3,3,1,1,1,16,16,1", "b,conv2d,8,4,3,3,1,1,1,8,8,0")
    )
    assert network.node["b.input"].elements == 8 * 8 * 8
    assert network.resized({"a": 5}).layer["b"].shape.in_channels == 5


def test_branches_leave_nothing_to_cut(tmp_path: Path) -> None:
    network = read_layer_table(
        table(tmp_path, "a,conv2d,3,8,1,1,1,1,1,4,4,0", "b,conv2d,24,8,1,1,1,1,1,4,4,0")
    )
    assert not network.groups
    assert network.node[network.node["b"].inputs[0]].width == 24


def test_a_grouped_convolution_fixes_its_input(tmp_path: Path) -> None:
    network = read_layer_table(
        table(
            tmp_path,
            "a,conv2d,3,8,1,1,1,1,1,4,4,0",
            "b,conv2d,8,8,1,1,1,1,2,4,4,0",
            "c,conv2d,8,8,1,1,1,1,1,4,4,0",
        )
    )
    assert [layer.group for layer in network.layers] == [None, None, None]


def test_transposed_convolution(tmp_path: Path) -> None:
    network = read_layer_table(
        table(tmp_path, "a,conv2d,3,8,1,1,1,1,1,4,4,0", "up,conv_transpose2d,8,2,2,2,2,2,1,8,8,0")
    )
    assert network.node["up"].inputs == ("a",)
    assert network.layer["up"].shape.macs == 8 * 2 * 4 * 16


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            "a,conv2d,x,8,3,3,1,1,1,16,16,1",
            "line 3: in_channels must be a whole number of at least 1, not 'x'",
        ),
        ("a,conv2d,3,0,3,3,1,1,1,16,16,1", "line 3: out_channels"),
        ("a,conv2d,3,-8,3,3,1,1,1,16,16,1", "line 3: out_channels"),
        ("a,conv2d,3,8,3.5,3,1,1,1,16,16,1", "line 3: kernel_h"),
        ("a,conv2d,3,8,3,3,1,1,1,16", "line 3: (out_width|bias)"),
        ("a,conv2d,3,8,3,3,1,1,2,16,16,1", "line 3: in_channels 3 cannot be divided into 2 groups"),
        ("a,lstm,3,8,3,3,1,1,1,16,16,1", "line 3: op must be one of conv2d, .* not 'lstm'"),
        ("a,conv2d,3,8,3,3,1,1,1,16,16,2", "line 3: bias must be 0 or 1"),
        (",conv2d,3,8,3,3,1,1,1,16,16,1", "line 3: the layer has no name"),
        ("first,conv2d,3,8,3,3,1,1,1,16,16,1", "two layers named 'first'"),
    ],
)
def test_bad_rows_are_refused_with_their_line(row: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=sentence):
        read_layer_table(table(tmp_path, "first,conv2d,3,3,3,3,1,1,1,16,16,1", row))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        (HEADER, "has a header but no layers"),
        (HEADER.replace("stride_h,", ""), "no column 'stride_h'"),
        (None, "cannot read the layer table"),
    ],
)
def test_files_that_are_no_tables(text: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "net.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TableError, match=sentence):
        read_layer_table(path)


@given(st.binary(max_size=200))
def test_rubbish_is_refused_by_sentence_only(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish.csv"
    path.write_bytes(rubbish)
    with pytest.raises(TableError):
        read_layer_table(path)
