"""A network in Python: captured, given a policy, compressed, priced, exported."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from leanfront.compression.capture.part import calls_of_part, trace_part, with_part
from leanfront.compression.capture.program import Arguments
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import (
    BUILT_IN,
    QDQ,
    Dialect,
    check_operations,
    check_policy,
    dialect_for,
    dialect_of,
)
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.template import TENSOR, ExportError, Template, template
from leanfront.compression.export.walk import exported
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.dynamic import DYNAMIC, check_dynamic, together
from leanfront.compression.techniques.built_in import left_out
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.compress import compress as compressed_by
from leanfront.compression.techniques.prune import kept_channels
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import changed_norms, re_estimate
from leanfront.hw_profiles import HardwareProfile, load_profile
from leanfront.latency_models.cost import Cost
from leanfront.latency_models.files import replace_file
from leanfront.search.gate.files import held
from leanfront.search.gate.tensors import drawn_like, one_by_one

_TRIED = 4
"""Inputs that a file is tried on before it is written."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A network as leanfront follows it; made by ``capture``. The module it was made of is never touched.

    ``notes``: a line for each thing with weights that is kept as it is, and why. ``part``: the submodule that
    was captured, of ``whole``; None: all of it.
    """

    traced: Traced = field(repr=False)
    whole: nn.Module | None = field(default=None, repr=False)
    part: str | None = None

    @property
    def module(self) -> nn.Module:
        """The captured copy, which computes what the given module computes in evaluation mode."""
        return self.traced.module

    @property
    def network(self) -> Network:
        """Layers, operations and connections: what prices and policies speak of."""
        return self.traced.network

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each thing with weights that is kept as it is, and why."""
        return self.traced.notes

    @property
    def groups(self) -> Mapping[str, int]:
        """Group of channels that are cut together -> how many channels it has."""
        return {name: self.network.group_size(name) for name in self.network.groups}

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the residual branches that can be left out whole."""
        return tuple(branch.name for branch in self.network.branches)

    def gets(self, batch: Any) -> list[Arguments]:
        """What is captured gets for a batch of inputs of the whole network: the batch, or, of a part, what
        each of its calls gets."""
        batch, example = _tensors(batch), self.traced.example
        if self.part is None:
            return [Arguments.of(batch).like(example)]
        assert self.whole is not None
        return [call.like(example) for call in calls_of_part(self.whole, self.part, batch)]

    @cached_property
    def _template(self) -> Template:
        return template(self.traced)


@dataclass(frozen=True, eq=False)
class CompressedNetwork:
    """A network that a policy was applied to; made by ``compress``.

    ``module``: cut for real, with quantizers where the policy has integers; it can be trained like any other.
    ``network``: the same as shapes and connections.
    """

    module: nn.Module
    network: Network
    policy: Policy
    captured: Captured = field(repr=False)
    multiple: int = 1
    examples: tuple[Any, ...] = field(default=(), repr=False)
    """A few inputs, batches of one, of those that it was calibrated with: ``export`` tries the file on
    them."""

    @property
    def whole(self) -> nn.Module:
        """The user's network with the compressed part in its place: the weights around it are those of the
        user's module, not copies. Where all of it was captured, ``module``."""
        captured = self.captured
        if captured.part is None:
            return self.module
        assert captured.whole is not None
        return with_part(captured.whole, captured.part, self.module)

    @property
    def kept(self) -> Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Layer -> (inputs, outputs): indices of the uncut layer's channels that stay, ascending. Layers of
        branches that were left out are not in it."""
        return self._kept[0]

    @property
    def kept_parameters(self) -> Mapping[str, tuple[int, tuple[int, ...]]]:
        """Address of a parameter or buffer that is no layer's (a table, a token) -> the dimension of its
        channels, and the indices along it that stay."""
        return self._kept[1]

    @cached_property
    def _kept(
        self,
    ) -> tuple[
        Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], Mapping[str, tuple[int, tuple[int, ...]]]
    ]:
        whole = self.captured.traced
        shallower = left_out(whole, self.policy.left_out(whole.network))
        return kept_channels(shallower, self.policy.cut(whole.network, self.multiple))


@dataclass(frozen=True)
class Exported:
    """A file that was written. ``notes``: what to know of it."""

    path: Path
    size_bytes: int
    notes: tuple[str, ...] = ()


def capture(model: nn.Module, example_inputs: Any, part: str | None = None) -> Captured:
    """Follow a network, or a part of one, from its inputs to its outputs.

    Args:
        model: any module that torch.export captures; it is copied, and used in evaluation mode.
        example_inputs: as the module takes them, with a batch of one: a tensor, a tuple of arguments, or a
            dictionary of keywords; tensors may lie in lists and dictionaries of their own.
        part: name of a submodule that is captured instead, with what it gets for ``example_inputs``: for
            networks around it that decide on values (a detector's boxes, say).

    Raises:
        TraceError: it cannot be followed; the sentence names the operation. There is no such part, or it is
            never called.
    """
    return Captured(trace_part(model, example_inputs, part), None if part is None else model, part)


def uniform(
    captured: Captured,
    sparsity: float = 0.0,
    weight_bits: int = 32,
    activation_bits: int = 32,
    left_out: Sequence[str] = (),
    more: Mapping[str, float] = MappingProxyType({}),
    dynamic: bool = False,
) -> Policy:
    """The same for every layer; tables that are looked up put out floats, whatever ``activation_bits``.

    Args:
        sparsity: share of each group's channels that is cut, 0 to below 1; groups that must stay, stay.
        weight_bits, activation_bits: 1 to 8 (activations from 2), or 16 or 32 for floats.
        left_out: branches that are left out whole, of ``captured.branches``.
        more: name of another technique -> its number, such as {"unstructured": 0.8}, the share of each
            layer's weights that are 0, or {"2:4": 0.5}; layers in which zeros cannot lie so have none.
        dynamic: linear layers and LSTMs quantize what they read while they run, for onnxruntime: nothing is
            calibrated for them. Weights have 8 bits then, and activations 32.

    Raises:
        PolicyError: a value that no layer can have, or a branch that there is not.
    """
    network = captured.network
    there = {branch.name: branch for branch in network.branches}
    for name in left_out:
        if name not in there:
            known = ", ".join(there) or "none"
            raise PolicyError(
                f"a branch that is left out must be one of the network's ({known}), not {name!r}"
            )
    gone = {layer for name in left_out for layer in there[name].layers}
    wanted = LayerPolicy(sparsity, weight_bits, activation_bits, more=tuple(more.items()))
    layers = dict(Policy.uniform(network, wanted))
    if dynamic:
        able = {name for one in together(network) for name in one}
        layers |= {
            name: replace(layer, more=(*layer.more, (DYNAMIC, 1.0)))
            for name, layer in layers.items()
            if name in able
        }
        check_dynamic(network, layers)
    return Policy.of(layers, gone)


def compress(
    captured: Captured,
    policy: Policy,
    calibration: Iterable[Any] | None = None,
    multiple: int = 1,
    to: str = "onnx",
) -> CompressedNetwork:
    """Apply a policy to a copy: leave branches out, cut channels, put quantizers in, estimate what they need.

    Args:
        calibration: batches of inputs, as the user's module takes them (of a part, the whole), or one such
            tensor or dictionary: integer activations need their ranges, and batch norms of a cut network are
            estimated again on them.
        multiple: channel counts are rounded to it (a profile's ``channel_multiple``).
        to: the kind of file that it is meant for: engines differ in where the zero of a tensor's integers
            may lie, and what is trained has to have it there.

    Raises:
        DialectError: there is no such kind of file.
        PolicyError: the policy does not fit the network, or has integer activations and nothing to calibrate.
    """
    given = () if calibration is None else calibration
    each = [given] if isinstance(given, torch.Tensor | np.ndarray | Mapping) else given
    batches = [call for batch in each for call in captured.gets(batch)]
    made = compressed_by(replace(captured.traced, grids=dialect_of(to).grids), policy, multiple)
    if any(layer.activation_bits < 16 for layer in policy.there().values()) and not batches:
        raise PolicyError("integer activations need their ranges; give calibration, an iterable of inputs")
    if batches:
        re_estimate(made.module, batches, changed_norms(captured.traced, made))
        calibrate(made.module, batches)
    examples = tuple(one for batch in batches[:1] for one in one_by_one(batch)[:_TRIED])
    return CompressedNetwork(made.module.eval(), made.network, made.policy, captured, multiple, examples)


def _tensors(batch: Any) -> Any:
    """A batch as the module takes it, with tensors where there are arrays."""
    if isinstance(batch, np.ndarray) or (isinstance(batch, list) and not _holds_tensors(batch)):
        return torch.as_tensor(batch)
    return pytree.tree_map_only(np.ndarray, torch.as_tensor, batch)


def _holds_tensors(batch: list[Any]) -> bool:
    """Whether a list is an argument with tensors in it, and not a tensor that is written as numbers."""
    return any(isinstance(leaf, torch.Tensor | np.ndarray) for leaf in pytree.tree_leaves(batch))


def export(compressed: CompressedNetwork, path: Path | str, to: str = "onnx") -> Exported:
    """Write a compressed network for an engine. The file is run first, on a few of the inputs that the
    network was calibrated with, or random ones: one that does not put out what the network does is not
    written.

    Args:
        to: the kind of file: "onnx" is for onnxruntime, others are what was registered.

    Raises:
        DialectError: there is no such kind of file. ExportError: torch cannot write the network, or the file
            puts out something else; the sentence names the operation. OSError: it cannot be written.
    """
    model = file_of(compressed, to)
    path = Path(path)
    _compare(compressed, model, path, dialect_of(to))
    replace_file(path, model)
    return Exported(path, len(model), compressed.captured.notes)


def file_of(compressed: CompressedNetwork, to: str = "onnx") -> bytes:
    """What ``export`` writes, not compared with anything.

    Raises:
        DialectError, ExportError: as ``export``.
    """
    inner = Compressed(compressed.module, compressed.network, compressed.policy)  # type: ignore[arg-type]
    dialect = dialect_for(to, "onnxruntime")
    check_policy(dialect, inner.network, inner.policy)
    if dialect.limited:
        check_operations(dialect, compressed.captured._template.model().graph, TENSOR)
    written = exported(compressed.captured._template, inner, dialect)
    return dialect.finished(written, inner.network, inner.policy)


def _compare(compressed: CompressedNetwork, model: bytes, path: Path, dialect: Dialect) -> None:
    if not (dialect.runs_here and dialect.exact):
        return
    captured = compressed.captured
    inner = Compressed(compressed.module, compressed.network, compressed.policy)  # type: ignore[arg-type]
    examples = compressed.examples or drawn_like(captured.traced.example, _TRIED, seed=0)
    found = held(captured._template, inner, model, examples, dialect)
    if not found.passed:
        raise ExportError(f"{path} is not written: the file equals the network {found.why}")


def cost(
    network: Captured | Network, policy: Policy | None = None, profile: HardwareProfile | str = "this-machine"
) -> Cost:
    """What a network costs on a part under a policy (none: uncompressed, in floats).

    A profile that is measured times the network here, which takes seconds; others are computed. Of a captured
    network the size is that of its file for the profile's engine, which is written once for it (seconds);
    that of onnxruntime's, where the packages that write the engine's own are not installed.

    Raises:
        ProfileError: no such profile, or the part cannot run those bits. PolicyError, TableError: the policy
            does not fit the network, or a cost is not known.
    """
    from leanfront.compression.export.network_model import network_model
    from leanfront.latency_models.pricing import price

    hardware = profile if isinstance(profile, HardwareProfile) else load_profile(profile)
    if isinstance(network, Captured):
        own = dialect_of(BUILT_IN.get(hardware.engine, QDQ.name))
        network = measured(network.traced, QDQ if own.missing else own)
    policy = policy or Policy.uniform(network, LayerPolicy())
    return price(network, policy, hardware, network_model).cost
