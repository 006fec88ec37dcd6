"""Zeros on ResNet-20: what each schedule gives at equal epochs, and 2:4 beside the dense network.

    python -m benchmarks.sparsity [--epochs 4] [--only NAME ...]

One cycle of the learning rate over all epochs for every row, the same images in the same order, floats;
scored on the search split. Prints a line as soon as it is known: name, share of zeros, accuracy, points below
the uncompressed network, minutes.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from leanfront.compression.capture.trace import trace
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.masks import zero_share
from leanfront.compression.training.batch_norms import norms_of
from leanfront.search.config import load_config
from leanfront.search.task import load_task
from leanfront.search.trial.scorer import Scorer

CONFIG = Path(__file__).parent.parent / "examples" / "cifar10_resnet20" / "search.toml"
ROWS: Mapping[str, tuple[dict[str, float], str]] = {
    "2:4": ({"2:4": 0.5}, "one-shot"),
    "dense": ({}, "one-shot"),
    "unstructured 90 %, one-shot": ({"unstructured": 0.9}, "one-shot"),
    "unstructured 90 %, gradual": ({"unstructured": 0.9}, "gradual"),
    "unstructured 90 %, iterative": ({"unstructured": 0.9}, "iterative"),
    "2:4, gradual": ({"2:4": 0.5}, "gradual"),
    "4:8": ({"4:8": 0.5}, "one-shot"),
    "block 80 %": ({"block": 0.8}, "one-shot"),
}
"""Name -> numbers of patterns, of every layer that can have them, and when they come."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--only", nargs="*", default=list(ROWS)[:5], choices=list(ROWS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(CONFIG)
    task = load_task(config.task.file, config.task.options)
    traced = trace(task.model, task.example_input)
    scorer = Scorer(traced, task, config)
    baseline = scorer.baseline().accuracy
    print(f"uncompressed {baseline:.4f}", flush=True)
    steps = int(given.epochs * len(scorer.batches.train) / config.finetune.batch)
    for name in given.only:
        more, schedule = ROWS[name]
        started = time.perf_counter()
        policy = Policy.uniform(traced.network, LayerPolicy(more=tuple(more.items())))
        compressed = scorer.prepared(policy)
        before = scorer.scored(scorer.as_run(compressed), 0.0, started).accuracy
        batches = scorer.batches.long(steps)
        scorer.fine_tune(compressed, batches, steps, config.pick.learning_rate, schedule=schedule)
        scorer.settling.settle_norms(compressed, frozenset(norms_of(compressed.module)), trained=True)
        after = scorer.scored(scorer.as_run(compressed), 0.0, started).accuracy
        minutes = (time.perf_counter() - started) / 60
        print(
            f"{name}: {zero_share(compressed.module):.1%} zeros, untrained {before:.4f}, after"
            f" {given.epochs:g} epochs {after:.4f}, {100 * (baseline - after):+.2f} points below,"
            f" {minutes:.1f} min",
            flush=True,
        )


if __name__ == "__main__":
    main()
