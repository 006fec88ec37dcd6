"""The arena that tflite-micro takes is foretold, and a profile of it says what fits."""

import os
import re
import tempfile
from functools import cache

import numpy as np
import pytest

import leanfront as lf
from leanfront.compression.export.dialects import dialect_of
from leanfront.compression.export.litert.writing import layouts
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.arena import arena_bytes
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.registry import model_of
from leanfront.networks import CompressedNetwork, file_of
from leanfront.search.gate.tensors import File
from tests.networks import ALL, captured_network, inputs
from tests.variants import some

runtime = pytest.importorskip("tflite_micro").runtime


@cache
def integer(name: str, sparsity: float) -> CompressedNetwork:
    captured = captured_network(name)
    return lf.compress(captured, lf.uniform(captured, sparsity, 8, 8), [inputs(name, 32, 1)], to="tflite")


def opened(content: bytes) -> "runtime.Interpreter":
    return runtime.Interpreter.from_bytes(content, arena_size=10_000_000)


def arena(interpreter: "runtime.Interpreter") -> int:
    """What it prints of itself, bytes."""
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            interpreter.print_allocations()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        said.seek(0)
        found = re.search(r"Arena allocation total (\d+)", said.read().decode())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("name", some(ALL, 3))
def test_the_arena_is_foretold(name: str, sparsity: float) -> None:
    network = integer(name, sparsity)
    known = measured(network.captured.traced, dialect_of("tflite"))
    taken = arena(opened(file_of(network, "tflite")))
    predicted = arena_bytes(PolicyBatch.of(known, [lf.uniform(network.captured, sparsity, 8, 8)]))[0]
    assert predicted == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("name", ALL)
def test_it_runs_the_same_file(name: str) -> None:
    network = integer(name, 0.0)
    content, x = file_of(network, "tflite"), inputs(name, 1, 3)
    interpreter, places = opened(content), layouts(content)
    interpreter.set_input(np.ascontiguousarray(x.numpy().transpose(places["input"])), 0)
    interpreter.invoke()
    there = places["output"]
    found = interpreter.get_output(0).transpose([there.index(d) for d in range(len(there))])
    theirs = File(content, dialect=dialect_of("tflite")).arrays(network.captured.gets(x)[0])[0]
    assert np.abs(found - theirs).max() <= 3 * max(float(np.ptp(theirs)), 1e-3) / 255


def test_a_profile_says_what_fits() -> None:
    captured = integer("Residual", 0.0).captured
    policy = lf.uniform(captured, 0.0, 8, 8)
    price = lf.cost(captured, policy, profile="tflite-micro")
    assert price.fits
    assert price.estimated
    assert price.size_bytes == pytest.approx(len(file_of(integer("Residual", 0.0), "tflite")), rel=0.02)
    numbers = load_profile("tflite-micro").model_dump(by_alias=True)
    for name, few in (("flash_bytes", 16_000), ("ram_bytes", 6_000)):
        small = lf.Profile.of(numbers | {"microcontroller": numbers["microcontroller"] | {name: few}}, "here")
        assert not lf.cost(captured, policy, profile=small).fits
        assert lf.cost(captured, lf.uniform(captured, 0.5, 8, 8), profile=small).fits


def test_one_policy_costs_what_it_does_among_many() -> None:
    captured = integer("Residual", 0.0).captured
    known = measured(captured.traced, dialect_of("tflite"))
    model = model_of(load_profile("tflite-micro"))
    policies = [lf.uniform(captured, 0.0, 8, 8), lf.uniform(captured, 0.0, 8, 8, captured.branches[:1])]
    batch = model.costs(PolicyBatch.of(known, policies))
    for place, policy in enumerate(policies):
        one = model.cost(policy.cut(known), policy)
        assert one.latency_ms == pytest.approx(batch.latency_ms[place])
        assert one.size_bytes == int(batch.size_bytes[place])
        assert one.peak_memory_bytes == int(batch.peak_memory_bytes[place])
    rows = model.layers(known, policies[0])
    assert sum(row.latency_ms for row in rows) == pytest.approx(batch.latency_ms[0])
    with pytest.raises(TableError, match="cannot run layer"):
        model.cost(known, lf.uniform(captured, 0.0, 4, 8))
