"""Memory that a worker has resident, trial after trial: random policies of a narrow VGG-11 on random images.

    python benchmarks/worker_memory.py [--trials 200] [--keep]

``--keep``: without giving anything back between the trials, for comparison.
"""

import argparse
import gc
import os
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.scale import resident_mb
from leanfront.compression.capture.trace import trace
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.search.config import parse_config
from leanfront.search.study.loop import give_back
from leanfront.search.study.threads import use_threads
from leanfront.search.task import ArrayData, Task
from leanfront.search.trial.scorer import Scorer

sys.path.append(str(Path(__file__).parents[1] / "examples" / "cifar10_vgg11"))


def images(count: int, rng: np.random.Generator) -> ArrayData:
    """Noise with labels of ten classes."""
    pixels = rng.integers(0, 255, (count, 3, 32, 32), dtype=np.uint8)
    return ArrayData(pixels, rng.integers(0, 10, count), (0.5,) * 3, (0.25,) * 3, pad=4, flip=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    use_threads(1)
    from task import Vgg11

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    task = Task(
        Vgg11().eval(), torch.zeros(1, 3, 32, 32), images(1024, rng), images(250, rng), images(10, rng)
    )
    finetune = {"images": 256, "batch": 64, "calibration_images": 128}
    config = parse_config({"task": {"file": os.devnull}, "finetune": finetune})
    traced = trace(task.model, task.example_input)
    wanted = config.space
    profile = load_profile(config.hardware.profile)
    space = Space(traced.network, profile, wanted.sparsity, wanted.weight_bits, wanted.activation_bits)
    scorer = Scorer(traced, task, config)
    gc.collect()
    gc.freeze()
    for trial in range(1, given.trials + 1):
        scorer.start(space.random(rng)).score(len(config.rung_images) - 1)
        if not given.keep:
            give_back()
        if trial in (1, 2, 5) or trial % 20 == 0:
            print(f"{trial:4d} trials  {resident_mb():6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
