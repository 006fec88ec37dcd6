"""What fitting layers brings before any training, and after some: the tables of docs/reconstruction.md.

    python -m benchmarks.reconstruction rounded|cut|ranks|trained|criteria [--policies 40] [--images 2048]

rounded: ResNet-20 with weights of 4 and of 3 bits. cut: VGG-11 without a quarter of its channels, and the
same after two epochs of training. ranks: the policies of ``benchmarks.short_scores`` (run it first), their
divergence before training against the accuracy that it has kept of their long fine-tunes. trained: the first
of these, and uniform ones of 2 and 3 bits, after a short fine-tune. Each of these lines has both ways,
``as_cut`` and ``fitted``, on the search split. criteria: divergences of uniform cuts by each criterion. All
are kept in benchmarks/results/reconstruction.jsonl.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from leanfront.compression.export.deployed_form import fold
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.criteria import CRITERIA
from leanfront.compression.training.batch_norms import changed_norms
from leanfront.compression.training.reconstruction import Reference
from leanfront.search.config import load_config
from leanfront.search.study import criterion
from leanfront.search.study.prepare import Loaded, load
from leanfront.search.trial.batches import UNTRAINED_IMAGES
from leanfront.search.trial.long_training import refine
from leanfront.search.trial.scored import Score
from leanfront.search.trial.scorer import Scorer
from leanfront.search.trial.settling import Settling

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reconstruction.jsonl"
SHORT_SCORES = HERE / "results" / "short_scores_cifar10_resnet20_1536_16000.jsonl"
EXAMPLES = HERE.parent / "examples"
Line = dict[str, Any]


class AsCut(Settling):
    """Nothing is fitted: batch norms, ranges and biases alone."""

    def _settle_weights(self, compressed: Compressed, reference: Reference) -> dict[str, str]:
        return {"batch_norms": self.settle_norms(compressed, changed_norms(self._traced, compressed))}


WAYS: Mapping[str, type[Settling]] = {"as_cut": AsCut, "fitted": Settling}


def scorers(loaded: Loaded, images: int = 0) -> dict[str, Scorer]:
    """One of each way, that trains on so many images, with what is computed once already computed."""
    finetune = loaded.config.finetune.model_copy(update={"images": images, "rungs": (1.0,)})
    config = loaded.config.model_copy(update={"finetune": finetune})
    made = {name: Scorer(loaded.traced, loaded.task, config) for name in WAYS}
    for name, one in made.items():
        one.settling = WAYS[name](loaded.traced, one.batches, config, one.in_task)
    for one in made.values():
        one.untrained(Policy.uniform(loaded.traced.network, LayerPolicy(0.25)), 250, 128, 128)
        one.prepared(Policy.uniform(loaded.traced.network, LayerPolicy(0.25)))
    return made


def shown(score: Score) -> Line:
    """What is kept of a score."""
    return {"accuracy": score.accuracy, "divergence": score.divergence, "settled": dict(score.settled)}


def rounded(options: argparse.Namespace) -> Iterator[Line]:
    """Weights of few bits, nothing trained."""
    loaded = load(load_config(EXAMPLES / "cifar10_resnet20"))
    ways = scorers(loaded)
    network = loaded.traced.network
    floats = ways["fitted"].baseline().accuracy
    for bits in (4, 3):
        policy = Policy.uniform(network, LayerPolicy(0.0, bits, 8))
        found = {name: shown(way.without_training(policy)) for name, way in ways.items()}
        yield {"network": "ResNet-20", "policy": f"weights of {bits} bits", "float": floats, **found}


def cut(options: argparse.Namespace) -> Iterator[Line]:
    """A quarter of the channels, nothing trained; and two epochs later."""
    loaded = load(load_config(EXAMPLES / "cifar10_vgg11"))
    ways, policy = scorers(loaded), Policy.uniform(loaded.traced.network, LayerPolicy(0.25))
    floats = ways["fitted"].baseline().accuracy
    found = {name: shown(way.without_training(policy)) for name, way in ways.items()}
    line = {"network": "VGG-11", "policy": "a quarter of the channels cut", "float": floats, **found}
    yield line
    rate = loaded.config.pick.learning_rate
    for name, way in ways.items():
        found[name] = shown(refine(way, policy, None, epochs=2, learning_rate=rate)[1])
        yield {**line, "policy": f"{line['policy']}, two epochs of training, {name}", name: found[name]}


def ranks(options: argparse.Namespace) -> Iterator[Line]:
    """Divergence before training, in bfloat16 on the images of the first rung, and seconds of one thread."""
    loaded, lines = _kept(options.policies)
    ways = scorers(loaded)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for line in lines:
        policy = Policy.from_json(json.dumps(line["policy"]))
        for name, way in ways.items():
            started = time.process_time()
            compressed = way.prepared(policy, rough=True)
            seconds = time.process_time() - started
            with way.rough():
                network = way.in_task(fold(compressed).module)
                score = way.scored(network, 0.0, 0.0, UNTRAINED_IMAGES, resamples=0)
            found[name].append((score.divergence, score.accuracy, seconds))
    test = np.array([line["test"] for line in lines])
    best = test >= np.median(test)
    told: Line = {"network": "ResNet-20", "policy": f"{len(lines)} random policies"}
    for name, rows in found.items():
        divergence, accuracy, seconds = np.array(rows).T
        told[name] = {
            "accuracy": float(accuracy.mean()), "divergence": float(divergence.mean()),
            "ranks": -float(spearmanr(divergence, test)[0]),
            "ranks_best_half": -float(spearmanr(divergence[best], test[best])[0]),
            "processor_seconds": float(seconds.mean()),
        }  # fmt: skip
    yield told


def trained(options: argparse.Namespace) -> Iterator[Line]:
    """After a short fine-tune, one after the other on the same images."""
    loaded, lines = _kept(options.policies)
    ways, network = scorers(loaded, options.images), loaded.traced.network
    policies = {f"random {place}": line["policy"] for place, line in enumerate(lines)}
    for bits in (2, 3):
        policies[f"weights of {bits} bits"] = Policy.uniform(network, LayerPolicy(0.0, bits, 8)).to_dict()
    for name, policy in policies.items():
        wanted = Policy.from_json(json.dumps(policy))
        found = {way: shown(one.start(wanted).score(0)) for way, one in ways.items()}
        yield {"network": "ResNet-20", "policy": f"{name}, {options.images} images of training", **found}


def criteria(options: argparse.Namespace) -> Iterator[Line]:
    """Of each criterion the divergence of uniform cuts before any training, geometric mean."""
    for network, example in (("ResNet-20", "cifar10_resnet20"), ("VGG-11", "cifar10_vgg11")):
        loaded = load(load_config(EXAMPLES / example))
        scorer, policies = criterion.untrained_scorer(loaded, print), criterion.uniform_cuts(loaded)
        found = criterion.importances(scorer, list(CRITERIA))
        yield {
            "network": network,
            **{name: criterion.divergence(scorer, scores, policies) for name, scores in found.items()},
        }


def _kept(count: int) -> tuple[Loaded, list[Line]]:
    lines = [json.loads(line) for line in SHORT_SCORES.read_text().splitlines()][:count]
    return load(load_config(EXAMPLES / "cifar10_resnet20")), lines


TABLES: Mapping[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "rounded": rounded,
    "cut": cut,
    "ranks": ranks,
    "trained": trained,
    "criteria": criteria,
}


def main() -> None:
    """Measure, print and keep one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--images", type=int, default=2048, help="of the short fine-tune")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in TABLES[options.table](options):
        with RESULTS.open("a") as file:
            file.write(json.dumps({"table": options.table, **line}) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
