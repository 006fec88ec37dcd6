"""Weights and activations of few bits after the long fine-tune: accuracy beside the float network's, and bit
operations.

    python -m benchmarks.few_bits NETWORK WEIGHT_BITS ACTIVATION_BITS [--epochs 8] [--rate 0.02]
                                  [--steps "few bits"] [--first 8 8] [--layers NAME=W,A[,CUT] ...] [--cut 0]
                                  [--set finetune.features=10 ...]

NETWORK: cifar10_resnet20 or cifar10_vgg11 (a folder of examples). The first layer and the last have weights
of 8 bits and read tensors of 8 (--first and --last change that). The best network by the search split is kept
(``Scorer.refine``), and read once on the test split, as its file. A line is also appended to
benchmarks/results/few_bits.jsonl.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.search.config import load_config
from leanfront.search.data import as_data
from leanfront.search.run.significance import paired_interval, value_of
from leanfront.search.study.prepare import load
from leanfront.search.trial.in_task import InTask
from leanfront.search.trial.long_training import refine
from leanfront.search.trial.scorer import Scorer, evaluate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "few_bits.jsonl"
Pair = tuple[int, int]


def main() -> None:
    """See the module."""
    given = _arguments()
    torch.set_num_threads(1)
    config = load_config(
        HERE.parent / "examples" / given.network,
        [f'finetune.steps="{given.steps}"', "hardware.profile=this-machine", *given.set],
    )
    loaded = load(config)
    scorer = Scorer(loaded.traced, loaded.task, config, note=_say)
    policy = policy_of(loaded.traced.network, given)
    whole = Policy.uniform(loaded.traced.network, LayerPolicy())
    share = _bops(loaded.traced.network, policy) / _bops(loaded.traced.network, whole)
    begun = time.perf_counter()
    compressed, best = refine(scorer, policy, None, given.epochs, given.rate)
    seconds = time.perf_counter() - begun
    test = as_data(loaded.task.test)
    floats, ours = (
        _on_test(scorer, network, test) for network in (scorer.teacher, scorer.as_run(compressed))
    )
    low, high = paired_interval(ours, floats)
    line: dict[str, Any] = dict(vars(given))
    line |= {"bops_share": share, "search": best.accuracy, "test": value_of(ours), "float": value_of(floats)}
    line |= {"difference": value_of(ours) - value_of(floats), "interval": [low, high]}
    line["seconds"] = round(seconds)
    _say(json.dumps(line))
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def policy_of(network: Network, given: argparse.Namespace) -> Policy:
    """The bits of every layer, and the share of its channels that goes, as the command line says."""
    ends = {network.layers[0].name: given.first, network.layers[-1].name: given.last}
    own = dict(text.split("=") for text in given.layers)
    layers = {}
    for layer in network.layers:
        bits = ends.get(layer.name, (given.weight_bits, given.activation_bits))
        words = own[layer.name].split(",") if layer.name in own else bits
        cut = float(words[2]) if len(words) > 2 else given.cut
        layers[layer.name] = LayerPolicy(cut if layer.group else 0.0, *map(int, words[:2]))
    return Policy.of(layers)


def _bops(network: Network, policy: Policy) -> float:
    return float(PolicyBatch.of(network, [policy]).bops()[0])


def _on_test(scorer: Scorer, network: InTask, test: Any) -> Any:
    """The score of each test image, (N,)."""
    whole = Scorer(scorer.traced, replace(scorer.task, search=test), scorer.config)
    return evaluate(network, whole.batches.searched, whole.batches.comparison)[0]


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("weight_bits", type=int)
    parser.add_argument("activation_bits", type=int)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--steps", default="few bits")
    parser.add_argument("--first", type=int, nargs=2, default=(8, 8))
    parser.add_argument("--last", type=int, nargs=2, default=(8, 8))
    parser.add_argument("--layers", nargs="*", default=[], help="NAME=W,A[,CUT]")
    parser.add_argument("--cut", type=float, default=0.0)
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value of the configuration")
    return parser.parse_args()


if __name__ == "__main__":
    main()
