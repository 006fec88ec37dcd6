"""What these examples share: networks are trained on first use, and their weights kept in the cache folder.

A network of your own is trained already: leave the decorator out, and load its weights with
``leanfront.load_state(model, path)``.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from leanfront import Task, TaskError, load_state
from leanfront.readers import cache_folder


def trained(
    epochs: int, rate: float = 0.01, batch: int = 64
) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Decorates a function that returns a task with an untrained network: Adam, a one-cycle schedule, the
    task's own loss. Everything random in the function is drawn from one seed."""

    def decorate(function: Callable[[], Task]) -> Callable[[], Task]:
        @functools.wraps(function)
        def made() -> Task:
            file = Path(function.__code__.co_filename)
            code = file.read_bytes() + Path(__file__).read_bytes() + torch.__version__.encode()
            recipe = hashlib.sha256(code).hexdigest()[:16]
            kept = cache_folder() / f"{file.parent.name}-{recipe}.safetensors"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                task = function()
                try:
                    load_state(task.model, kept)
                except TaskError:  # absent or damaged: both are answered by training
                    _train(task, epochs, rate, batch)
                    _keep(task.model.state_dict(), kept)
            task.model.eval()
            return task

        return made

    return decorate


def halves(*arrays: Any) -> list[tuple[Any, ...]]:
    """Half of the examples to train, a quarter to search, a quarter to test, in turn: arrays or tensors."""
    train = [i for i in range(len(arrays[0])) if i % 4 > 1]
    rest = (range(0, len(arrays[0]), 4), range(1, len(arrays[0]), 4))
    return [tuple(array[list(rows)] for array in arrays) for rows in (train, *rest)]


def _train(task: Task, epochs: int, rate: float, batch: int) -> None:
    """On one thread, so that one machine always comes to the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, data = task.model.train(), task.train
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = -(-len(data) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(batch):
            inputs, targets = data.batch(rows, torch.default_generator)
            optimizer.zero_grad()
            task.loss(_answers(model, inputs), targets).backward()
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)


def _answers(model: torch.nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _keep(state: dict[str, Tensor], kept: Path) -> None:
    """Whole or not at all: another process may be reading."""
    with suppress(OSError):  # a cache that cannot be written costs only these seconds again
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{os.getpid()}")
        save_file(state, beside)
        beside.replace(kept)
