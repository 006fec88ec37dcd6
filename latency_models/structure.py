"""Which optimised nodes each kernel of a network becomes, under any policy, without asking onnxruntime twice.

What the optimiser makes of a kernel depends on the kernel itself (its widths, integer or float) and on its
neighbourhood: layouts and fusions follow from what makes its inputs and what reads its output. So the
optimised nodes are kept per context: kernel, widths, and the flags of all kernels within ``RADIUS`` steps.
A context that was never seen is answered by building the whole network and optimising it (tens of
milliseconds); that also notes the contexts of all the other kernels.
"""

import ast
import json
import math
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from compression.policy import LayerPolicy, Network, Policy, integer_kernels, kernels, tensor_bits
from latency_models.cost import TableError
from latency_models.fused_graph import FusedNode, fused_nodes
from latency_models.measure import CPU
from latency_models.memory import tensor_bytes

RADIUS = 2
Build = Callable[[Network, Policy], bytes]
"""(network already resized, policy) -> the serialized ONNX model that an export of them has."""

Context = tuple[object, ...]


def canonical(policy: Policy) -> Policy:
    """The policy as far as it decides which kernels run: integer layers hold 8-bit weights, whatever the
    policy stores them in, and layers that are not integer compute in float32."""
    return Policy.of(
        {
            name: LayerPolicy(p.sparsity, 8, p.activation_bits, p.pattern)
            if p.integer
            else LayerPolicy(p.sparsity, 32, 32, p.pattern)
            for name, p in policy.items()
        }
    )


class Structure:
    """The kernels of one network and the optimised nodes that they become."""

    def __init__(self, network: Network, build: Build, threads: int = 1, provider: str = CPU) -> None:
        """``network``: uncut. ``build`` is called with its resized forms."""
        self.kernels = kernels(network)
        self.outputs = network.outputs
        self.nodes: dict[str, FusedNode] = {}
        self.build, self.threads, self.provider = build, threads, provider
        self._owners = {node.name: k.name for k in self.kernels for node in k.nodes}
        self._owners |= {k.layer.name: k.name for k in self.kernels if k.layer is not None}
        self._layers = tuple(k.layer.name if k.layer else None for k in self.kernels)
        index = {kernel.name: i for i, kernel in enumerate(self.kernels)}
        self._inputs = tuple(tuple(index[name] for name in k.inputs) for k in self.kernels)
        self._near = _neighbourhoods(self._inputs, RADIUS)
        self._outputs = tuple(k.output.name for k in self.kernels)
        self._parts: dict[Context, tuple[str, ...]] = {}
        self.flags = lru_cache(maxsize=65536)(self._flags)

    def bits_of(self, policy: Mapping[str, LayerPolicy]) -> tuple[int, ...]:
        """What of a policy decides its kernels' precision, in order of the layers: 32, or activation bits."""
        return tuple(
            32 if name is None or not (p := policy[name]).integer else p.activation_bits
            for name in self._layers
        )

    def _flags(self, bits: tuple[int, ...]) -> tuple[tuple[bool, int], ...]:
        """Per kernel: does it compute in integers, and at how many bits is its output held."""
        policy = {
            name: LayerPolicy(0.0, 8 if b < 32 else 32, b)
            for name, b in zip(self._layers, bits, strict=True)
            if name is not None
        }
        held = tensor_bits(self.kernels, policy)
        integer = integer_kernels(self.kernels, policy)
        return tuple((kernel.name in integer, held[kernel.name]) for kernel in self.kernels)

    def tensor_sizes(self, network: Network, policy: Policy) -> list[int]:
        """Bytes of each kernel's output tensor."""
        flags = self.flags(self.bits_of(policy))
        node = network.node
        return [
            tensor_bytes(node[name].elements, held)
            for name, (_, held) in zip(self._outputs, flags, strict=True)
        ]

    def contexts(self, network: Network, policy: Policy) -> list[Context]:
        """The context of each kernel."""
        flags = self.flags(self.bits_of(policy))
        node = network.node
        widths = [node[name].width for name in self._outputs]
        marks = [(flag, math.gcd(width, 16)) for flag, width in zip(flags, widths, strict=True)]
        return [
            (index, widths[index], *[widths[source] for source in sources], *[marks[other] for other in near])
            for index, (sources, near) in enumerate(zip(self._inputs, self._near, strict=True))
        ]

    def parts(self, network: Network, policy: Policy) -> list[tuple[str, ...]]:
        """Keys of the optimised nodes of each kernel, in order.

        Raises:
            TableError: onnxruntime cannot load the network.
        """
        contexts = self.contexts(network, policy)
        if any(context not in self._parts for context in contexts):
            self.observe(network, policy)
        return [self._parts[context] for context in contexts]

    def part(self, context: Context) -> tuple[str, ...] | None:
        """Keys of the optimised nodes of a kernel in a context, if it was seen."""
        return self._parts.get(context)

    def keys(self) -> set[str]:
        """Keys of all optimised nodes seen so far."""
        return {key for part in self._parts.values() for key in part}

    def forget(self) -> None:
        """Start anew, as if nothing had been seen."""
        self._parts.clear()
        self.nodes.clear()

    def observe(self, network: Network, policy: Policy) -> list[tuple[str, ...]]:
        """Build the network, optimise it, and note what each kernel became; the same as ``parts``.

        Raises:
            TableError: onnxruntime cannot load the network.
        """
        found = fused_nodes(self.build(network, canonical(policy)), self._owners, self.threads, self.provider)
        keys: dict[str, list[str]] = {kernel.name: [] for kernel in self.kernels}
        first = self.kernels[0].name
        for node in found:
            self.nodes.setdefault(node.key, node)
            keys[node.owner or first].append(node.key)
        parts = [tuple(keys[kernel.name]) for kernel in self.kernels]
        for context, part in zip(self.contexts(network, policy), parts, strict=True):
            self._parts.setdefault(context, part)
        return parts

    def save(self, path: Path) -> None:
        """Write all contexts, beside and renamed."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8") as file:
                for context, part in self._parts.items():
                    file.write(json.dumps([repr(context), part]) + "\n")
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise TableError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Take in what ``save`` wrote; a file that is not there or damaged is as if empty."""
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    text, part = json.loads(line)
                    self._parts.setdefault(ast.literal_eval(text), tuple(part))
        except (OSError, ValueError, SyntaxError):
            return


def _neighbourhoods(inputs: tuple[tuple[int, ...], ...], radius: int) -> tuple[tuple[int, ...], ...]:
    """For each kernel those within ``radius`` steps up or down, itself first, in a fixed order."""
    beside: list[set[int]] = [set(sources) for sources in inputs]
    for index, sources in enumerate(inputs):
        for source in sources:
            beside[source].add(index)
    found = []
    for index in range(len(inputs)):
        near = {index}
        for _ in range(radius):
            near |= {other for member in near for other in beside[member]}
        found.append((index, *sorted(near - {index})))
    return tuple(found)
