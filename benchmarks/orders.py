"""The order in which a network is cut, fitted, quantized and trained, with the same training for each.

    python -m benchmarks.orders NETWORK [--sparsity 0.5] [--bits 4 8] [--epochs 1] [--rate 0.02] [--seeds 2]

NETWORK: cifar10_resnet20 or cifar10_vgg11 (a folder of examples). Every group is cut by the share; layers but
the first and the last have the bits, those have 8. An order is a list of stages: a policy, and the share of
the epochs that its network is trained for; what comes after starts from its weights. Each network is scored
as its file on the search split. A line per order and seed is appended to benchmarks/results/orders.jsonl.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import changed_norms, norms_of, re_estimate
from leanfront.compression.training.weight_inheritance import inherit
from leanfront.search.config import load_config
from leanfront.search.study.prepare import load
from leanfront.search.trial.scorer import Scorer

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "orders.jsonl"
Stages = Sequence[tuple[str, float]]
ORDERS: dict[str, Stages] = {
    "cut, fit, quantize, train": (("both", 1.0),),
    "cut, quantize, train": (("both unfitted", 1.0),),
    "cut, fit, quantize": (("both", 0.0),),
    "cut, fit, train, quantize": (("cut", 1.0), ("both", 0.0)),
    "cut, fit, train, quantize, train": (("cut", 0.5), ("both", 0.5)),
    "quantize, train, cut, fit": (("quantized", 1.0), ("both", 0.0)),
    "quantize, train, cut, fit, train": (("quantized", 0.5), ("both", 0.5)),
}


def main() -> None:
    """See the module."""
    given = _arguments()
    config = load_config(HERE.parent / "examples" / given.network, ["hardware.profile=this-machine"])
    loaded = load(config)
    scorer = Scorer(loaded.traced, loaded.task, config, note=print)
    baseline = scorer.baseline().accuracy
    policies = _policies(scorer, given.sparsity, tuple(given.bits))
    for seed in range(given.seeds):
        for name, stages in ORDERS.items():
            begun = time.perf_counter()
            made = _made(scorer, policies, stages, given, seed)
            score = scorer.scored(scorer.as_run(made), 0.0, 0.0).accuracy
            line = dict(vars(given)) | {"order": name, "seed": seed, "score": score, "uncompressed": baseline}
            line["seconds"] = round(time.perf_counter() - begun)
            print(json.dumps(line), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _policies(scorer: Scorer, sparsity: float, bits: tuple[int, int]) -> dict[str, Policy]:
    network = scorer.traced.network
    ends = (network.layers[0].name, network.layers[-1].name)

    def policy(cut: float, quantized: bool) -> Policy:
        return Policy.of(
            {
                layer.name: LayerPolicy(
                    cut if layer.group else 0.0,
                    *(((8, 8) if layer.name in ends else bits) if quantized else (32, 32)),
                )
                for layer in network.layers
            }
        )

    both = policy(sparsity, True)
    return {
        "both": both,
        "both unfitted": both,
        "cut": policy(sparsity, False),
        "quantized": policy(0.0, True),
    }


def _made(
    scorer: Scorer, policies: dict[str, Policy], stages: Stages, given: argparse.Namespace, seed: int
) -> Compressed:
    """A network after all stages of an order."""
    made: Compressed | None = None
    for name, share in stages:
        policy = policies[name]
        if made is None:
            made = compress(scorer.traced, policy, scorer.multiple)
            _estimated(scorer, made, None, fitted=not name.endswith("unfitted"))
        else:
            before, made = made, inherit(scorer.traced, made, policy, scorer.multiple)
            _estimated(scorer, made, before, fitted=True)
        steps = int(share * given.epochs * len(scorer.batches.train) / scorer.config.finetune.batch)
        if steps:
            scorer.fine_tune(made, scorer.batches.long(steps, seed), steps, given.rate)
            scorer.settling.settle_norms(made, frozenset(norms_of(made.module)), trained=True)
    assert made is not None
    return made


def _estimated(scorer: Scorer, made: Compressed, before: Compressed | None, fitted: bool) -> None:
    """Weights fitted to what they are made from, ranges and batch norms; or the latter two alone."""
    if fitted:
        reference = None if before is None else scorer.settling.reference_of(before.module, before)
        scorer.settling.estimate(made, rough=False, reference=reference)
        return
    batches = list(scorer.batches.calibration)
    re_estimate(made.module, batches, changed_norms(scorer.traced, made))
    calibrate(made.module, batches)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--bits", type=int, nargs=2, default=(4, 8))
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
