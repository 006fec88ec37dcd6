"""Values of the graph of ONNX as tensors of the file: in which order of dimensions, as floats or codes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from leanfront.compression.export.litert.file import File, Grid

Layout = tuple[int, ...]
"""Dimensions as the network counts them, in the order in which the file has them."""


def plain(rank: int) -> Layout:
    """The network's own order."""
    return tuple(range(rank))


def channels_last(rank: int) -> Layout:
    """What convolutions read: (0, 2, 3, 1)."""
    return (0, *range(2, rank), 1) if rank > 2 else plain(rank)


def laid(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """A shape in the order of the file."""
    return tuple(shape[dimension] for dimension in layout)


@dataclass
class Value:
    """A value of the graph. shape: as the network has it. forms: (layout, kind of numbers, "codes" where it
    is on its grid) -> tensor. grid: of its codes. constant: in the network's order. scales: a weight in codes
    has them along ``axis``. flat: the value of which it is all values in a row."""

    shape: tuple[int, ...]
    kind: str = "float32"
    grid: Grid | None = None
    forms: dict[tuple[Layout, bool], int] = field(default_factory=dict)
    constant: NDArray[Any] | None = None
    scales: NDArray[np.float32] | None = None
    axis: int = 0
    stored: str = "int8"
    flat: "Value | None" = None

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def layout(self) -> Layout:
        """The order of dimensions that there is."""
        return next((layout for layout, _ in self.forms), plain(self.rank))

    @property
    def coded(self) -> bool:
        """Whether it is there in integers on a grid."""
        return self.grid is not None

    @property
    def floats(self) -> NDArray[Any]:
        """A constant's values."""
        assert self.constant is not None
        if self.scales is None:
            return self.constant
        wide = self.scales.reshape([-1 if d == self.axis else 1 for d in range(self.constant.ndim)])
        return (self.constant * wide).astype(np.float32)

    @property
    def single(self) -> bool:
        """Whether it is a constant that is one number."""
        if self.constant is None or self.scales is not None or self.constant.dtype != np.float32:
            return False
        return self.constant.size > 0 and bool((self.constant == self.constant.reshape(-1)[0]).all())

    @property
    def codable(self) -> bool:
        """Whether there are codes that are exactly it."""
        return self.coded or self.single


class Tensors:
    """Tensors of the file for values of the graph, in whatever form an operation wants them."""

    def __init__(self) -> None:
        self.file = File()

    def make(self, shape: Sequence[int], kind: str, grid: Grid | None = None) -> int:
        """A new tensor; on a grid, if there is one."""
        return self.file.tensor(shape, grid.kind if grid else kind, grid)

    def made(self, value: Value, layout: Layout) -> int:
        """A new tensor for a value, on its grid if it has one."""
        tensor = self.make(laid(value.shape, layout), value.kind, value.grid)
        value.forms[layout, value.coded] = tensor
        return tensor

    def form(self, value: Value, layout: Layout | None = None, coded: bool = False) -> int:
        """A value in an order of dimensions (its own, if none is asked for), in codes or not."""
        layout = value.layout if layout is None else layout
        if value.constant is not None:
            return self._stored(value, layout, coded)
        found = value.forms.get((layout, coded))
        if found is not None:
            return found
        if value.flat is not None and not value.forms:
            self._unfolded(value)
            return self.form(value, layout, coded)
        same = next((key for key in value.forms if key[1] == coded), None)
        if same is not None:
            tensor = self.moved(value.forms[same], laid(value.shape, same[0]), same[0], layout, value, coded)
        else:
            assert coded is False, "a value in floats has no codes"
            there = next((key for key in value.forms if key[0] == layout), next(iter(value.forms)))
            tensor = self.make(laid(value.shape, there[0]), value.kind)
            self.file.add("DEQUANTIZE", [value.forms[there]], [tensor], schema.DequantizeOptionsT())
            value.forms[there[0], False] = tensor
            return self.form(value, layout)
        value.forms[layout, coded] = tensor
        return tensor

    def _unfolded(self, value: Value) -> None:
        """Make the tensor of a value that is another's in a row, in the network's order."""
        assert value.flat is not None
        source = self.form(value.flat, plain(value.flat.rank), value.coded)
        value.forms[plain(value.rank), value.coded] = self.reshaped(
            source, value.shape, value.kind, value.grid if value.coded else None
        )

    def moved(
        self, tensor: int, shape: Sequence[int], before: Layout, after: Layout, value: Value, coded: bool
    ) -> int:
        """The same values in another order of dimensions; ``shape``: as they lie."""
        order = tuple(before.index(dimension) for dimension in after)
        wanted = [shape[place] for place in order]
        grid = value.grid if coded else None
        wide = [place for place in order if shape[place] > 1]
        if wide == sorted(wide):  # only dimensions of 1 change places
            return self.reshaped(tensor, wanted, value.kind, grid)
        made = self.make(wanted, value.kind, grid)
        self.file.add("TRANSPOSE", [tensor, self.numbers(order)], [made], schema.TransposeOptionsT())
        return made

    def reshaped(self, tensor: int, shape: Sequence[int], kind: str, grid: Grid | None) -> int:
        """The same values in other dimensions."""
        if list(self.file.tensors[tensor].shape) == list(shape):
            return tensor
        made, options = self.make(shape, kind, grid), schema.ReshapeOptionsT()
        options.newShape = np.array(shape, dtype=np.int32)
        self.file.add("RESHAPE", [tensor, self.numbers(shape)], [made], options)
        return made

    def numbers(self, values: Sequence[int]) -> int:
        """A constant list of sizes or places."""
        return self.file.constant(np.array(values, dtype=np.int32))

    def _stored(self, value: Value, layout: Layout, coded: bool) -> int:
        """A constant as it is in the file; in codes, where it is one number."""
        assert value.constant is not None
        if (layout, coded) not in value.forms:
            if value.scales is not None:
                value.forms[layout, coded] = self._decoded(value, layout)
            elif coded:
                codes, grid = (
                    (on_grid(value.constant, value.grid), value.grid)
                    if value.grid
                    else single_code(value.constant)
                )
                value.forms[layout, coded] = self.file.constant(codes.transpose(layout), grid)
            else:
                array = np.array(value.constant.transpose(layout), order="C")
                value.forms[layout, coded] = self.file.constant(array)
        return value.forms[layout, coded]

    def _decoded(self, value: Value, layout: Layout) -> int:
        """A weight in codes that is read in floats."""
        assert value.constant is not None
        assert value.scales is not None
        codes = np.ascontiguousarray(value.constant.transpose(layout)).astype(np.int8)
        zeros = np.zeros(len(value.scales), dtype=np.int64)
        held = self.file.codes_of(codes, value.scales, zeros, layout.index(value.axis), "int8")
        made = self.make(codes.shape, "float32")
        self.file.add("DEQUANTIZE", [held], [made], schema.DequantizeOptionsT())
        return made


def on_grid(array: NDArray[Any], grid: Grid) -> NDArray[np.int8]:
    """The codes of floats."""
    codes = np.round(array.astype(np.float32) / np.float32(grid.scale)) + grid.zero
    found: NDArray[np.int8] = np.clip(codes, -128, 127).astype(np.int8)
    return found


def single_code(array: NDArray[Any]) -> tuple[NDArray[np.int8], Grid]:
    """A constant that is one number, as the highest code of a grid of its own: exactly that number."""
    number = float(array.reshape(-1)[0])
    codes = np.full(array.shape, 127 if number > 0 else -127, dtype=np.int8)
    return codes, Grid(abs(number) / 127 or 1.0, 0 if number else int(codes.reshape(-1)[0]))
