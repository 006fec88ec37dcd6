"""Score every policy of the space of search.toml once: table.npz, where search_efficiency.py looks them up.

    python -m benchmarks.exhaustive.make_table

A score is what the Scorer gives a policy without any training: cut, batch norms re-estimated, ranges
calibrated, accuracy and divergence on the held-out images. Policies that share their first layers share
what these compute, so 42,000 policies take minutes; a few dozen are scored by the Scorer itself, to compare.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leanfront.compression.policy import Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import ActivationQuantizer
from leanfront.search.config import load_config
from leanfront.search.samplers.cascade.encoding import Codes, Encoding
from leanfront.search.study.prepare import Loaded, load
from leanfront.search.trial.scorer import Scorer

HERE = Path(__file__).parent
TABLE = HERE / "table.npz"
COMPARED = 24
BATCH = 64


@dataclass(frozen=True)
class _Tensors:
    """One tensor of the network: of the training images in floats, which set batch norms and ranges, and of
    the held-out images as the compressed network has it."""

    train: Tensor
    held_out: Tensor


class _Shared:
    """Runs networks that differ in the bits of their layers alone; what only depends on layers that were run
    with the same bits before is kept."""

    def __init__(self, variants: Sequence[fx.GraphModule], images: _Tensors, calibration: int) -> None:
        """``variants``: the compressed network with the first pair of bits in all layers, the second, ..."""
        self._variants = variants
        self._layers = [dict(module.named_modules()) for module in variants]
        for layers in self._layers:
            for layer in layers.values():
                if parametrize.is_parametrized(layer):
                    parametrize.remove_parametrizations(layer, "weight")
        self._images = images
        self._calibration = calibration
        self._kept: dict[tuple[Any, ...], _Tensors] = {}

    @torch.no_grad()
    def outputs(self, choice: Mapping[str, int]) -> Tensor:
        """(N, classes) of the held-out images. ``choice``: layer -> number of its variant."""
        values: dict[fx.Node, _Tensors] = {}
        keys: dict[fx.Node, tuple[Any, ...]] = {}
        for node in self._variants[0].graph.nodes:
            if node.op == "output":
                return values[node.args[0]].held_out
            own = choice.get(str(node.target), 0)
            keys[node] = (node.name, own, *(keys[source] for source in node.all_input_nodes))
            if keys[node] not in self._kept:
                self._kept[keys[node]] = self._computed(node, own, values)
            values[node] = self._kept[keys[node]]
        raise AssertionError("the graph has no output")

    def _computed(self, node: fx.Node, own: int, values: Mapping[fx.Node, _Tensors]) -> _Tensors:
        if node.op == "placeholder":
            return self._images
        child = self._layers[own].get(str(node.target)) if node.op == "call_module" else None
        train_args, held_out_args = (
            fx.node.map_arg(node.args, lambda n, part=part: getattr(values[n], part))
            for part in ("train", "held_out")
        )
        if isinstance(child, ActivationQuantizer):
            quantizer = ActivationQuantizer(child.bits).eval()
            quantizer.calibrating = True
            for batch in train_args[0][: self._calibration].split(BATCH):
                quantizer(batch)
            quantizer.calibrating = False
            return _Tensors(train_args[0], quantizer(*held_out_args))
        if isinstance(child, _BatchNorm):
            child.train()
            child.momentum = None
            child.reset_running_stats()
            for batch in train_args[0].split(BATCH):
                child(batch)
            child.eval()
        if node.op == "call_method":
            call = methodcaller(str(node.target), *train_args[1:], **node.kwargs)
            return _Tensors(call(train_args[0]), call(held_out_args[0]))
        call = child if child is not None else node.target
        assert callable(call)
        return _Tensors(call(*train_args, **node.kwargs), call(*held_out_args, **node.kwargs))


def policies(encoding: Encoding) -> Iterator[Codes]:
    """Every policy once, as codes (decisions, n): one batch for each choice of what is cut or left out."""
    layers, pairs = len(encoding.space.network.layers), len(encoding.space.pairs)
    shapes = len(encoding.names) - layers
    bits = np.array(list(itertools.product(range(pairs), repeat=layers)))
    seen: set[bytes] = set()
    for shape in itertools.product(*(range(size) for size in encoding.sizes[:shapes])):
        codes = np.vstack([np.repeat(np.array(shape)[:, None], len(bits), axis=1), bits.T])
        codes = np.unique(encoding.canonical(codes), axis=1)
        new = [i for i in range(codes.shape[1]) if codes[:, i].tobytes() not in seen]
        seen.update(codes[:, i].tobytes() for i in new)
        if new:
            yield codes[:, new]


def main() -> None:
    """Make the table, compare some of it with the Scorer, write it."""
    torch.set_num_threads(1)
    config = load_config(HERE)
    loaded = load(config)
    scorer = Scorer(loaded.traced, loaded.task, config)
    encoding = Encoding(loaded.space)
    train = torch.cat(scorer.batches.calibration)
    held_out, targets = scorer.batches.search.batch(torch.arange(len(scorer.batches.search)), None)
    with torch.no_grad():
        teacher = F.log_softmax(scorer.teacher.inner(held_out), dim=1)
    images = _Tensors(train, held_out)
    rows, correct, divergence = [], [], []
    started = time.perf_counter()
    for codes in policies(encoding):
        uniform = [with_pair(encoding, codes[:, 0], pair) for pair in range(len(loaded.space.pairs))]
        variants = [
            compress(loaded.traced, policy_of(loaded, encoding, same), scorer.multiple).module.eval()
            for same in uniform
        ]
        shared = _Shared(variants, images, config.finetune.calibration_images)
        names = [layer.name for layer in loaded.space.network.layers]
        for column in codes.T:
            outputs = shared.outputs(dict(zip(names, column[-len(names) :].tolist(), strict=True)))
            log = F.log_softmax(outputs, dim=1)
            correct.append(int((outputs.argmax(1) == targets).sum()))
            divergence.append(float((teacher.exp() * (teacher - log)).sum(1).mean()))
        rows.append(codes)
        done = len(correct)
        print(f"\r{done} policies, {time.perf_counter() - started:.0f} s", end="", file=sys.stderr)
    every = np.hstack(rows)
    _compare(scorer, loaded, encoding, every, np.array(correct) / len(targets))
    np.savez_compressed(
        TABLE,
        codes=every.astype(np.uint8),
        correct=np.array(correct, dtype=np.uint16),
        divergence=np.array(divergence, dtype=np.float32),
        images=len(targets),
        names=np.array(encoding.names),
    )


def _compare(
    scorer: Scorer, loaded: Loaded, encoding: Encoding, codes: Codes, accuracy: NDArray[np.float64]
) -> None:
    """Print how far the accuracies (n,) are from the Scorer's, for some of the policies (decisions, n)."""
    chosen = np.random.default_rng(0).choice(codes.shape[1], COMPARED, replace=False)
    missed = [
        scorer.start(policy_of(loaded, encoding, codes[:, column])).score(0).accuracy - accuracy[column]
        for column in chosen
    ]
    worst = 100 * np.abs(missed).max()
    print(f"\n{COMPARED} policies scored by the Scorer: at most {worst:.2f} points apart", file=sys.stderr)


def with_pair(encoding: Encoding, codes: Codes, pair: int) -> Codes:
    """The codes (decisions,) with one pair of bits in all layers."""
    changed = codes.copy()
    changed[-len(encoding.space.network.layers) :] = pair
    return changed


def policy_of(loaded: Loaded, encoding: Encoding, codes: Codes) -> Policy:
    """One column of codes as a policy."""
    import optuna

    return loaded.space.suggest(optuna.trial.FixedTrial(encoding.params(codes)))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
