"""How far a network's answers lie from its teacher's, by what kind of answer they are.

A kind is one row: what is minimised in training, and what is decided. Answers in containers are compared
tensor by tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanfront.compression.capture.program import tensors_in

_LEAST = 1e-12
_MOST_FREQUENT = 5


@dataclass(frozen=True)
class AnswerKind:
    """A kind of answer.

    loss: (student, teacher, temperature) -> scalar, the mean over examples. decision: what an answer settles
    on, to be compared one by one; None where it is a number, about which nothing is decided. constants:
    (outputs, targets of a whole split) -> answers that are the same for every example, in words and as one
    example's output (1, ...): what a network must be better than. numbered: targets are class numbers.
    by_variance: the loss is in units of the teacher's variance, which one batch does not know.
    """

    name: str
    loss: Callable[[Tensor, Tensor, float], Tensor]
    decision: Callable[[Tensor], Tensor] | None
    constants: Callable[[Tensor, Tensor], Iterator[tuple[str, Tensor]]]
    numbered: bool = False
    by_variance: bool = False


def _classes(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened class probabilities (Hinton et al. 2015, section 2);
    classes are dimension 1, further dimensions (pixels of a segmentation) count as examples."""
    log_student = F.log_softmax(student / temperature, dim=1)
    soft_teacher = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, soft_teacher, reduction="none").sum(dim=1).mean() * temperature**2


def _logits(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same of independent yes or no answers: T^2 * KL of Bernoulli distributions, summed over the answers
    that one example has."""
    student, soft = student / temperature, torch.sigmoid(teacher / temperature)
    least = F.binary_cross_entropy_with_logits(teacher / temperature, soft, reduction="none")
    each = F.binary_cross_entropy_with_logits(student, soft, reduction="none") - least
    return each.reshape(len(each), -1).sum(dim=1).mean() * temperature**2


def _values(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Half the mean squared difference over the teacher's variance: KL of normal distributions with that
    variance. Of (N, k) each column has its own; other answers have one."""
    across = (0,) if teacher.dim() == 2 else tuple(range(teacher.dim()))
    variance = teacher.var(dim=across, correction=0, keepdim=True).clamp(min=_LEAST)
    return 0.5 * ((student - teacher) ** 2 / variance).mean()


def _most_frequent(outputs: Tensor, targets: Tensor) -> Iterator[tuple[str, Tensor]]:
    numbers = targets if targets.dim() < outputs.dim() else targets.argmax(dim=1)
    values, counts = torch.unique(numbers, return_counts=True)
    there = (values >= 0) & (values < outputs.shape[1])  # others are not counted
    values, counts = values[there], counts[there]
    for place in counts.argsort(descending=True)[:_MOST_FREQUENT]:
        answer = torch.zeros_like(outputs[:1])
        answer[:, int(values[place])] = 1.0
        yield f"class {int(values[place])}", answer


def _yes_and_no(outputs: Tensor, targets: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "yes", torch.ones_like(outputs[:1])
    yield "no", -torch.ones_like(outputs[:1])


def _middle(outputs: Tensor, targets: Tensor) -> Iterator[tuple[str, Tensor]]:
    if targets.shape[1:] == outputs.shape[1:]:
        yield "the mean", targets.float().mean(dim=0, keepdim=True)
        yield "the median", targets.float().median(dim=0, keepdim=True).values


CLASSES = AnswerKind(
    "classes", _classes, lambda outputs: outputs.argmax(dim=1), _most_frequent, numbered=True
)
LOGITS = AnswerKind("logits", _logits, lambda outputs: outputs > 0, _yes_and_no)
VALUES = AnswerKind("values", _values, None, _middle, by_variance=True)


def kind_of_answer(output: Tensor, target: Tensor | None) -> AnswerKind:
    """What kind of answer a tensor is, from the targets that it is held against.

    Class numbers (N, ...) for outputs (N, K, ...), or shares of classes (N, K, ...) that sum to 1: classes.
    Targets of the outputs' shape (or without its last 1) that are all 0 or 1: logits. All else are values.
    """
    if target is None or not output.is_floating_point() or output.dim() == 0:
        return VALUES
    several = output.dim() > 1 and output.shape[1] > 1
    whole = not target.is_floating_point() and target.dtype is not torch.bool
    if several and whole and target.shape == output.shape[:1] + output.shape[2:]:
        return CLASSES
    if target.numel() != output.numel() or len(target) != len(output):
        return VALUES
    wide = target.float()
    if several and target.shape == output.shape and bool(wide.min() >= 0):
        sums = wide.sum(dim=1)
        if bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4)):
            return CLASSES
    return LOGITS if bool(((wide == 0) | (wide == 1)).all()) else VALUES


def kinds_of_answers(outputs: Any, targets: Any) -> tuple[AnswerKind, ...]:
    """The kind of each tensor of the outputs: with targets in the same number of tensors each has its own."""
    own = tensors_in(outputs)
    theirs: Sequence[Tensor | None] = tensors_in(targets)
    if len(theirs) != len(own):
        theirs = [None] * len(own)
    return tuple(kind_of_answer(output, target) for output, target in zip(own, theirs, strict=True))


@dataclass(frozen=True)
class Comparison:
    """How answers are compared with the teacher's: tensor by tensor, each by its kind, or by the user's own
    function of (student, teacher) -> scalar."""

    kinds: tuple[AnswerKind, ...] = (CLASSES,)
    own: Callable[[Any, Any], Tensor] | None = None

    def loss(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """Of a batch: the mean over the tensors that answers are in."""
        if self.own is not None:
            return self.own(student, teacher)
        pairs = zip(tensors_in(student), tensors_in(teacher), self.kinds, strict=True)
        each = [kind.loss(ours.float(), theirs.float(), temperature) for ours, theirs, kind in pairs]
        return torch.stack(each).mean()

    def agreement(self, student: Any, teacher: Any) -> Tensor | None:
        """Whether both decide the same, decision by decision, float32 (n,); None where nothing is decided."""
        pairs = zip(tensors_in(student), tensors_in(teacher), self.kinds, strict=True)
        each = [
            (kind.decision(ours) == kind.decision(theirs)).float().reshape(-1)
            for ours, theirs, kind in pairs
            if kind.decision is not None
        ]
        return torch.cat(each) if each else None


class Divergence:
    """The divergence of a whole split, collected batch by batch: the mean over its tensors, in nats."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._sums = [0.0] * (1 if comparison.own is not None else len(comparison.kinds))
        self._examples = 0
        self._apart: dict[int, list[_Squares]] = {}

    def add(self, student: Any, teacher: Any) -> None:
        """A batch of answers of both."""
        comparison = self._comparison
        size = next((len(tensor) for tensor in tensors_in(student) if tensor.dim()), 1)
        self._examples += size
        if comparison.own is not None:
            self._sums[0] += size * float(comparison.own(student, teacher))
            return
        pairs = zip(tensors_in(student), tensors_in(teacher), comparison.kinds, strict=True)
        for place, (ours, theirs, kind) in enumerate(pairs):
            if kind.by_variance:
                self._apart.setdefault(place, []).append(_squares(ours.double(), theirs.double()))
            else:
                self._sums[place] += size * float(kind.loss(ours.float(), theirs.float(), 1.0))

    def value(self) -> float:
        """Never below 0, where rounding can leave a network's own."""
        found = [
            _over_variance(self._apart[place]) if place in self._apart else total / self._examples
            for place, total in enumerate(self._sums)
        ]
        return max(sum(found) / max(len(found), 1), 0.0)


_Squares = tuple[Tensor, Tensor]
"""Of the columns of a batch, (2, columns) and (2, columns): how many, and the sum of squared differences; the
mean and the sum of squares around it of the teacher's."""


def _squares(ours: Tensor, theirs: Tensor) -> _Squares:
    if theirs.dim() != 2:
        ours, theirs = ours.reshape(-1, 1), theirs.reshape(-1, 1)
    counts = torch.full((theirs.shape[1],), float(len(theirs)), dtype=torch.float64, device=theirs.device)
    mean = theirs.mean(dim=0)
    return (
        torch.stack([counts, ((ours - theirs) ** 2).sum(dim=0)]),
        torch.stack([mean, ((theirs - mean) ** 2).sum(dim=0)]),
    )


def _over_variance(batches: Sequence[_Squares]) -> float:
    """Half the mean squared difference over the variance of all batches (Chan et al. 1979 for the latter)."""
    counts = torch.stack([first[0] for first, _ in batches])
    apart = torch.stack([first[1] for first, _ in batches]).sum(dim=0)
    means = torch.stack([second[0] for _, second in batches])
    within = torch.stack([second[1] for _, second in batches]).sum(dim=0)
    total = counts.sum(dim=0)
    middle = (counts * means).sum(dim=0) / total
    variance = (within + (counts * (means - middle) ** 2).sum(dim=0)) / total
    return float((0.5 * apart / total / variance.clamp(min=_LEAST)).mean())
