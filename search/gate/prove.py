"""Prove a network before anything that is said of its compression is believed: the captured form against the
user's module, files against networks, cut networks against the uncut one with channels out."""

import hashlib
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.program import Arguments
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.techniques.built_in import left_out
from leanfront.compression.techniques.compress import Compressed
from leanfront.latency_models.remembered import remembered, source_digest
from leanfront.networks import Captured, CompressedNetwork, compress, file_of
from leanfront.search.gate.files import held
from leanfront.search.gate.kernels import kernel_report
from leanfront.search.gate.masked import masked
from leanfront.search.gate.policies import DEEP, FLOAT, INTEGER, MIXED, MODERATE, drawn, in_floats
from leanfront.search.gate.shown import first_in_capture, first_in_cut, said
from leanfront.search.gate.tensors import (
    answers,
    drawn_like,
    one_by_one,
    share_of_all,
    share_of_range,
    together,
    tolerance,
)

EXAMPLES = 12
"""Inputs that a file and its network are compared on."""
BATCH = 3
"""The second of the batch sizes, beside 1, at which the captured network is compared with the module."""
SIZE_SHARE, SIZE_BYTES = 0.01, 300
"""How far the predicted size of a file may lie beside its own: the larger of the two."""


class GateError(RuntimeError):
    """A network whose compression would not be what is said of it."""


@dataclass(frozen=True)
class Check:
    """One thing that was proved, or not.

    passed: None where it does not apply to the network; the sentence says why. largest: the largest
    difference that was found, in ``unit``.
    """

    name: str
    passed: bool | None
    largest: float
    unit: str
    sentence: str


@dataclass(frozen=True)
class Proof:
    """What holds of a network, check by check."""

    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each check that failed."""
        return tuple(check.sentence for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def demand(self) -> None:
        """Raise GateError unless it passed."""
        if self.failures:
            more = f" ({len(self.failures) - 1} more: leanfront check)" if len(self.failures) > 1 else ""
            raise GateError(f"the network cannot be searched, a check of it failed: {self.failures[0]}{more}")


def prove(
    model: nn.Module,
    captured: Captured,
    example_inputs: Any,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> Proof:
    """Hold a captured network, and what is made of it, against the user's module; once for each network: what
    was found is kept in the cache folder.

    Args:
        model: the user's module (of a part, the submodule), which is left as it is. captured: what
            ``leanfront.capture`` made of it. example_inputs: as it was captured with. batches: inputs as the
            module takes them, whose ranges integer tensors get; random ones like the example where there are
            none.
        seed: of the policies, and of the random inputs. log: hears when it is not remembered, and takes a
        while.
    """

    def made() -> Proof:
        log("proving what is made of the network, once: captured, cut, written and run in onnxruntime")
        started = time.monotonic()
        gate = _Gate(model, captured, Arguments.of(example_inputs), batches, seed)
        with redirect_stderr(io.StringIO()):  # torch.fx prints what it raises, too
            checks = tuple(gate.checks())
        return Proof(checks, round(time.monotonic() - started, 2))

    return remembered("proofs", _key(model, captured, example_inputs, seed), made, asdict, _read)


def prove_task(model: nn.Module, traced: Traced, batches: Iterable[Any], log: Callable[[str], None]) -> Proof:
    """``prove`` for a search: a network that was captured already."""
    return prove(model, Captured(traced), traced.example, batches, log=log)


def _drawn(model: nn.Module, example: Arguments, seed: int) -> list[Arguments]:
    """Two batches of random inputs that a module takes."""
    for in_place in (False, True):
        found = [together(drawn_like(example, 8, seed + place, in_place)) for place in range(2)]
        with suppress(Exception):  # whatever a module raises that an index is too large for
            for batch in found:
                answers(model, batch)
            break
    return found


class _Gate:
    """One network at the gate."""

    def __init__(
        self,
        model: nn.Module,
        captured: Captured,
        example: Arguments,
        batches: Iterable[Any] | None,
        seed: int,
    ) -> None:
        # by itself, where it is a part: what it gets is given
        self.model, self.captured, self.seed = model, Captured(captured.traced), seed
        given = [Arguments.of(batch).like(example) for batch in batches or ()]
        self.calibration = given = given or _drawn(model, example, seed)
        every = (one for batch in given for one in one_by_one(batch))
        self.examples = [one for one, _ in zip(every, range(EXAMPLES), strict=False)]
        self.examples += [self.examples[0]] * (BATCH - len(self.examples))
        self.rng = np.random.default_rng(seed)
        self.far = tolerance(model)

    def checks(self) -> Iterator[Check]:
        """All checks, those first that the others rest on."""
        yield from _tried("captured network", self._captured)
        network = self.captured.network
        uncut = Policy.uniform(network, LayerPolicy())
        yield from _tried("uncut", lambda: self._policy("uncut", uncut, against=self.model))
        floats = drawn(network, self.rng, [FLOAT], DEEP)
        yield from _tried("cut", lambda: self._cut("cut", floats))
        yield from _tried("cut", lambda: self._policy("cut", floats))
        integers = drawn(network, self.rng, [INTEGER])
        yield from _tried("8 bits", lambda: self._policy("8 bits", integers))
        mixed = drawn(network, self.rng, MIXED, MODERATE)
        yield from _tried("mixed", lambda: self._cut("mixed", in_floats(mixed)))
        yield from _tried("mixed", lambda: self._policy("mixed", mixed))

    def _captured(self) -> Iterator[Check]:
        module = self._module(self.captured.module)
        for size in (1, BATCH):
            batches = [
                together(self.examples[start : start + size]) for start in range(0, len(self.examples), size)
            ]
            theirs, ours = ([answers(one, batch) for batch in batches] for one in (self.model, module))
            apart = list(map(share_of_range, theirs, ours))
            first = partial(first_in_capture, self.model, module, batches[int(np.argmax(apart))])
            what = f"captured network, batch of {size}"
            rule = f"the captured network equals the module in batches of {size}"
            yield self._shares(what, rule, share_of_all(theirs, ours), first)

    def _cut(self, name: str, policy: Policy) -> Iterator[Check]:
        """The cut network, in floats and with its norms as they were, against the uncut one."""
        what = f"{name}: channels out"
        if not policy.absent and not any(layer.sparsity for layer in policy.values()):
            yield Check(what, None, 0.0, "of the range", "nothing of this network can be cut")
            return
        compressed = compress(self.captured, policy)
        shallower = left_out(self.captured.traced, policy.left_out(self.captured.network))
        whole, cut = shallower.module, self._module(compressed.module)
        batch = together(self.examples[:BATCH])
        found = masked(whole, cut, compressed.kept, batch, held=compressed.kept_parameters)
        largest = share_of_range(found.outputs, answers(cut, batch))
        if largest > self.far and found.spread is not None:
            node = next(node for node in whole.graph.nodes if node.name == found.spread)
            yield Check(
                what, None, largest, "of the range",
                "what the cut network has to compute cannot be told: an operation that is no layer and no"
                f" norm mixes channels that go with others, in front of {said(whole, node)}",
            )  # fmt: skip
            return
        yield self._shares(
            what, "the cut network equals the uncut one with the removed channels at zero", largest,
            lambda: first_in_cut(whole, cut, compressed.kept, batch, compressed.kept_parameters),
        )  # fmt: skip

    def _policy(self, name: str, policy: Policy, against: nn.Module | None = None) -> Iterator[Check]:
        """The file of a policy: what it puts out, its size, its kernels. ``against``: what it is compared
        with, else the compressed network."""
        batches = self.calibration if policy_has_integers(policy) else None
        compressed = compress(self.captured, policy, batches)
        content = file_of(compressed)
        inner = Compressed(self._module(compressed.module), compressed.network, compressed.policy)
        found = held(self.captured._template, inner, content, self.examples, against=against)
        rule = f"the file of the {name} network equals {'the module' if against else 'it'}"
        sentence = f"{rule}, {found.why}" if found.passed else f"{name}: {rule} {found.why}"
        yield Check(f"{name}: file", found.passed, found.largest, found.unit, sentence)
        yield self._size(name, policy, content)
        yield _kernels(name, compressed, content)

    def _size(self, name: str, policy: Policy, content: bytes) -> Check:
        predicted = int(PolicyBatch.of(measured(self.captured.traced), [policy]).size_bytes()[0])
        off = abs(predicted - len(content))
        return Check(
            f"{name}: size", off <= max(SIZE_BYTES, SIZE_SHARE * len(content)), off, "bytes",
            f"the file of the {name} network has {len(content)} bytes, predicted were {predicted}",
        )  # fmt: skip

    def _shares(self, what: str, rule: str, largest: float, first: Callable[[], str]) -> Check:
        if largest <= self.far:
            return Check(what, True, largest, "of the range", f"{rule}, within {largest:.1g} of the range")
        sentence = f"{what}: {rule} no nearer than {largest:.2g} of the range; {_named(first)}"
        return Check(what, False, largest, "of the range", sentence)

    @staticmethod
    def _module(module: nn.Module) -> fx.GraphModule:
        assert isinstance(module, fx.GraphModule)
        return module


def policy_has_integers(policy: Policy) -> bool:
    """Whether some tensor is held in integers, whose range must be known."""
    return any(layer.activation_bits <= 8 for layer in policy.there().values())


def _kernels(name: str, compressed: CompressedNetwork, content: bytes) -> Check:
    report = kernel_report(content, compressed.network, compressed.policy, 1)
    said = []
    if report["not_fused"]:
        said.append(f"layers do not run as integer kernels: {', '.join(report['not_fused'])}")
    if report["not_wanted"]:
        said.append(f"float layers run as integer kernels: {', '.join(report['not_wanted'])}")
    wrong = len(report["not_fused"]) + len(report["not_wanted"])
    count = len(report["integer"])
    right = f"layers of the {name} network that run as integer kernels: {count}, as promised"
    sentence = f"in the file of the {name} network {'; '.join(said)}" if said else right
    return Check(f"{name}: kernels", not said, float(wrong), "layers", sentence)


def _tried(name: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What is raised on the way is a check that failed."""
    try:
        yield from checks()
    except Exception as error:  # whatever comes out of torch, onnx or onnxruntime means the same here
        message = " ".join(str(error).split()) or "without a message"
        sentence = f"{name}: it cannot be compressed: {type(error).__name__}: {message}"
        yield Check(name, False, math.inf, "", sentence)


def _named(first: Callable[[], str]) -> str:
    """The operation to blame; looking for it may fail, too, which must not hide what was found."""
    try:
        return first()
    except Exception as error:
        return f"no operation can be named ({type(error).__name__}: {' '.join(str(error).split())})"


def _key(model: nn.Module, captured: Captured, example_inputs: Any, seed: int) -> str:
    """Of whatever a proof depends on, but for the inputs that it was found with."""
    digest = hashlib.blake2b(f"{seed} {_versions()} {model} {captured.module}".encode(), digest_size=16)
    for module in (model, captured.module):
        held = dict(module.state_dict(keep_vars=True)) | dict(module.named_buffers()) | _constants(module)
        for name, tensor in sorted(held.items()):
            if isinstance(tensor, Tensor):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for leaf in torch.utils._pytree.tree_leaves(example_inputs):
        known = f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
        digest.update(known.encode())
    return digest.hexdigest()


def _constants(module: nn.Module) -> dict[str, Any]:
    """What the graph of a captured network reads besides, by its address."""
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    addresses = [str(node.target) for node in nodes if node.op == "get_attr"]
    return {address: attrgetter(address)(module) for address in addresses}


def _versions() -> str:
    """Of leanfront its source: what is proved is what this code does."""
    source = source_digest("compression", "search/gate")
    return f"{source} torch {torch.__version__} onnxruntime {onnxruntime.__version__}"


def _read(raw: dict[str, Any]) -> Proof:
    return Proof(tuple(Check(**check) for check in raw["checks"]), raw["seconds"])
