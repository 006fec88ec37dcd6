"""Attention as plain operations: modules of torch that compute it in one piece are written out, so that
their layers can be seen, and cut and quantized like any others."""

import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from leanfront.compression.capture.operations import plain_layer


class AttentionTracer(fx.Tracer):
    """Sees single nodes in torch's modules, and in layers under another name, but sees through attention.

    nn.MultiheadAttention of one tensor with itself, nn.TransformerEncoderLayer and nn.TransformerEncoder are
    written out, without masks, batch first; otherwise they stay single nodes.
    """

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        """As torch's. Attention's layers are made beforehand: while tracing, parameters are stand-ins."""
        modules = root.modules() if isinstance(root, nn.Module) else ()
        self._parts = {id(m): _parts(m) for m in modules if isinstance(m, nn.MultiheadAttention)}
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return plain_layer(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One node, several, or those of a module that is written out."""
        plain = {"need_weights", "average_attn_weights", "is_causal"}  # that change no value here
        asked = {key for key, value in kwargs.items() if value is not None and value is not False} - plain
        if (
            isinstance(m, nn.MultiheadAttention)
            and _writable(m)
            and not asked
            and not kwargs.get("is_causal")
        ):
            if len(args) == 3 and args[0] is args[1] is args[2]:
                return self._attention(m, args[0])
        elif isinstance(m, nn.TransformerEncoderLayer) and len(args) == 1 and not asked:
            if _writable(m.self_attn):
                return _encoder_layer(m, args[0])
        elif isinstance(m, nn.TransformerEncoder) and len(args) == 1 and not asked:
            x = args[0]
            for layer in m.layers:
                x = layer(x)
            return x if m.norm is None else m.norm(x)
        return super().call_module(m, forward, args, kwargs)

    def _attention(self, m: nn.MultiheadAttention, x: Any) -> tuple[Any, Any]:
        """Vaswani et al. 2017, section 3.2, with one projection for queries, keys and values."""
        width, heads = m.embed_dim, m.num_heads
        batch, tokens = x.shape[0], x.shape[1]
        parts = self._parts[id(m)]
        assert self.submodule_paths is not None
        for name, part in parts.items():
            self.submodule_paths[part] = f"{self.path_of_module(m)}.{name}"
            m._modules[name] = part
        qkv = parts["in_proj"](x).reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = ((qkv[0] @ qkv[1].transpose(-2, -1)) * (width // heads) ** -0.5).softmax(-1)
        if m.dropout > 0.0:
            weights = parts["attention_dropout"](weights)
        mixed = (weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, width)
        return parts["out_proj"](mixed), weights.mean(1)


def _writable(m: nn.MultiheadAttention) -> bool:
    return m.batch_first and m._qkv_same_embed_dim and m.bias_k is None and not m.add_zero_attn


def _parts(m: nn.MultiheadAttention) -> dict[str, nn.Module]:
    """Its layers as modules of their own; nothing if it is not written out."""
    if not _writable(m):
        return {}
    parts: dict[str, nn.Module] = {
        "in_proj": _linear(m.in_proj_weight, m.in_proj_bias),
        "out_proj": _linear(m.out_proj.weight, m.out_proj.bias),
    }
    if m.dropout > 0.0:
        parts["attention_dropout"] = nn.Dropout(m.dropout)
    return {name: part.train(m.training) for name, part in parts.items()}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _encoder_layer(m: nn.TransformerEncoderLayer, x: Any) -> Any:
    def attended(y: Any) -> Any:
        return m.dropout1(m.self_attn(y, y, y, need_weights=False)[0])

    def fed_forward(y: Any) -> Any:
        return m.dropout2(m.linear2(m.dropout(m.activation(m.linear1(y)))))

    if m.norm_first:
        x = x + attended(m.norm1(x))
        return x + fed_forward(m.norm2(x))
    x = m.norm1(x + attended(x))
    return m.norm2(x + fed_forward(x))


def write_out_products(graph: fx.GraphModule) -> bool:
    """Turn F.scaled_dot_product_attention without mask into its products; whether there was any.

    Tensor shapes must be known already, and are not after it.
    """
    found = False
    for node in list(graph.graph.nodes):
        if node.target is not F.scaled_dot_product_attention or not _maskless(node):
            continue
        named = dict(zip(("query", "key", "value"), node.args, strict=False)) | dict(node.kwargs)
        query, key, value = named["query"], named["key"], named["value"]
        scale = named.get("scale") or query.meta["tensor_meta"].shape[-1] ** -0.5
        with graph.graph.inserting_before(node):
            turned = graph.graph.call_method("transpose", (key, -2, -1))
            scores = graph.graph.call_function(operator.matmul, (query, turned))
            scaled = graph.graph.call_function(operator.mul, (scores, scale))
            weights = graph.graph.call_method("softmax", (scaled, -1))
            mixed = graph.graph.call_function(operator.matmul, (weights, value))
        node.replace_all_uses_with(mixed)
        graph.graph.erase_node(node)
        found = True
    if found:
        graph.recompile()
    return found


def _maskless(node: fx.Node) -> bool:
    """Queries, keys and values, perhaps a scale, and nothing else that is not off."""
    given = dict(node.kwargs)
    given |= dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False))
    asked = {key for key, value in given.items() if value is not None and value is not False and value != 0.0}
    return asked <= {"query", "key", "value", "scale"}
