"""Kinds of layers with weights that are cut and quantized: one row says what anybody asks of one."""

from leanfront.compression.layers.kinds import KINDS, LayerKind, kind_of, layer_shape

__all__ = ["KINDS", "LayerKind", "kind_of", "layer_shape"]
