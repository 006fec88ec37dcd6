"""What the goldens are of: the one file that knows how the source is called.

Everything else in this folder works on what these functions return: arrays, numbers, text and bytes. When a
function of the source is renamed or takes something else, this file follows; what comes out stays.
"""

import gzip
import io
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.network_model import network_model
from leanfront.compression.export.template import Template, template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import re_estimate
from leanfront.hw_profiles.loading import BUILT_IN, read_profile
from leanfront.hw_profiles.profile import HardwareProfile
from leanfront.latency_models.cost import CostModel, TableError
from leanfront.latency_models.kernel_table.keys import constant_bytes_of, without_sizes
from leanfront.latency_models.kernel_table.table import CALL, Device, Entry, LatencyTable
from leanfront.latency_models.measured.correction import PRIOR, Correction
from leanfront.latency_models.measured.model import TableModel
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.registry import model_of
from leanfront.search.cli.app import main
from leanfront.search.config import LimitsSection
from leanfront.search.samplers.cascade.encoding import Encoding
from leanfront.search.samplers.cascade.expected_hypervolume import FrontSurface, latin_hypercube
from leanfront.search.samplers.cascade.sampler import CascadeSampler
from leanfront.search.samplers.cascade.warm_start import Knowledge
from tests.goldens import networks

FOLDER = Path(__file__).parent
SPARSITY = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
POLICIES = 1000
SINGLE = 4
"""So many of them are also priced one by one."""
COSTS = ("latency_ms", "energy_mj", "size_bytes", "peak_memory_bytes")
NEAR_CACHE_BYTES = 100_000
KERNELS = FOLDER / "kernels.json.gz"
"""The optimised kernels of the five networks, as onnxruntime made them when the goldens were made."""


# --- networks and profiles ---------------------------------------------------------------------------------


@cache
def traced(name: str) -> Traced:
    return trace(networks.built(name), networks.inputs(name, 1, 0) * 0)


def profiles() -> dict[str, HardwareProfile]:
    """Name -> profile: all that are shipped, and two here that are too small for many policies."""
    files = sorted([*BUILT_IN.glob("*.toml"), *(FOLDER / "profiles").glob("*.toml")], key=lambda p: p.stem)
    return {path.stem: read_profile(path) for path in files}


# --- policies ----------------------------------------------------------------------------------------------


def space(network: Network, profile: HardwareProfile) -> Space:
    """With all pairs of bits that a profile supported when the goldens were made."""
    pairs = [(w, a) for w, a in profile.supported if w > 1 and a in (4, 8, 16, 32) and (w, a) != (16, 32)]
    weights, activations = (sorted({pair[place] for pair in pairs}) for place in (0, 1))
    return Space(network, profile, SPARSITY, weights, activations)


def policies(network: Network, profile: HardwareProfile, seed: int = 0) -> PolicyBatch:
    """A thousand: uncompressed, cut everywhere alike, and drawn, every second one with branches left out.

    Drawn here and not by the space, whose own draws may come to be in another order.
    """
    offered = space(network, profile)
    rng = np.random.default_rng(seed)
    sizes = np.array([len(levels) for levels in offered.levels.values()])
    levels = rng.integers(0, 2**31, (len(sizes), POLICIES)) % sizes[:, None]
    pairs = rng.integers(0, 2**31, (len(network.layers), POLICIES)) % len(offered.pairs)
    left_out = (rng.random((len(offered.branches), POLICIES)) < 0.4) & (rng.random(POLICIES) < 0.5)
    most = len(SPARSITY)
    for column in range(most):  # one pair everywhere, all groups at one level, no branch left out
        levels[:, column] = np.minimum(column, sizes - 1)
        pairs[:, column] = (len(offered.pairs) - 1 - column) % len(offered.pairs)
        left_out[:, column] = False
    alike = slice(most, 3 * most)
    pairs[:, alike] = pairs[:1, alike]
    codes = np.zeros((len(offered.decisions), POLICIES), dtype=np.int64)
    for kind, chosen in (("sparsity", levels), ("branch", left_out), ("bits", pairs)):
        codes[offered.rows(kind)] = chosen
    return offered.batch(codes)


def policy_arrays(batch: PolicyBatch) -> dict[str, NDArray[Any]]:
    """Name -> (rows, n): what the policies are, so that another draw is told from another price."""
    none = np.zeros((0, batch.count), dtype=np.bool_)
    return {
        "channels": batch.channels,
        "weight_bits": batch.weight_bits,
        "activation_bits": batch.activation_bits,
        "left_out": none if batch.left_out is None else batch.left_out,
    }


# --- prices ------------------------------------------------------------------------------------------------


class NotKnown(Exception):
    """A part that does not know what a network costs; says why."""


def model(name: str, profile: HardwareProfile) -> CostModel:
    """What prices a network on a part; for measured ones with the times that ``made_up_ms`` makes up."""
    return model_of(profile) if profile.model != "measured" else measured_model(name, profile)


def made_up_ms(key: str) -> float:
    """The time of a kernel: the more constants the longer, and a share that only its key decides."""
    return (2e-3 + 2e-7 * constant_bytes_of(key)) * (1 + zlib.crc32(key.encode()) % 1000 / 2000)


def measured_model(name: str, profile: HardwareProfile) -> TableModel:
    """The model of a measured part on stored kernels: neither onnxruntime nor this machine has a say."""
    structure = Structure(traced(name).network, _no_building)
    with gzip.open(KERNELS, "rt", encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contexts.jsonl"
        path.write_text(json.dumps(json.load(file)[name]), encoding="utf-8")
        structure.load(path)
    assert structure.keys(), "the stored kernels were not read"
    return _on_made_up_times(structure, profile)


def _no_building(network: Network, policy: Policy) -> bytes:
    raise AssertionError("this builds a network whose kernels are not in kernels.json.gz")


def _on_made_up_times(structure: Structure, profile: HardwareProfile) -> TableModel:
    """One of eight kernels is not in the table, and is foretold from the others of its kind."""
    kinds: set[str] = set()
    entries = {}
    for key in sorted(structure.keys()):
        if without_sizes(key) not in kinds or zlib.crc32(key.encode()) % 8:
            kinds.add(without_sizes(key))
            resident = 2 * constant_bytes_of(key)
            entries[key] = Entry(made_up_ms(key), 0.0, 1, 1.0, 0.05, resident, "2026-01-01")
    entries[CALL] = Entry(0.005, 0.0, 1, 1.0, 0.05, 0, "2026-01-01")
    device = Device("made-up", 4, 1, "CPUExecutionProvider", "1.0")
    table = LatencyTable(device, entries, profile.name, NEAR_CACHE_BYTES)
    weights = {kind: 0.9 + 0.02 * place for place, kind in enumerate(PRIOR)}
    weights |= {"nodes": 1e-4, "constant_bytes": 1e-8, "far_bytes": 5e-8}
    return TableModel(structure, table, profile, Correction(weights, 20))


def stored_kernels() -> dict[str, Any]:
    """Network -> what ``measured_model`` reads: built and optimised now. Only ``make`` calls this."""
    found = {}
    profile = profiles()["this-machine"]
    for name in networks.KINDS:
        network, graph = traced(name).network, template(traced(name))

        def build(cut: Network, policy: Policy, graph: Any = graph) -> bytes:
            return bytes(random_model(graph, cut, policy).SerializeToString())

        batch = policies(network, profile)
        structure = Structure(network, build)
        for column in range(24):  # what every form of a kernel is measured at
            policy = batch.policy(column)
            structure.observe(policy.cut(network), policy)
        priced, seen = False, 0
        while not priced or seen != len(structure.states):  # until no policy has a form that none before had
            seen, priced = len(structure.states), True
            try:
                _on_made_up_times(structure, profile).costs(batch)
            except TableError:  # of a kind of kernel that came up now and has a time in the next table
                priced = False
                if seen == len(structure.states):
                    raise
        with tempfile.TemporaryDirectory() as folder:
            structure.save(Path(folder) / "contexts.jsonl")
            found[name] = json.loads((Path(folder) / "contexts.jsonl").read_text(encoding="utf-8"))
        print(f"{name}: {seen} networks were built")
    return found


def prices(cost_model: CostModel, batch: PolicyBatch) -> dict[str, NDArray[Any]]:
    """Column -> (n,). Raises NotKnown where the part does not know."""
    try:
        found = cost_model.costs(batch)
        columns = {name: np.asarray(getattr(found, name), dtype=np.float64) for name in COSTS}
        return columns | {"fits": np.asarray(found.fits), "modelled": np.asarray(found.modelled)}
    except TableError as error:
        raise NotKnown(str(error)) from error


def single_prices(
    cost_model: CostModel, profile: HardwareProfile, batch: PolicyBatch
) -> Iterator[dict[str, Any]]:
    """Of policies one by one: costs, resources, and what it says of itself; of the first also each kernel."""
    multiple = profile.channel_multiple
    for column in np.linspace(0, batch.count - 1, SINGLE, dtype=int).tolist():
        policy = batch.policy(column)
        network = policy.cut(batch.network, multiple)
        cost = cost_model.cost(network, policy)
        yield {
            "policy": column,
            **{name: float(getattr(cost, name)) for name in COSTS},
            "fits": bool(cost.fits),
            "resources": {key: float(value) for key, value in cost.resources.items()},
            "kind": cost.kind,
            "estimated": cost.estimated,
        }
    policy = batch.policy(batch.count // 2)
    layers = cost_model.layers(policy.cut(batch.network, multiple), policy)
    yield {
        "policy": batch.count // 2,
        "kernels": [row.name for row in layers],
        "sources": [row.source for row in layers],
        "kernels_ms": [float(f"{row.latency_ms:.10g}") for row in layers],
    }


# --- exported files ----------------------------------------------------------------------------------------

FILES = ("float", "int8", "mixed", "cut", "left_out", "cut_mixed")
BUILT_TO_BE_TIMED = (("resnet", "left_out"), ("vgg", "cut_mixed"), ("mobilenet", "mixed"), ("unet", "int8"),
                     ("resnet", "mixed"), ("unet", "cut_mixed"))  # fmt: skip
"""Of which also the file is kept that is written to be timed where there is no export."""


def file_policy(network: Network, kind: str) -> Policy:
    """One of FILES. Mixed: integers of 2, 4, 5 and 8 bits, float layers, and 4 bits computed in floats."""
    pairs = {"float": [(32, 32)], "int8": [(8, 8)], "cut": [(8, 8)], "left_out": [(8, 8), (4, 8), (32, 32)]}
    mixed = [(4, 8), (8, 8), (2, 8), (32, 32), (4, 32), (8, 8), (5, 8)]
    rows = pairs.get(kind, mixed)
    read: dict[str, int] = {}  # layers that read one tensor share its activation bits
    layers = {}
    number = 0
    gone = (
        {name for branch in network.branches[:2] for name in branch.layers} if kind == "left_out" else set()
    )
    for node in network.nodes:
        if node.layer is not None:
            weights, activations = rows[number % len(rows)]
            number += 1
            held = read.setdefault(node.inputs[0], activations)
            if held != activations:
                weights = 8 if held == 8 else 32
            layers[node.layer] = (weights, held)
    sparsity = dict.fromkeys(network.groups, 0.0)
    if kind.startswith("cut"):
        sparsity = {group: (0.25, 0.5, 0.4)[place % 3] for place, group in enumerate(network.groups)}
    return Policy.of(
        {
            layer.name: LayerPolicy(sparsity.get(layer.group or "", 0.0), *layers[layer.name])
            for layer in network.layers
        },
        gone,
    )


@cache
def _template(name: str) -> Template:
    return template(traced(name))


def exported_file(name: str, kind: str) -> bytes:
    """The network as it is exported under a policy, norms and ranges found on seeded images; one thread."""
    found = traced(name)
    compressed = compress(found, file_policy(found.network, kind))
    data = [networks.inputs(name, 16, 1)]
    re_estimate(compressed.module, data)
    calibrate(compressed.module, data)
    compressed.module.eval()
    return bytes(exported(_template(name), compressed).SerializeToString(deterministic=True))


def file_to_be_timed(name: str, kind: str, exported: bool) -> bytes:
    """What is measured in the place of the trained network: from the template of its export, or without."""
    network = traced(name).network
    policy = file_policy(network, kind)
    cut = policy.cut(network)
    if exported:
        return bytes(random_model(_template(name), cut, policy).SerializeToString(deterministic=True))
    return network_model(cut, policy)


# --- proposals ---------------------------------------------------------------------------------------------

PROPOSALS = 20
KNOWN = 40
"""Trials that the sampler finds done."""


def proposals() -> list[dict[str, Any]]:
    """What cascade proposes one after the other on a made-up problem, and what each was told to score.

    The residual network on the toy; harms of decisions add up, and two of them multiply. Forty trials are
    done, all untrained, every fifth short, every tenth complete.
    """
    profile = profiles()["toy"]
    offered = Space(traced("resnet").network, profile, (0.0, 0.25, 0.5, 0.75), (4, 8, 32), (8, 32))
    encoding = Encoding(offered)
    rng = np.random.default_rng(5)
    harms = [rng.uniform(0.001, 0.02) * np.linspace(*ends, size) ** 2
             for size, ends in zip(encoding.sizes, _worse(encoding), strict=True)]  # fmt: skip
    cost_model = model_of(profile)
    objectives = ("accuracy", "latency_ms", "size_bytes")
    whole = cost_model.costs(encoding.batch(encoding.uncompressed()[:, None]))
    baseline = {name: float(getattr(whole, name)[0]) for name in objectives[1:]} | {"accuracy": 0.95}
    knowledge = Knowledge(
        space=offered, cost_model=cost_model, objectives=objectives, limits=LimitsSection(),
        baseline=baseline,
        divergences={n: tuple(h) for n, h in zip(encoding.names, harms, strict=True)},
        images=(0, 1000, 2000), start=0,
    )  # fmt: skip
    knowledge = replace(knowledge, archive=knowledge.cheap_front(20_000))

    def result(policy: Policy, rungs: int) -> dict[str, Any]:
        codes = encoding.of(policy)
        alone = [float(own[code]) for own, code in zip(harms, codes, strict=True)]
        divergence = sum(alone) + 30.0 * alone[0] * alone[1] + 1e-4
        costs = cost_model.costs(encoding.batch(codes[:, None]))
        scored = {"divergence": divergence, "accuracy": 0.95 - divergence}
        found = {name: float(getattr(costs, name)[0]) for name in objectives[1:]}
        reached = [{"rung": rung, "images": 1000 * rung, **scored} for rung in range(rungs)]
        return {"state": "complete" if rungs == 3 else "pruned", **scored, **found, "rungs": reached}

    study = optuna.create_study(
        directions=["maximize", "minimize", "minimize"], sampler=CascadeSampler(knowledge, 7)
    )
    names = study.sampler.infer_relative_search_space(study, optuna.trial.create_trial(state=TrialState.FAIL))
    drawn = encoding.random(KNOWN, rng)
    for place in range(KNOWN):
        params = encoding.params(drawn[:, place])
        told = result(
            encoding.batch(drawn[:, place : place + 1]).policy(0), 1 + (place % 5 == 0) + (place % 10 == 0)
        )
        complete = told["state"] == "complete"
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={name: names[name] for name in params},
                user_attrs={"result": told},
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                values=[told[name] for name in objectives] if complete else None,
            )
        )
    found = []
    for _ in range(PROPOSALS):
        trial = study.ask()
        policy = offered.suggest(trial)
        expected = study.sampler.expected_accuracy(policy)
        told = result(policy, 3)
        trial.set_user_attr("result", told)
        study.tell(trial, [told[name] for name in objectives])
        fields = ("sparsity", "weight_bits", "activation_bits")
        layers = {name: [own[field] for field in fields] for name, own in policy.to_dict().items()}
        found.append({"accuracy": told["accuracy"], "policy": layers, "expected": expected})
    return found


def gains() -> list[float]:
    """By how much policies are expected to raise what a front dominates: forty of seeded costs and hopes."""
    rng = np.random.default_rng(11)
    costs, shortfalls = -rng.uniform(0.0, 2.0, (60, 2)), rng.normal(-3.0, 1.0, 60)
    front = FrontSurface(latin_hypercube(np.array([-2.0, -2.0])), -2.3, costs[:20], shortfalls[:20], -1.9)
    return front.expected_hypervolume(costs[20:], shortfalls[20:], rng.uniform(0.1, 1.5, 40)).tolist()


def _worse(encoding: Encoding) -> Iterator[tuple[float, float]]:
    """Of each decision where the harm is: more sparsity and being left out harm, more bits do not."""
    for name in encoding.names:
        yield (1.0, 0.0) if name.startswith("bits/") else (0.0, 1.0)


# --- the command line --------------------------------------------------------------------------------------


def command(*words: str) -> str:
    """What ``leanfront`` prints, on lines of 100 characters; raises where it does not end well."""
    with ExitStack() as stack:
        text = stack.enter_context(redirect_stdout(io.StringIO()))
        errors = stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(patch.dict(os.environ, {"COLUMNS": "100"}))
        stack.enter_context(patch.object(sys, "argv", ["leanfront", *words]))
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"leanfront {' '.join(words)}: {errors.getvalue()}") from end
    return text.getvalue()
