"""What a layer's weights and bias take in a file of ONNX, besides the values of the weights."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.nodes import Layer, Spelling

LARGE = 4096
"""Bytes of a constant, up to which equal ones are stored once."""

# What is in every file, and what protobuf makes of it: the nodes and constants that hold a policy's integers.
FILE_BYTES = 31
TENSOR_BYTES = 11  # type, name, and how long all is; two bytes more for each dimension
SCALAR_BYTES = 15  # a float
BYTE_BYTES = 12  # an integer of 8 bits
QUANTIZE_BYTES, DEQUANTIZE_BYTES, CLIP_BYTES = 38, 40, 28
CODED_BYTES = QUANTIZE_BYTES + DEQUANTIZE_BYTES + SCALAR_BYTES + BYTE_BYTES
CAST_BYTES, MUL_BYTES, MAX_BYTES = 29, 22, 22
RESHAPE_BYTES = 71  # with the sizes of an image's weight
DECODE_BYTES = 48  # DequantizeLinear with an axis
READ_BYTES = 5  # one more input of a node
AND_BYTES, WHERE_BYTES, SHAPE_BYTES = 29, 29, 26  # BitwiseAnd, Where, Reshape
SIGNS_BYTES = AND_BYTES + CAST_BYTES + WHERE_BYTES + SHAPE_BYTES + TENSOR_BYTES + 2  # unpacks single bits
MASKS_BYTES = TENSOR_BYTES + 2 + 8  # of the bits in a byte
UNEVEN_BYTES = (
    SHAPE_BYTES + 29 + 3 * (TENSOR_BYTES + 2 + 8)
)  # where the weights fill no whole number of bytes


def storage_bits(weight_bits: int) -> int:
    """Bits that one weight takes in the file: 1, 2, 4, 8, 16 or 32 (3 bits are stored in 4, 5 to 7 in 8)."""
    return next(bits for bits in (1, 2, 4, 8, 16, 32) if weight_bits <= bits)


def stored_bits(weight_bits: int, spelling: Spelling) -> int:
    """The same, in a file that need not have all these types; 1 bit is held in bytes anywhere."""
    held = storage_bits(weight_bits)
    return held if held == 1 else max(held, spelling.narrowest_weight)


def length_bytes(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that say how many bytes follow."""
    return np.asarray(1 + sum((sizes >= 2**power).astype(np.int64) for power in (7, 14, 21, 28)))


def vector_bytes(width: NDArray[np.int64], each: int) -> NDArray[np.int64]:
    """Values and shape of a vector, besides what every tensor takes."""
    content = each * width
    return np.asarray(content + (width >= 2**7) + 2 * (length_bytes(content) - 1))


_CONVOLUTION, _LINEAR, _TABLE, _ALONE, _GROUPS_APART = range(5)
WAYS = range(5)
"""Ways in which layers are spelled."""


def way_of(layer: Layer) -> int:
    """The way in which a layer is spelled."""
    if layer.looked_up:
        return _TABLE
    if layer.weight_only:
        return _ALONE
    if layer.groups_apart:
        return _GROUPS_APART
    return _LINEAR if layer.shape.op == "linear" else _CONVOLUTION


def _layer_bytes(way: int, weight_bits: int, integer: bool, spelling: Spelling) -> tuple[int, int, int, int]:
    """What a layer's weights and bias take besides the values of the weights: bytes, and vectors of numbers
    of 4, 2 and 1 bytes for each output channel."""
    linear = way == _LINEAR
    convolution = way in (_CONVOLUTION, _GROUPS_APART)
    scales = TENSOR_BYTES + (8 if convolution else 4)  # of as many dimensions as the weight
    weight, vector = scales, TENSOR_BYTES + 2
    alone = way in (_TABLE, _ALONE)  # without a bias
    if spelling.centred:
        bias = 0 if alone else vector
        if weight_bits <= 8 and way != _GROUPS_APART:  # codes, scales and zeros
            return weight + 2 * vector + DECODE_BYTES + READ_BYTES + bias, 1 + (not alone), 0, 1
        half = weight_bits == 16 and not alone
        return weight + bias, int(not alone and not half), int(half), 0
    stored = stored_bits(weight_bits, spelling)
    halves = CAST_BYTES if stored == 16 else 0
    decoding = CAST_BYTES  # to floats
    if weight_bits == 1:
        weight, decoding = TENSOR_BYTES + 4, SIGNS_BYTES + (32 if convolution else 16)
    if way == _TABLE:
        if weight_bits > 8:
            return weight + halves, 0, 0, 0
        unpacking = CAST_BYTES if stored < 8 else 0
        unpacking += decoding if weight_bits == 1 else 0
        return weight + vector + unpacking + CAST_BYTES + MUL_BYTES, 1, 0, 0
    if way == _ALONE:
        if weight_bits > 8:
            return weight + halves, 0, 0, 0
        return weight + scales + decoding + MUL_BYTES, 1, 0, 0
    if integer:
        unpacking = decoding + CAST_BYTES if stored < 8 else 0
        unpacking += MUL_BYTES if unpacking and weight_bits > 1 else 0
        zeros = 2 * (READ_BYTES + vector) if linear else 0
        return weight + 3 * vector + 2 * DECODE_BYTES + unpacking + zeros, 3 + linear, 0, int(linear)
    if weight_bits <= 8:
        apart = RESHAPE_BYTES if way == _GROUPS_APART else 0
        return weight + scales + vector + decoding + MUL_BYTES + apart, 2, 0, 0
    return weight + vector + halves, 1, 0, 0


FLOATS = {way: _layer_bytes(way, 32, False, Spelling())[0] for way in WAYS}
"""Way -> bytes of a layer in floats."""


def _stored_once(weight_bits: int, integer: int, spelling: Spelling) -> int:
    """A bit for each number that is stored once for all such weights: in how many steps an integer kernel's
    packed codes are finer; of 1 bit what its two codes stand for."""
    if spelling.centred:
        return 0
    if weight_bits == 1:
        return 0b00100010 if integer else 0b01000001
    return integer << weight_bits if 0 < stored_bits(weight_bits, spelling) < 8 else 0


def _held_bits(way: int, weight_bits: int, spelling: Spelling) -> int:
    """Bits that one weight of a layer takes."""
    if spelling.centred and way == _GROUPS_APART and weight_bits <= 8:
        return 32
    return stored_bits(weight_bits, spelling)


@dataclass(frozen=True, eq=False)
class LayerSizes:
    """What layers take in files of one spelling, by number: see ``first``.

    held: bits of one weight; classes: bytes more than in floats, and vectors of 4, 2 and 1 bytes, and
    class_of: which of these; finer: a bit for each number that is stored once.
    """

    held: NDArray[np.int64]
    classes: tuple[tuple[int, int, int, int], ...]
    class_of: NDArray[np.int64]
    finer: NDArray[np.uint8]

    @staticmethod
    def first(way: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of a layer of no bits. Twice its bits further it stands, one more if it computes in
        integers."""
        return 66 * way

    def by_width(self, most: int) -> NDArray[np.int64]:
        """(classes, widths): bytes of a layer of so many output channels besides its weights' values, and
        what one in floats takes anyway."""
        width = np.arange(most)
        vectors = [vector_bytes(width, each) for each in (4, 2, 1)]
        weight = width >= 2**7  # its own shape
        there = width > 0
        return np.array(
            [
                there * fixed + sum(n * each for n, each in zip(counts, vectors, strict=True)) + weight
                for fixed, *counts in self.classes
            ]
        )


@cache
def layer_sizes(spelling: Spelling) -> LayerSizes:
    """Of one spelling; made once."""
    kinds = [(way, bits, bool(integer)) for way in WAYS for bits in range(33) for integer in (0, 1)]
    each = []
    for way, bits, integer in kinds:
        fixed, *vectors = _layer_bytes(way, bits, integer, spelling)
        each.append((fixed - FLOATS[way], vectors[0], vectors[1], vectors[2]))
    classes = sorted(set(each))
    held = [_held_bits(way, bits, spelling) if bits else 0 for way, bits, _ in kinds]
    finer = [_stored_once(bits, integer, spelling) for _, bits, integer in kinds]
    return LayerSizes(
        np.array(held),
        tuple(classes),
        np.array([classes.index(one) for one in each]),
        np.array(finer, dtype=np.uint8),
    )
