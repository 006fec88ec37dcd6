"""What distillation of inner layers (``finetune.features``) wins: the same short training with and without.

    python -m benchmarks.features NETWORK [--epochs 0.25] [--rate 0.02]

NETWORK: cifar10_resnet20 or cifar10_vgg11 (a folder of examples). Four policies, three weights; the score on
the search split, and the paired interval of what was won against weight 0. Lines are also appended to
benchmarks/results/features.jsonl.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from leanfront.compression.policy import LayerPolicy
from leanfront.search.config import load_config
from leanfront.search.run.significance import paired_interval, value_of
from leanfront.search.study.free import uniform_on
from leanfront.search.study.prepare import load
from leanfront.search.trial.long_training import refine
from leanfront.search.trial.scorer import Scorer

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "features.jsonl"
POLICIES = {
    "cut 50 %": LayerPolicy(0.5), "cut 25 %, int8": LayerPolicy(0.25, 8, 8),
    "cut 37.5 %, 4 bits": LayerPolicy(0.375, 4, 8), "2 bits": LayerPolicy(0.0, 2, 8),
}  # fmt: skip
WEIGHTS = (0.0, 1.0, 10.0)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("--epochs", type=float, default=0.25)
    parser.add_argument("--rate", type=float, default=0.02)
    given = parser.parse_args()
    torch.set_num_threads(1)
    without: dict[str, Any] = {}
    for weight in WEIGHTS:
        keys = [f"finetune.features={weight}", "hardware.profile=this-machine"]
        config = load_config(HERE.parent / "examples" / given.network, keys)
        loaded = load(config)
        scorer = Scorer(loaded.traced, loaded.task, config)
        for title, layer in POLICIES.items():
            begun = time.perf_counter()
            policy = uniform_on(loaded.traced.network, loaded.profile, layer)
            _, best = refine(scorer, policy, None, given.epochs, given.rate)
            before = without.setdefault(title, best.scores)
            low, high = paired_interval(best.scores, before)
            line = {"network": given.network, "policy": title, "features": weight, "epochs": given.epochs}
            line |= {
                "accuracy": round(float(best.accuracy), 4),
                "won": round(best.accuracy - value_of(before), 4),
            }
            line |= {"interval": [round(low, 4), round(high, 4)], "divergence": round(best.divergence, 4)}
            line |= {"seconds": round(time.perf_counter() - begun)}
            print(json.dumps(line), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
