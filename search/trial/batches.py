"""What a task's examples become: the batches that networks are trained, calibrated and scored on."""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanfront.compression.capture.program import Arguments, tensors_in
from leanfront.compression.capture.trace import Traced
from leanfront.compression.training.distillation import Comparison
from leanfront.compression.training.finetune import Batch
from leanfront.latency_models.benchmark.measuring_lock import Note
from leanfront.search.config import SearchConfig
from leanfront.search.data import ArrayData, Data, as_data, batches_of
from leanfront.search.trial.in_task import InTask, comparison_of, inputs_of_inner, on
from leanfront.search.trial.kept import Again, fits, kept, kept_answers, stored

SCORING_BATCH = 250
BATCHNORM_IMAGES = 1024
PLAIN_IMAGES = 256
FITTED_IMAGES = 512
"""Training images that layers are fitted on, no more of them than four batches of training."""
FITTED_VALUES = 2**27
"""Numbers of the largest tensor that such images may make at once: half a gigabyte."""
HELD_BACK = 128
"""Training images that say which statistics of batch norms, and which ranges, are nearest to the teacher."""
UNTRAINED_IMAGES = 1000
"""Search images that a network is scored on before any training: its divergence needs few."""


class Batches:
    """The examples of one task, laid out on the device, with the teacher's answers where these are compared.

    All networks get the same: what is drawn is drawn once.
    """

    def __init__(
        self,
        traced: Traced,
        teacher: InTask,
        around: nn.Module | None,
        config: SearchConfig,
        device: torch.device,
        note: Note,
        rungs: tuple[int, ...],
        folder: Path | None,
    ) -> None:
        """``teacher``: the uncompressed network, ``around`` it the model of which it is a part, where it is
        one. ``rungs``: images trained on at the end of each. ``folder``: where images are kept that memory
        has no room for."""
        self.traced, self.teacher, self.task = traced, teacher, teacher.task
        self.config, self.device, self.note, self.rungs, self.folder = config, device, note, rungs, folder
        self.train, self.search = as_data(self.task.train), as_data(self.task.search)
        self._around = around
        self._answered_short: dict[int, Iterable[Batch]] = {}
        self._short: dict[int, Iterable[tuple[Any, Any]]] = {}

    @cached_property
    def comparison(self) -> Comparison:
        """How answers are compared with the teacher's."""
        first = itertools.islice(self.searched, -(-UNTRAINED_IMAGES // SCORING_BATCH))
        return comparison_of(self.task, [(answers, targets) for _, targets, answers in first])

    @cached_property
    def searched(self) -> Iterable[Batch]:
        """The search images in an order drawn once and for all, so that any beginning of them is a fair
        sample, with the teacher's outputs."""
        count = len(self.search)
        parts = torch.split(torch.randperm(count, generator=torch.Generator().manual_seed(0)), SCORING_BATCH)
        images = self._kept_images(
            lambda: batches_of(self.search, parts, None), count, f"search-{SCORING_BATCH}", self.search
        )
        return self._with_answers(images, count, exact=True)  # whoever asks first

    @cached_property
    def calibration(self) -> list[Any]:
        """What is compressed gets these for training images, augmented, for batch norms and ranges.

        Without augmentation a network that has learnt them by heart shows other statistics than on new
        images: on the VGG-11 example re-estimation alone then costs 0.9 points, and 0.0 with it.
        """
        generator = torch.Generator().manual_seed(self.config.search.seed)
        torch.randperm(len(self.train), generator=generator)  # what ``order`` draws
        return self._calibration(generator, self._estimated)

    @cached_property
    def plain(self) -> list[Any]:
        """The first of these images without augmentation."""
        return self._calibration(None, PLAIN_IMAGES)

    def first(self, batches: list[Any], images: int) -> list[Any]:
        """As many of the calibration batches as hold so many images."""
        each = min(self.config.finetune.batch, len(self.train))
        calls = len(batches) // -(-self._estimated // each)  # of a part, for one batch of images
        return batches[: -(-images // each) * calls]

    @cached_property
    def held_back(self) -> list[tuple[Any, Any]]:
        """Plain training images that nothing is estimated on (where there are enough), with the teacher's
        answers."""
        self.teacher.whole.eval()
        found = []
        for part in torch.split(self.order[-HELD_BACK:], self.config.finetune.batch):
            inputs = laid_out(self.train.batch(part, None)[0], self.device)
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                found.append((inputs, self.teacher.both(inputs)[1]))
        return found

    @cached_property
    def fitted_inputs(self) -> Arguments:
        """Plain training images, all in one batch; of a part what it gets in its first call."""
        if self._around is None:
            nodes = self.traced.network.nodes
            largest = max(node.width * math.prod(node.spatial) for node in nodes)
            most = max(16, FITTED_VALUES // max(1, largest))
            images = min(FITTED_IMAGES, 4 * self.config.finetune.batch, most)
            inputs = laid_out(self.train.batch(self.order[:images], None)[0], self.device)
        else:
            inputs = self.plain[0]
        return Arguments.of(inputs).like(self.traced.example)

    def short(self, rung: int) -> Iterable[Batch]:
        """What every short fine-tune trains on from the rung before up to this one: the same images, drawn
        and augmented once, with the teacher's outputs. Scores are paired then, and the teacher runs once and
        not once a trial."""
        if rung not in self._answered_short:
            self._answered_short[rung] = self._with_answers(
                self.short_images(rung), self.images_of(rung), exact=False
            )
        return self._answered_short[rung]

    def images_of(self, rung: int) -> int:
        """How many a network is trained on from the rung before up to this one."""
        return self.rungs[rung] - (self.rungs[rung - 1] if rung else 0)

    def short_images(self, rung: int) -> Iterable[tuple[Any, Any]]:
        """The inputs and targets of ``short``."""
        if rung not in self._short:
            images = self.images_of(rung)
            seed = self.config.search.seed + (rung << 32)  # the seed itself is smaller
            name = f"train-{self.config.finetune.batch}-{images}-{seed}"
            self._short[rung] = self._kept_images(
                lambda: self._augmented(images, seed), images, name, self.train
            )
        return self._short[rung]

    def long(self, steps: int, seed: int = 0, answered: bool = True) -> Iterator[Batch]:
        """So many augmented training batches, drawn anew for each ``seed``; ``answered``: with the teacher's
        outputs, else None in their place."""
        images = steps * self.config.finetune.batch
        for inputs, targets in self._augmented(images, self.config.search.seed + 1 + seed):
            laid = laid_out(inputs, self.device)
            answers = self._answered(laid, exact=False) if answered else None
            yield laid, on(self.device, targets), answers

    @cached_property
    def order(self) -> Tensor:
        """Training images in an order of their own."""
        generator = torch.Generator().manual_seed(self.config.search.seed)
        return torch.randperm(len(self.train), generator=generator)

    @property
    def _estimated(self) -> int:
        """How many of them norms and ranges are estimated on."""
        return min(max(BATCHNORM_IMAGES, self.config.finetune.calibration_images), len(self.train))

    def _calibration(self, generator: torch.Generator | None, images: int) -> list[Any]:
        parts = torch.split(self.order[: self._estimated][:images], self.config.finetune.batch)
        batches = [laid_out(inputs, self.device) for inputs, _ in batches_of(self.train, parts, generator)]
        return [call for batch in batches for call in inputs_of_inner(self.task, self._around, batch)]

    def _augmented(self, images: int, seed: int) -> Iterator[tuple[Any, Any]]:
        """Augmented training inputs and targets, ``images`` in all."""
        generator = torch.Generator().manual_seed(seed)

        def parts() -> Iterator[Tensor]:
            size = min(self.config.finetune.batch, len(self.train))
            order = torch.empty(0, dtype=torch.int64)
            for _ in range(-(-images // size)):
                if len(order) < size:
                    order = torch.cat((order, torch.randperm(len(self.train), generator=generator)))
                part, order = order[:size], order[size:]
                yield part

        return batches_of(self.train, parts(), generator)

    def _kept_images(
        self, make: Callable[[], Iterator[tuple[Any, Any]]], count: int, name: str, data: Data
    ) -> Iterable[tuple[Any, Any]]:
        """So many examples as a network takes them, in memory where they fit. Else arrays are normalised anew
        each time, and what must be read is read once, into files."""

        def placed(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
            for inputs, targets in batches:
                yield laid_out(inputs, self.device), on(self.device, targets)

        if fits(count * self._input_size) or isinstance(data, ArrayData):
            return kept(lambda: placed(make()), count * self._input_size)
        files = stored(self.folder or Path(self._temporary.name), name, make, self.note)
        return Again(lambda: placed(files))

    @cached_property
    def _temporary(self) -> tempfile.TemporaryDirectory[str]:
        """Gone with these batches."""
        return tempfile.TemporaryDirectory(prefix="leanfront-")

    def _with_answers(self, images: Iterable[tuple[Any, Any]], count: int, exact: bool) -> Iterable[Batch]:
        """With the teacher's outputs; ``exact``: in float32, else computed in bfloat16."""
        answers = kept_answers(
            lambda: (self._answered(inputs, exact) for inputs, _ in images), count * self._output_size
        )
        if answers is None:
            return Again(lambda: ((*pair, self._answered(pair[0], exact)) for pair in images))
        return Again(lambda: ((*pair, told) for pair, told in zip(images, answers, strict=True)))

    @torch.no_grad()
    def _answered(self, inputs: Any, exact: bool) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=not exact):
            return self.teacher.both(inputs)[1]

    @property
    def _input_size(self) -> int:
        """Numbers in one example."""
        return sum(tensor.numel() for tensor in tensors_in(self.task.example_input))

    @cached_property
    def _output_size(self) -> int:
        """Numbers in what is compared of one example."""
        self.teacher.whole.eval()
        with torch.no_grad():
            _, answers = self.teacher.both(laid_out(self.task.example_input, self.device))
        return sum(tensor.numel() for tensor in tensors_in(answers))


def laid_out(inputs: Any, device: torch.device) -> Any:
    """On the device, channels last where there are images: convolutions train 1.6 times as fast on a CPU."""

    def laid(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    return pytree.tree_map_only(Tensor, laid, inputs)
