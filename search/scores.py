"""What networks are scored by: a number for each example, or a metric of all outputs and targets together."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from leanfront.search.readers.images import TaskError

Array = NDArray[np.float64]
RESAMPLES = 1000
LEAST_RESAMPLES = 100
_SECONDS = 1.0
"""Resampling takes about as long, or what ``LEAST_RESAMPLES`` take."""
_NUMBERS = 20_000_000
"""Draws of examples in all, of metrics that are computed of many resamples at once."""
_AT_ONCE = 2_000_000
_NOWHERE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Metric:
    """A number for a whole split: AUC, F1, a mean error.

    function: (outputs, targets), all of a split, -> float. name, unit: what people read. higher_is_better: or
    else less is. bounds: the least and the most that it can be. share: it is the share of examples that are
    right, which people read in percent and points. resample: (outputs, targets, counts (B, N)) -> (B,), the
    same of many resamples at once, of which ``counts`` says how often each example is in them; without it
    the function is called for each.

    Raises TaskError for anything of the wrong kind.
    """

    function: Callable[[Any, Any], Any]
    name: str
    unit: str = ""
    higher_is_better: bool = True
    bounds: tuple[float, float] = _NOWHERE
    share: bool = False
    resample: Callable[[Any, Any, Array], Array] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function) or not isinstance(self.name, str) or not self.name.strip():
            raise TaskError(
                "A metric is a function of (outputs, targets) and its name, but"
                f" {type(self.function).__name__} and {self.name!r} came; give Metric(function, name)"
            )
        low, high = self.bounds
        if not low < high:
            raise TaskError(
                f"A metric's bounds are the least and the most that it can be, but {self.bounds} came for"
                f" {self.name}; give for instance (0, 1)"
            )

    @property
    def sign(self) -> float:
        """Times a value, so that more is better."""
        return 1.0 if self.higher_is_better else -1.0

    def of(self, outputs: Any, targets: Any) -> float:
        """Its value; raises TaskError where it is none that it can have."""
        value = _number(self, self.function(outputs, targets))
        low, high = self.bounds
        if math.isnan(value):
            raise TaskError(
                f"A metric is a number, but {self.name} of {shown(outputs)} and {shown(targets)} is nan;"
                " check whether the split has what it needs, such as examples of each class"
            )
        slack = 1e-6 * max(1.0, abs(value))
        if not low - slack <= value <= high + slack:
            raise TaskError(
                f"{self.name} is said to lie between {low:g} and {high:g}, but it is {value:g}; correct its"
                " bounds, or divide percents by 100"
            )
        return value

    def after(self, function: Callable[[Any, Any], tuple[Any, Any]]) -> "Metric":
        """The same metric of what a function makes of outputs and targets, outputs and targets again: of one
        output of several, of the error of a reconstruction."""
        own, resample = self.function, self.resample
        return replace(
            self,
            function=lambda outputs, targets: own(*function(outputs, targets)),
            resample=resample and (lambda outputs, targets, n: resample(*function(outputs, targets), n)),
        )

    def resamples(self, outputs: Any, targets: Any, examples: int, wanted: int | None) -> Array:
        """What it is on resamples of the examples, (B,), the same ones whenever there are as many;
        ``wanted``: B, as ``affordable`` says by default. NaN where it is not defined."""
        count = self.affordable(outputs, targets, examples) if wanted is None else wanted
        rng = np.random.default_rng(0)
        if self.resample is None:
            drawn = (torch.from_numpy(rng.integers(0, examples, examples)) for _ in range(count))
            found = [self.function(taken(outputs, rows), taken(targets, rows)) for rows in drawn]
            return np.array([_number(self, value) for value in found])
        parts = [np.zeros(0)]
        size = max(1, _AT_ONCE // examples)
        for start in range(0, count, size):
            rows = rng.integers(0, examples, (min(size, count - start), examples))
            counts = np.stack([np.bincount(row, minlength=examples) for row in rows]).astype(np.float64)
            parts.append(np.asarray(self.resample(outputs, targets, counts), dtype=np.float64))
        return np.concatenate(parts)

    def affordable(self, outputs: Any, targets: Any, examples: int) -> int:
        """How many resamples: RESAMPLES, or what takes about a second, but LEAST_RESAMPLES."""
        if self.resample is not None:
            return int(np.clip(_NUMBERS // examples, LEAST_RESAMPLES, RESAMPLES))
        started = time.perf_counter()
        self.function(outputs, targets)
        seconds = max(time.perf_counter() - started, 1e-9)
        return next((count for count in (RESAMPLES, 500, 200) if count * seconds < _SECONDS), LEAST_RESAMPLES)


def _number(metric: Metric, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as problem:
        raise TaskError(
            f"A metric is one number, but {metric.name} is {shown(value)}; return a float"
        ) from problem


def as_metric(given: object) -> Metric:
    """A metric as it is, and an object of torchmetrics as one.

    Raises:
        TaskError: it is something else, or does not say which way is better.
    """
    if isinstance(given, Metric):
        return given
    name = getattr(given, "__name__", type(given).__name__)
    if not all(callable(getattr(given, part, None)) for part in ("update", "compute", "reset")):
        raise TaskError(
            f"A metric is a leanfront.Metric or an object of torchmetrics, but {name} came; say which way is"
            f' better: Metric(function, "{name}", higher_is_better=True)'
        )
    better = getattr(given, "higher_is_better", None)
    if better is None:
        raise TaskError(
            f"A metric says whether more of it is better, but {name} does not; give"
            f' Metric(function, "{name}", higher_is_better=...), the function calling it'
        )
    ends = (getattr(given, f"plot_{end}_bound", None) for end in ("lower", "upper"))
    low, high = (
        float(end) if end is not None else nowhere for end, nowhere in zip(ends, _NOWHERE, strict=True)
    )
    return Metric(_Updated(given), name, higher_is_better=bool(better), bounds=(low, high))


@dataclass(frozen=True, eq=False)
class _Updated:
    """An object of torchmetrics, called as a function."""

    metric: Any

    def __call__(self, outputs: Any, targets: Any) -> float:
        self.metric.reset()
        self.metric.update(outputs, targets)
        found = float(self.metric.compute())
        self.metric.reset()
        return found


def described(metric: Metric | None) -> dict[str, Any]:
    """What a run folder keeps of it, for ``objectives.scored_by``; None: a score of each example."""
    if metric is None:
        metric = ACCURACY
    low, high = (end if math.isfinite(end) else None for end in metric.bounds)
    return {
        "name": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "bounds": [low, high],
        "share": metric.share,
    }


def taken(values: Any, rows: Tensor) -> Any:
    """Some of the examples, by their numbers: of tensors in containers, or of a list with one entry each."""
    if is_list(values):
        return [values[row] for row in rows.tolist()]
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[rows], values)


def together(batches: Sequence[Any]) -> Any:
    """Batches as one: tensors in containers end to end, lists with one entry for each example, too."""
    if is_list(batches[0]):
        return [entry for batch in batches for entry in batch]
    leaves, spec = zip(*(pytree.tree_flatten(batch) for batch in batches), strict=True)
    return pytree.tree_unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)], spec[0])


def is_list(values: Any) -> bool:
    """A list of what is no tensor has one entry for each example: boxes, say."""
    return isinstance(values, list) and not all(isinstance(value, Tensor) for value in values)


def shown(values: Any) -> str:
    """Outputs or targets in a few words: their shapes."""
    if is_list(values):
        return f"a list of {len(values)}"
    shapes = [str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return " and ".join(shapes[:3]) or type(values).__name__


@dataclass(frozen=True, eq=False)
class _Sums:
    """A metric that follows from sums over examples, whatever their order.

    each: (outputs, targets) -> what is summed, (N, S); total: sums (B, S) and numbers of examples (B, 1) ->
    (B,).
    """

    each: Callable[[Any, Any], Tensor]
    total: Callable[[Array, Array], Array]

    def __call__(self, outputs: Any, targets: Any) -> float:
        values = self.each(outputs, targets).double().cpu().numpy()
        return float(self.total(values.sum(axis=0, keepdims=True), np.array([[float(len(values))]]))[0])

    def resample(self, outputs: Any, targets: Any, counts: Array) -> Array:
        """See ``Metric.resample``."""
        values = self.each(outputs, targets).double().cpu().numpy()
        return self.total(counts @ values, counts.sum(axis=1, keepdims=True))


def _of_sums(name: str, each: Callable[[Any, Any], Tensor], total: Callable[[Array, Array], Array]) -> Metric:
    sums = _Sums(each, total)
    return Metric(sums, name, bounds=(0.0, 1.0), resample=sums.resample)


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    right = (decided(outputs) == targets.reshape(decided(outputs).shape)).float()
    return right.reshape(len(right), -1).mean(dim=1, keepdim=True)


def _apart(outputs: Tensor, targets: Tensor) -> Tensor:
    apart = (outputs - targets.reshape(outputs.shape)).abs().float()
    return apart.reshape(len(apart), -1).mean(dim=1, keepdim=True)


def decided(outputs: Tensor) -> Tensor:
    """What outputs settle on: the largest of (N, K, ...), K above 1; of all others whether they are above
    0."""
    return outputs.argmax(dim=1) if _several(outputs) else (outputs > 0).long()


def _several(outputs: Tensor) -> bool:
    return outputs.dim() > 1 and outputs.shape[1] > 1


def _met(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 3 K): how often each class was right, claimed, there; class numbers outside of 0 .. K - 1 are left
    out.

    With targets of the outputs' shape (N, K), each column is a question of its own."""
    if _several(outputs) and targets.shape == outputs.shape:
        claimed, there = (outputs > 0).float(), (targets > 0).float()
        found = torch.stack([claimed * there, claimed, there], dim=1)
        return found.reshape(len(outputs), 3, outputs.shape[1], -1).sum(dim=3).reshape(len(outputs), -1)
    classes = outputs.shape[1] if _several(outputs) else 2
    claimed, wanted = decided(outputs).reshape(len(outputs), -1), targets.reshape(len(outputs), -1).long()
    counted = (wanted >= 0) & (wanted < classes)
    sides = []
    for side, which in ((claimed, counted & (claimed == wanted)), (claimed, counted), (wanted, counted)):
        found = torch.zeros(len(outputs), classes, dtype=torch.float64)
        sides.append(found.scatter_add_(1, torch.where(which, side, 0).cpu(), which.double().cpu()))
    return torch.cat(sides, dim=1)


def _over_classes(sums: Array, combined: Callable[[Array, Array, Array], tuple[Array, Array]]) -> Array:
    """The mean over the classes that occur; NaN where none does. Of two classes of F1 see ``_f1``."""
    right, claimed, there = np.split(sums, 3, axis=1)
    above, below = combined(right, claimed, there)
    occurs = below > 0
    each = np.divide(above, below, out=np.zeros_like(above), where=occurs)
    return _share(each.sum(axis=1), occurs.sum(axis=1))


def _f1(sums: Array, _: Array) -> Array:
    if sums.shape[1] == 6:  # two classes: of the second, as is usual
        sums = sums[:, [1, 3, 5]]
    return _over_classes(sums, lambda right, claimed, there: (2 * right, claimed + there))


def _iou(sums: Array, _: Array) -> Array:
    return _over_classes(sums, lambda right, claimed, there: (right, claimed + there - right))


def _auc(outputs: Tensor, targets: Tensor) -> float:
    return float(_auc_of(outputs, targets, np.ones((1, len(targets))))[0])


def _auc_of(outputs: Tensor, targets: Tensor, counts: Array) -> Array:
    """The chance that an example of a class gets more for it than one of another (Mann and Whitney 1947),
    ties counting half; the mean over the classes, or of the second of two."""
    values = outputs.detach().double().cpu().numpy().reshape(len(targets), -1)
    wanted = targets.detach().cpu().numpy().reshape(len(targets), -1)
    if values.shape[1] == 2 and wanted.shape[1] == 1:
        values = values[:, 1:] - values[:, :1]
    if values.shape[1] == wanted.shape[1]:
        columns = [(values[:, k], wanted[:, k] > 0) for k in range(values.shape[1])]
    else:
        columns = [(values[:, k], wanted[:, 0] == k) for k in range(values.shape[1])]
    each = np.stack([_ranked(value, positive, counts) for value, positive in columns])
    known = np.isfinite(each)
    return _share(np.where(known, each, 0).sum(axis=0), known.sum(axis=0))


def _ranked(values: Array, positive: NDArray[np.bool_], counts: Array) -> Array:
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) > 0))
    ups = np.add.reduceat(counts[:, order] * positive[order], starts, axis=1)
    downs = np.add.reduceat(counts[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    return _share((ups * below).sum(axis=1), pairs)


def _share(part: Array, whole: NDArray[Any]) -> Array:
    """NaN of nothing."""
    found: Array = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return found


ACCURACY = replace(_of_sums("accuracy", _right, lambda sums, n: (sums / n)[:, 0]), share=True)
"""Share of the examples, or pixels, whose largest output (N, K, ...) is the class number; of a single output,
whether it is above 0 where the target is 1."""
F1 = _of_sums("F1", _met, _f1)
"""Harmonic mean of precision and recall: of the second of two classes, else the mean over classes; of (N, K)
with targets of that shape over the columns."""
MEAN_IOU = _of_sums("mIoU", _met, _iou)
"""Intersection over union of outputs (N, K, ...) and class numbers, mean over the classes that occur; pixels
of all images together. Numbers outside of 0 .. K - 1 are left out."""
AUC = Metric(_auc, "AUC", bounds=(0.0, 1.0), resample=_auc_of)
"""Area under the receiver operating characteristic: of the second of two classes, of a single output, or the
mean of each class against the rest."""
MEAN_ABSOLUTE_ERROR = replace(
    _of_sums("mean absolute error", _apart, lambda sums, n: (sums / n)[:, 0]),
    higher_is_better=False,
    bounds=(0.0, math.inf),
)
"""Mean distance of outputs from targets; ``dataclasses.replace(MEAN_ABSOLUTE_ERROR, unit="kg")`` gives it a
unit."""


def reported(report: Mapping[str, object]) -> dict[str, Metric]:
    """The metrics that are reported beside what is searched for; a plain function will do, as no way is
    better.

    Raises:
        TaskError: one is neither a metric nor a function.
    """
    found = {}
    for name, given in report.items():
        plain = callable(given) and not isinstance(given, Metric) and not hasattr(given, "compute")
        metric = Metric(given, str(name)) if plain else as_metric(given)  # type: ignore[arg-type]  # it is callable
        found[str(name)] = replace(metric, name=str(name))
    return found
