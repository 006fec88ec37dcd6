"""What must be right of a task before its networks are scored: labels, loss, better than guessing."""

import math
from contextlib import suppress

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from leanfront.compression.capture.program import tensors_in
from leanfront.search.data import ArrayData, check_classes
from leanfront.search.run.significance import value_of
from leanfront.search.task import TaskError
from leanfront.search.trial.batches import Batches
from leanfront.search.trial.in_task import answer_spec
from leanfront.search.trial.scored import Scored, asked


def check_labels(batches: Batches) -> None:
    """Raise TaskError where a label lies outside its classes: of arrays all are looked at, of data that
    must be read those that the search reads."""
    kinds = batches.comparison.kinds
    if len(kinds) != 1 or not kinds[0].numbered:
        return
    classes = batches.task.classes or _answer(batches).shape[1]
    for split in ("train", "search", "test"):
        if isinstance(data := getattr(batches.task, split), ArrayData):
            check_classes(data.labels, classes, split)
    for _, targets, _ in batches.searched:
        check_classes(targets, classes, "search")
    if not isinstance(batches.train, ArrayData):
        for rung in range(len(batches.rungs)):
            if not batches.images_of(rung):
                continue
            for _, targets in batches.short_images(rung):
                check_classes(targets, classes, "train")


def check_used_loss(batches: Batches) -> None:
    """Raise TaskError where the task's loss is used, and takes the first targets not or is no number."""
    if batches.task.training_loss is None and batches.config.finetune.distillation_weight < 1:
        check_loss(batches)


def check_loss(batches: Batches) -> None:
    """Raise TaskError where the task's loss takes the first targets not, or is no number; nothing where
    the model computes its own."""
    if batches.task.training_loss is not None:
        return
    inputs, targets, _ = next(iter(batches.searched))
    batches.teacher.whole.eval()
    with torch.no_grad():
        outputs, _ = batches.teacher.both(inputs)
        loss = asked(batches.task.loss, "loss", outputs, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"A task's loss is one number of a batch, but {came} came; take its mean")


def best_constant(batches: Batches) -> tuple[float, str]:
    """The best score of an answer that is the same for every example, and that answer; -inf where outputs
    are of no kind that has such answers, or the score has no value for them."""
    kinds, best = batches.comparison.kinds, (-math.inf, "")
    if len(kinds) != 1 or batches.task.part is not None:
        return best
    targets = [targets for _, targets, _ in batches.searched]
    if not all(isinstance(each, Tensor) for each in targets):
        return best
    for said, answer in kinds[0].constants(_answer(batches).float().cpu(), torch.cat(targets).cpu()):
        scores = Scored(batches.task)
        for each in targets:
            outputs = [answer.expand(len(each), *answer.shape[1:]).clone()]
            scores.add(pytree.tree_unflatten(outputs, answer_spec(batches.traced)), each.cpu(), len(each))
        with suppress(TaskError):  # of one answer alone a metric may not be defined
            best = max(best, (value_of(scores.evidence(resamples=0)), said))
    return best


def _answer(batches: Batches) -> Tensor:
    """A batch of the teacher's answers."""
    (first, *_) = tensors_in(next(iter(batches.searched))[2])
    return first
