"""A network the way its task uses it: alone, or in the place of a part of the task's model."""

import copy
import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from leanfront.compression.capture.part import calls_of_part, with_part
from leanfront.compression.capture.program import Arguments, called, evaluating, tensors_in
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.training.distillation import VALUES, Comparison, kinds_of_answers
from leanfront.compression.training.finetune import FineTune, Lesson, lesson
from leanfront.search.gate.tensors import File, one_by_one
from leanfront.search.task import Task


class AsFile(nn.Module):
    """The exported network as its engine runs it, one example at a time.

    For a CPU: there torch takes three to five times as long for the same in floats with fake quantization
    (VGG-11), and the score is that of the file itself.
    """

    def __init__(
        self,
        model: bytes,
        traced: Traced,
        spec: pytree.TreeSpec,
        threads: int | None = None,
        dialect: Dialect = QDQ,
    ) -> None:
        """``traced``: the uncompressed network; ``spec``: the containers that its outputs are in.
        ``threads``: as many as torch has. ``dialect``: the kind of the file."""
        super().__init__()
        self._example = traced.example
        self._file = File(model, threads=threads or torch.get_num_threads(), dialect=dialect)
        self._spec = spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the network is, with a batch; its outputs, in their containers, where its inputs lie."""
        given = Arguments(args, kwargs).like(self._example)
        found = self._file.answers(one_by_one(given))
        return on(given.tensors[0].device, pytree.tree_unflatten(found, self._spec))


class InHalves(nn.Module):
    """A network as an engine runs it in half precision, whose file for onnxruntime computes in floats all the
    same: its weights, and what every operation puts out, are rounded to it; what is larger than it can hold
    is infinite. With ``layers``, names of modules, only they are: what they hold, read and put out."""

    def __init__(self, module: nn.Module, layers: Collection[str] | None = None) -> None:
        """``module`` is copied."""
        super().__init__()
        self.module = copy.deepcopy(module)
        self.whole = layers is None
        parts = [self.module] if layers is None else [self.module.get_submodule(name) for name in layers]
        with torch.no_grad():
            for held in itertools.chain(*(each for p in parts for each in (p.parameters(), p.buffers()))):
                if held.is_floating_point():
                    held.copy_(_half(held))
        for part in () if self.whole else parts:
            part.register_forward_pre_hook(lambda _, given: pytree.tree_map_only(Tensor, _half, given))
            part.register_forward_hook(lambda _, __, made: pytree.tree_map_only(Tensor, _half, made))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the network is."""
        if not self.whole:
            return self.module(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, _half, (args, kwargs))
        with _Halves():  # type: ignore[no-untyped-call]
            return self.module(*args, **kwargs)


class _Halves(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return pytree.tree_map_only(Tensor, _half, func(*args, **(kwargs or {})))


def _half(tensor: Tensor) -> Tensor:
    return tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor


class InTask:
    """A network in its task: what it is called with, and what is compared with the teacher.

    inner: the network itself. whole: what the task calls, ``inner`` or the task's model around it.
    """

    def __init__(self, task: Task, inner: nn.Module, around: nn.Module | None) -> None:
        """``around``: the task's model, whose weights are shared and stay as they are; None where ``inner``
        is all of it."""
        self.task, self.inner = task, inner
        self.whole = inner if around is None else with_part(around, str(task.part), inner)

    def both(self, inputs: Any) -> tuple[Any, Any]:
        """What the task gets for a batch of inputs, and what is compared with the teacher's: of a part its
        own outputs, since what is made of them (boxes, say) need not be of one shape."""
        if self.whole is self.inner:
            outputs = _floats(called(self.whole, inputs))
            return outputs, outputs
        with self._heard() as told:
            outputs = _floats(called(self.whole, inputs))
        return outputs, told

    def lesson(self, comparison: Comparison, options: FineTune) -> Lesson:
        """The loss of a batch: the task's and the distillation's."""
        own, loss = self.task.training_loss, self.task.loss
        device = next(self.inner.parameters()).device.type
        if self.whole is not self.inner:
            self._modes_around(own is not None)
        if own is None:
            return lesson(self.both, loss, comparison, options, device)

        def trained(inputs: Any) -> tuple[Any, Any]:
            with self._heard() as told:
                wanted = own(self.whole, *inputs)
            return wanted, told if self.whole is not self.inner else told[0]

        def computed(inputs: Any, targets: Any, teacher: Any) -> Tensor:
            return whole_lesson((inputs, targets), targets, teacher)

        whole_lesson = lesson(trained, lambda wanted, _: wanted, comparison, options, device)
        return computed

    def _modes_around(self, training: bool) -> None:
        """The model around a part in evaluation mode, or, where it computes its own loss only while it
        trains, in that, but for batch norms, which stay as they are."""
        inner = set(self.inner.modules())
        for module in self.whole.modules():
            if module not in inner:
                module.training = training and not isinstance(module, _BatchNorm)

    @contextmanager
    def _heard(self) -> Iterator[list[Any]]:
        """What the network puts out while it is listened to, call by call."""
        told: list[Any] = []
        handle = self.inner.register_forward_hook(lambda _, __, output: told.append(_floats(output)))
        try:
            yield told
        finally:
            handle.remove()


def model_around(task: Task) -> nn.Module | None:
    """A copy of the task's model that is not trained, for ``InTask``; None where all of it is compressed."""
    return None if task.part is None else copy.deepcopy(task.model).eval().requires_grad_(False)


def answer_spec(traced: Traced) -> pytree.TreeSpec:
    """The containers that a network's outputs are in."""
    with evaluating(traced.module):
        return pytree.tree_structure(traced.example.call(traced.module))


def inputs_of_inner(task: Task, around: nn.Module | None, batch: Any) -> list[Any]:
    """What is compressed gets these for a batch of the task's inputs."""
    return [batch] if around is None else list(calls_of_part(around, str(task.part), batch))


def comparison_of(task: Task, batches: Sequence[tuple[Any, Any]]) -> Comparison:
    """How answers are compared with the teacher's. ``batches``: of its answers, and of targets; an answer
    that is of one kind in some and of another in others is a number."""
    if task.part is not None:
        return Comparison((VALUES,) * len(tensors_in(batches[0][0])), task.distil)
    each = zip(*(kinds_of_answers(answers, targets) for answers, targets in batches), strict=True)
    return Comparison(tuple(kinds[0] if len(set(kinds)) == 1 else VALUES for kinds in each), task.distil)


def on(device: torch.device | str, values: Any) -> Any:
    """Tensors in containers, on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), values)


def _floats(outputs: Any) -> Any:
    """Outputs as a loss and a score get them: floats of single precision."""
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, outputs
    )


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """A module on the device, with its weights laid out as ``batches.laid_out`` lays images."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def in_bfloat16(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Compute in bfloat16: three times as fast, and the uncompressed network's divergence from itself is
    1e-5 to 1e-4 then. For scores that only decide what is trained further."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
