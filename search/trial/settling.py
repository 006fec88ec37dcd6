"""What a network that was just cut and rounded is given before any training: weights, norms, ranges, biases.

Of each the way that brings it nearest to its teacher on images that nothing was estimated on.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import fx, nn

from leanfront.compression.capture.trace import Traced
from leanfront.compression.techniques import biases, ranges
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import (
    Shift,
    changed_nodes,
    changed_norms,
    re_estimate,
    set_statistics,
    statistics,
)
from leanfront.compression.training.distillation import Divergence
from leanfront.compression.training.reconstruction import Reference, reconstruct
from leanfront.search.config import SearchConfig
from leanfront.search.trial.batches import BATCHNORM_IMAGES, PLAIN_IMAGES, Batches
from leanfront.search.trial.in_task import InTask, in_bfloat16, placed
from leanfront.search.trial.weights import state_of

T = TypeVar("T")
_NEARER = 0.95
"""Divergence from the teacher, in shares of that of what is done by default, below which another way is
better."""


class Settling:
    """Settles networks of one task."""

    def __init__(
        self,
        traced: Traced,
        batches: Batches,
        config: SearchConfig,
        in_task: Callable[[nn.Module], InTask],
    ) -> None:
        """``in_task``: a network as the task calls it."""
        self._traced, self._batches, self._config, self._in_task = traced, batches, config, in_task
        self._teacher, self._device = batches.teacher, batches.device

    def estimate(
        self, compressed: Compressed, rough: bool, reference: Reference | None = None
    ) -> dict[str, str]:
        """Weights, batch norms, ranges and biases of a network that was just cut and quantized: of each, what
        comes nearest to the teacher on images that were held back, and what that was.

        rough: in bfloat16. reference: what its layers are fitted to, the uncompressed network by default.
        """
        placed(compressed.module, self._device)
        with in_bfloat16(self._device, rough):
            settled = self._settle_weights(compressed, reference or self.reference)
            wanted = self._config.finetune.calibration_images
            calibrate(compressed.module, self._batches.first(self._batches.calibration, wanted))
            return settled | self._settle_rounding(compressed)

    def settle_norms(self, compressed: Compressed, names: frozenset[str], trained: bool = False) -> str:
        """Give the batch norms of ``names`` the statistics with which the network is nearest to its teacher
        on training images that were held back, and say which: "kept" as they are, "corrected" by what the
        cut changed, or estimated again on "plain" or on "augmented" images. ``trained``: since it was cut."""
        module = compressed.module
        if not names:
            return "kept"
        found = {"kept": statistics(module)}
        augmented = self._batches.first(self._batches.calibration, BATCHNORM_IMAGES)
        for name, batches in (("plain", self._batches.plain), ("augmented", augmented)):
            re_estimate(module, batches, names)
            found[name] = statistics(module)
        if not trained:
            own = {name: each for name, each in found["plain"].items() if name in names}
            found["corrected"] = {**found["kept"], **self._shift.corrected(compressed, found["kept"], own)}
        apart = {}
        for name, wanted in found.items():
            set_statistics(module, wanted)
            apart[name] = self._held_back_divergence(module)
        best = min(apart, key=lambda name: apart[name] if math.isfinite(apart[name]) else math.inf)
        set_statistics(module, found[best])
        return best

    @cached_property
    def reference(self) -> Reference:
        """What the layers of the uncompressed network put out."""
        return self.reference_of(self._teacher.inner, self._traced)

    def reference_of(self, module: nn.Module, network: Traced | Compressed) -> Reference:
        """What the layers of a network put out, to which those of others that are made from it are fitted.
        ``module``: the network's, on the device."""
        assert isinstance(module, fx.GraphModule)
        return Reference.of(module, network.network, network.classes, self._batches.fitted_inputs)

    def _settle_weights(self, compressed: Compressed, reference: Reference) -> dict[str, str]:
        """Layers fitted to what they put out before, with their batch norms as they are; or all as it was cut
        and rounded, and batch norms estimated again."""
        norms = changed_norms(self._traced, compressed)
        if not (changed := changed_nodes(reference.network, compressed)):
            return {"batch_norms": self.settle_norms(compressed, norms)}
        module, as_cut = compressed.module, state_of(compressed.module)
        reconstruct(compressed, reference, changed)
        fitted = state_of(module)
        apart = self._held_back_divergence(module)
        module.load_state_dict(as_cut)
        re_estimate(module, self._batches.plain if norms else [], norms)
        if apart < self._held_back_divergence(module):
            module.load_state_dict(fitted)
            return {"weights": "fitted", "batch_norms": "kept"}
        module.load_state_dict(as_cut)
        return {"weights": "kept", "batch_norms": self.settle_norms(compressed, norms)}

    def _settle_rounding(self, compressed: Compressed) -> dict[str, str]:
        """Ranges of tensors, and constants behind rounded weights; nothing where nothing is rounded."""
        module, settled = compressed.module, {}
        clips = ranges.candidates(module, self._batches.first(self._batches.calibration, PLAIN_IMAGES))
        if len(clips) > 1:
            settled["ranges"] = self._nearest(module, clips, partial(ranges.set_clips, module))
        corrected = biases.corrected(module, self._batches.plain[0])
        if corrected:
            ways = {"kept": biases.constants(module, corrected), "corrected": corrected}
            settled["biases"] = self._nearest(module, ways, partial(biases.set_constants, module))
        return settled

    def _nearest(self, module: nn.Module, candidates: Mapping[str, T], give: Callable[[T], None]) -> str:
        """The name of the candidate, which the module is given, that comes nearest to the teacher on images
        that were held back; the first unless another is nearer by more than chance."""
        apart = {}
        for name, candidate in candidates.items():
            give(candidate)
            apart[name] = self._held_back_divergence(module)
        first = next(iter(candidates))
        best = min(apart, key=lambda name: apart[name] if math.isfinite(apart[name]) else math.inf)
        name = best if apart[best] < _NEARER * apart[first] or not math.isfinite(apart[first]) else first
        give(candidates[name])
        return name

    def _held_back_divergence(self, module: nn.Module) -> float:
        network, divergence = self._in_task(module), Divergence(self._batches.comparison)
        network.whole.eval()
        with torch.no_grad():
            for inputs, teacher in self._batches.held_back:
                divergence.add(network.both(inputs)[1], teacher)
        return divergence.value()

    @cached_property
    def _shift(self) -> Shift:
        module = self._teacher.inner  # the traced one, where the images lie
        assert isinstance(module, fx.GraphModule)
        return Shift.of(replace(self._traced, module=module), self._batches.plain)
