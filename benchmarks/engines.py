"""Files of every engine that runs here, held against the torch network: answers, accuracy, size, time.

    python -m benchmarks.engines [NETWORK ...]

Five networks, each in floats, in int8 and under a searched policy (of 24 untrained trials for a processor the
fastest that loses at most 0.02; 8 bits or floats where an engine has not its bits), not trained after the
cut: what is compared is file and torch network, both with the same weights, biases as the engine holds them.
Largest difference at 99.9 % of the outputs in quantization steps (of the output's range in floats), the same
of the network in fake quantization, the share of outputs that are the same to 1e-5 of the range, accuracy of
both on the first images of the test split, predicted and real size, and milliseconds on this machine, where
the engine itself is here. Lines are also appended to benchmarks/results/engines.jsonl; searches are kept in
runs/.
"""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import leanfront as lf
from benchmarks.free import NETWORKS as TRAINED
from leanfront import Task
from leanfront.compression.capture.program import Arguments, tensors_in
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import BUILT_IN, Dialect, DialectError, dialect_of
from leanfront.compression.export.integer_form import in_integers
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.techniques.compress import Compressed
from leanfront.latency_models.benchmark.timing import Reference, time_calls
from leanfront.latency_models.benchmark.timing import session as opened_in_onnxruntime
from leanfront.networks import Captured, CompressedNetwork, capture, compress, file_of
from leanfront.search.data import as_data
from leanfront.search.gate.tensors import File, at_share, difference, one_by_one, width
from leanfront.search.task import load_task

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "engines.jsonl"
IMAGES, CALIBRATED = 500, 512


def _example(name: str) -> Task:
    return load_task(HERE.parent / "examples" / name / "task.py", {})


EXAMPLES = {
    "ResNet-20": "cifar10_resnet20",
    "VGG-11": "cifar10_vgg11",
    "DS-CNN": "tasks/keywords",
    "autoencoder": "tasks/anomaly",
}
NETWORKS: dict[str, Callable[[], Task]] = {
    **{name: partial(_example, folder) for name, folder in EXAMPLES.items()},
    "MobileNetV2": TRAINED["MobileNetV2, CIFAR-10"],
}
PROFILE = "x86-avx512-vnni"
"""The part that a policy is searched for."""
TRIALS, DROP = 24, 0.02


def policies(name: str, captured: Captured) -> dict[str, Policy]:
    """In floats, in int8, and searched."""
    network = captured.network
    return {
        "float": Policy.uniform(network, LayerPolicy()),
        "int8": Policy.uniform(network, LayerPolicy(0.0, 8, 8)),
        "searched": searched(name),
    }


def searched(name: str) -> Policy:
    """What a search without training finds."""
    task = HERE.parent / "examples" / EXAMPLES[name] if name in EXAMPLES else NETWORKS[name]()
    where = HERE.parent / "runs" / f"engines-{name.lower()}-{PROFILE}"
    settings = {"finetune": {"images": 0}}
    front = lf.search(task, profile=PROFILE, trials=TRIALS, run=where, settings=settings).front
    good = front[front["accuracy"] >= front["accuracy"].max() - DROP]
    return Policy.from_json(good.sort_values("latency_ms")["policy"].iloc[0])


def held_by(dialect: Dialect, captured: Captured, policy: Policy) -> Policy:
    """The policy, with 8 bits or floats where an engine has not those that it wants."""
    found = {}
    for layer, one in policy.items():
        takes = dialect.takes(captured.network.layer[layer], one.weight_bits, one.activation_bits)
        bits = (one.weight_bits, one.activation_bits) if takes else (8, 8) if one.integer else (32, 32)
        found[layer] = replace(one, weight_bits=bits[0], activation_bits=bits[1])
    return Policy.of(found, policy.absent)


def _steps(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference at 99.9 % of the values, in steps of 8 bits of ``ours``' range."""
    found = 0.0
    for place in range(len(ours[0])):
        one, other = (torch.cat([answer[place].float() for answer in each]) for each in (ours, theirs))
        found = max(found, at_share(difference(one, other)) / (width(one) / 255))
    return found


def held(
    file: File, made: CompressedNetwork, inputs: list[Arguments], dialect: Dialect
) -> tuple[dict[str, float], list[Any], list[Any]]:
    """Steps between the network in the engine's arithmetic and the file, and between the network in fake
    quantization and the file; the share of outputs that are the same number; outputs of torch and file."""
    compressed = Compressed(made.module, made.network, made.policy)  # type: ignore[arg-type]
    module = in_integers(compressed, dialect).module.eval()
    folded = fold(compressed, dialect).module.eval()
    with torch.no_grad():
        ours = [tensors_in(module(*one.args, **one.kwargs)) for one in inputs]
        again = [tensors_in(folded(*one.args, **one.kwargs)) for one in inputs]
    theirs = [[torch.from_numpy(np.asarray(a)) for a in file.arrays(one)] for one in inputs]
    pairs = zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True)
    same = torch.cat([((one - other).abs() <= 1e-5 * width(one)).reshape(-1) for one, other in pairs])
    found = {
        "steps": round(_steps(ours, theirs), 2),
        "fake_steps": round(_steps(again, theirs), 2),
        "same": round(float(same.double().mean()), 4),
    }
    return found, ours, theirs


def compared(name: str, kinds: list[str]) -> list[dict[str, Any]]:
    """The lines of one network."""
    task = NETWORKS[name]()
    captured = capture(task.model, task.example_input)
    train, test = as_data(task.train), as_data(task.test)
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # they lie class by class
    calibration, _ = train.batch(drawn[:CALIBRATED], None)
    inputs, targets = test.batch(torch.arange(min(IMAGES, len(test))), None)
    singles = one_by_one(Arguments.of(inputs).like(captured.traced.example))
    lines, found_policies = [], policies(name, captured)
    for kind in kinds:
        dialect = dialect_of(kind)
        for title, wanted in found_policies.items():
            policy = held_by(dialect, captured, wanted)
            line: dict[str, Any] = {"network": name, "policy": title, "kind": kind}
            try:
                made = compress(captured, policy, [calibration], to=kind)
                content = file_of(made, kind)
                file = File(content, dialect=dialect)
            except DialectError as error:
                lines.append(line | {"refused": str(error).partition(";")[0]})
                continue
            found, ours, theirs = held(file, made, singles, dialect)
            network = measured(captured.traced, dialect)
            predicted = int(PolicyBatch.one(policy.cut(network), policy).size_bytes()[0])
            line |= {**found, "bytes": len(content), "predicted_bytes": predicted}
            if isinstance(targets, torch.Tensor) and targets.dtype == torch.int64 and targets.dim() == 1:
                for who, answers in (("torch", ours), ("file", theirs)):
                    right = torch.cat([a[0] for a in answers]).argmax(1) == targets
                    line[f"{who}_accuracy"] = round(float(right.double().mean()), 4)
            if not dialect.not_run:  # else it is not its engine whose time that would be
                call = {kind: _call(dialect, content, singles[0])}
                line["here_ms"] = round(time_calls(call, Reference(1), 7)[kind].median_ms, 4)
            lines.append(line)
    return lines


def _call(dialect: Dialect, content: bytes, one: Arguments) -> Callable[[], object]:
    feed = {f"input{i or ''}": tensor.numpy() for i, tensor in enumerate(tensors_in(one))}
    opened = dialect.opened(content, 1)
    if opened is not None:
        return partial(opened.run, feed)
    return partial(opened_in_onnxruntime(content).run, None, feed)


def main() -> None:
    """Print the table."""
    kinds = [name for name in BUILT_IN.values() if not dialect_of(name).missing]
    for name in sys.argv[1:] or NETWORKS:
        for line in compared(name, kinds):
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(*(f"{value}" for value in line.values()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
