"""What else is told of the test split: the metrics that a task reports, and the accuracy of each class."""

from typing import Any

import torch
from torch import Tensor

from leanfront.compression.capture.program import tensors_in
from leanfront.compression.training.distillation import Comparison
from leanfront.search.scores import together
from leanfront.search.task import Task
from leanfront.search.trial.in_task import on


class Told:
    """Takes in what the uncompressed and the picked network put out, batch by batch."""

    def __init__(self, task: Task, comparison: Comparison) -> None:
        """``comparison``: how answers are compared, which says whether they are classes."""
        self._task = task
        self._outputs: dict[str, list[Any]] = {}
        self._targets: dict[str, list[Any]] = {}
        self._right: dict[str, Tensor] = {}
        self._there = torch.zeros(0)
        kinds = comparison.kinds
        self._decision = kinds[0].decision if len(kinds) == 1 and kinds[0].numbered else None

    def add(self, name: str, outputs: Any, targets: Any) -> None:
        """A batch of the network of that name, "uncompressed" or "picked"."""
        if self._task.report:
            self._outputs.setdefault(name, []).append(on("cpu", outputs))
            self._targets.setdefault(name, []).append(on("cpu", targets))
        answers = tensors_in(outputs)
        if self._decision is None or self._task.part is not None or not isinstance(targets, Tensor):
            return
        decided = self._decision(answers[0]).cpu().reshape(-1)
        wanted = (targets if targets.dim() < answers[0].dim() else targets.argmax(dim=1)).cpu().reshape(-1)
        classes = answers[0].shape[1]
        counted = (wanted >= 0) & (wanted < classes)
        right = torch.bincount(wanted[counted & (decided == wanted)], minlength=classes)
        self._right[name] = self._right.get(name, torch.zeros(classes)) + right
        if name == "uncompressed":
            there = torch.bincount(wanted[counted], minlength=classes)
            self._there = there + (self._there if len(self._there) else 0)

    def report(self) -> dict[str, dict[str, Any]]:
        """Name -> unit, and its value of both networks.

        Raises:
            TaskError: one is no number that it can be.
        """
        found: dict[str, dict[str, Any]] = {
            name: {"unit": metric.unit} for name, metric in self._task.report.items()
        }
        for network in self._outputs:
            outputs, targets = together(self._outputs[network]), together(self._targets[network])
            for name, metric in self._task.report.items():
                found[name][network] = metric.of(outputs, targets)
        return found

    def classes(self) -> list[dict[str, Any]]:
        """Of each class that occurs how many examples (or pixels) it has, and the share that both have
        right."""
        return [
            {"class": number, "examples": int(count)}
            | {name: float(right[number]) / int(count) for name, right in self._right.items()}
            for number, count in enumerate(self._there.tolist())
            if count
        ]
