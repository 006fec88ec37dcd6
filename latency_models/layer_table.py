"""Layer tables: a CSV file with the shape of each layer, read as a Network."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.graph.nodes import LAYER_OPS
from leanfront.latency_models.cost import TableError

COLUMNS = (
    "name", "op", "in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "groups",
    "out_height", "out_width", "bias",
)  # fmt: skip


def read_layer_table(path: Path) -> Network:
    """A layer table as a chain: each layer reads the one before it, if its shape allows.

    A table says nothing about pools, residual adds, concats and activations, so these cost nothing here,
    and peak memory is that of the chain. Where the layer before does not have the shape that a layer reads,
    it reads the last one before that has (a branch), and where none has, a source node (op "input") of the
    right shape. Where every layer has as many input channels as the layer before has outputs, the channels
    can be cut, each layer in its own group; otherwise (concats, parallel branches) the table does not say who
    reads whom, and no layer has a group.

    Raises:
        TableError: the file cannot be read, is empty, lacks a column, or has a bad value (the line is named).
    """
    return _chain(_rows(path))


def _rows(path: Path) -> list[Layer]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            if not header:
                raise TableError(f"{path} is empty; a layer table has the columns {', '.join(COLUMNS)}")
            if missing := [column for column in COLUMNS if column not in header]:
                raise TableError(
                    f"{path} has no column {missing[0]!r}; a layer table has the columns {', '.join(COLUMNS)}"
                )
            rows = [_row(fields, f"{path}, line {reader.line_num}") for fields in reader]
    except OSError as error:
        raise TableError(f"cannot read the layer table {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a CSV file: {error}") from error
    if not rows:
        raise TableError(f"{path} has a header but no layers")
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            raise TableError(f"{path} has two layers named {row.name!r}; names must differ")
        seen.add(row.name)
    return rows


def _row(fields: dict[str, str | None], where: str) -> Layer:
    def number(column: str, least: int = 1) -> int:
        text = (fields[column] or "").strip()
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise TableError(f"{where}: {column} must be a whole number of at least {least}, not {text!r}")
        return int(text)

    name, op = (fields["name"] or "").strip(), (fields["op"] or "").strip()
    if not name:
        raise TableError(f"{where}: the layer has no name")
    if op not in LAYER_OPS:
        raise TableError(f"{where}: op must be one of {', '.join(LAYER_OPS)}, not {op!r}")
    bias = number("bias", least=0)
    if bias > 1:
        raise TableError(f"{where}: bias must be 0 or 1, not {bias}")
    shape = LayerShape(
        op=op,
        in_channels=number("in_channels"),
        out_channels=number("out_channels"),
        kernel=(number("kernel_h"), number("kernel_w")),
        stride=(number("stride_h"), number("stride_w")),
        groups=number("groups"),
        out_height=number("out_height"),
        out_width=number("out_width"),
    )
    for column, channels in (("in_channels", shape.in_channels), ("out_channels", shape.out_channels)):
        if channels % shape.groups:
            raise TableError(f"{where}: {column} {channels} cannot be divided into {shape.groups} groups")
    return Layer(name, shape, bias=bool(bias))


def _chain(rows: list[Layer]) -> Network:
    groups = _groups(rows)
    nodes: list[Node] = []
    made: list[Node] = []
    layers: list[Layer] = []
    taken = {row.name for row in rows}
    for index, row in enumerate(rows):
        before = rows[index - 1].shape if index else None
        if before is not None and _reads(row.shape, before):
            source = nodes[-1]
        elif (branch := _read_again(rows, index)) is not None:
            source = made[branch]
        else:
            group = groups[index - 1] if index else None
            repeat = _repeat(row.shape, before) if before is not None and group is not None else 1
            name = f"{row.name}.input" if index else "input"
            while name in taken:
                name += "_"
            taken.add(name)
            source = Node(
                name=name,
                op="input",
                inputs=(),
                channels=(Segment(group, row.shape.in_channels // repeat, repeat),),
                spatial=_input_size(row.shape),
            )
            nodes.append(source)
        layers.append(replace(row, group=groups[index]))
        made.append(
            Node(
                name=row.name,
                op=row.shape.op,
                inputs=(source.name,),
                channels=(Segment(groups[index], row.shape.out_channels),),
                spatial=_output_size(row.shape),
                layer=row.name,
            )
        )
        nodes.append(made[-1])
    return Network(tuple(nodes), tuple(layers), (nodes[-1].name,))


def _read_again(rows: list[Layer], index: int) -> int | None:
    """The last layer before that makes what a layer reads, where the layer right before has other channels.
    (If only its positions differ, a pool lies between.)"""
    shape = rows[index].shape
    if index < 2 or _repeat(shape, rows[index - 1].shape):
        return None
    return next((i for i in range(index - 2, -1, -1) if _reads(shape, rows[i].shape)), None)


def _groups(rows: list[Layer]) -> list[str | None]:
    """The channel group of each layer's output: its own name, or for depthwise layers that of its input."""
    shapes = [row.shape for row in rows]
    if not all(_repeat(shape, before) for before, shape in pairwise(shapes)):
        return [None] * len(rows)
    cuttable = [False] * len(rows)  # the last layer's outputs are the network's
    for index in range(len(rows) - 2, -1, -1):
        reader = shapes[index + 1]
        followed = reader.groups == 1 or (reader.depthwise and cuttable[index + 1])
        cuttable[index] = followed and (shapes[index].groups == 1 or shapes[index].depthwise)
    groups: list[str | None] = []
    for index, row in enumerate(rows):
        above = groups[-1] if groups else None
        own = above if row.shape.depthwise else row.name
        groups.append(own if cuttable[index] else None)
    return groups


def _repeat(shape: LayerShape, before: LayerShape) -> int:
    """Features that a layer reads per channel of the layer before: 1, more after a flatten, 0: no fit."""
    if shape.in_channels == before.out_channels:
        return 1
    repeat, rest = divmod(shape.in_channels, before.out_channels)
    flattened = shape.op == "linear" and before.op != "linear" and not rest
    return repeat if flattened and repeat <= before.out_height * before.out_width else 0


def _reads(shape: LayerShape, before: LayerShape) -> bool:
    """Whether a layer can read the output of the layer before as it is."""
    if shape.in_channels != before.out_channels or (shape.op == "linear") != (before.op == "linear"):
        return False
    sides = zip(
        (before.out_height, before.out_width),
        (shape.out_height, shape.out_width),
        shape.kernel,
        shape.stride,
        strict=True,
    )
    if shape.op == "conv_transpose2d":
        return all(given * stride == out for given, out, _, stride in sides)
    # any padding from none to "full": out = floor((given + padding - kernel) / stride) + 1
    return all(
        any((given + padding - kernel) // stride + 1 == out for padding in range(kernel))
        for given, out, kernel, stride in sides
    )


def _input_size(shape: LayerShape) -> tuple[int, ...]:
    if shape.op == "linear":
        return _output_size(shape)
    if shape.op == "conv_transpose2d":
        return (max(1, shape.out_height // shape.stride[0]), max(1, shape.out_width // shape.stride[1]))
    return (shape.out_height * shape.stride[0], shape.out_width * shape.stride[1])


def _output_size(shape: LayerShape) -> tuple[int, ...]:
    if shape.op != "linear":
        return (shape.out_height, shape.out_width)
    positions = shape.out_height * shape.out_width
    return (positions,) if positions > 1 else ()
