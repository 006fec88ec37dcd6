"""Files of the picked network in the engines that run them: what ran here, how fast, and what did not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx

from leanfront.compression.capture.program import tensors_in
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import Dialect, Opened
from leanfront.latency_models.benchmark.measuring_lock import measuring
from leanfront.latency_models.benchmark.timing import Reference, noise, time_calls

BLOCKS = 9


def engine_of(
    model: bytes, baseline: bytes, dialect: Dialect, traced: Traced, threads: int, log: Callable[[str], None]
) -> dict[str, Any]:
    """What ran a file on this machine, for verification.json.

    Both files are timed where an engine other than onnxruntime runs here (its latency is measured elsewhere):
    "here_ms", "baseline_here_ms", of this machine. "file": what it is called. "not_run": why it does not run
    here; "broken": rules of the engine that the file breaks, one sentence each.
    """
    found: dict[str, Any] = {
        "name": dialect.engine,
        "file": f"model{dialect.suffix}",
        "ran": dialect.ran if dialect.runs_here else "",
    }
    if dialect.not_run:
        found["not_run"] = dialect.not_run
    if dialect.rules:
        graph = onnx.load_from_string(model)
        found["rules"] = [f"{rule.says} ({rule.source})" for rule in dialect.rules]
        found["broken"] = [sentence for rule in dialect.rules for sentence in rule.broken(graph)]
    if dialect.priced or dialect.not_run or not dialect.runs_here:
        return found
    contents = {"here_ms": model, "baseline_here_ms": baseline}
    opened = {name: dialect.opened(content, threads) for name, content in contents.items()}
    calls = {name: _call(each, traced) for name, each in opened.items() if each is not None}
    if not calls:
        return found
    log(f"timing both files in {dialect.ran} on this machine")
    with measuring(log):
        timings = time_calls(calls, Reference(threads), BLOCKS)
    if said := noise(timings):
        log(f"warning: {said}")
    return found | {name: timing.median_ms for name, timing in timings.items()} | {"threads": threads}


def _call(opened: Opened, traced: Traced) -> Callable[[], object]:
    feed = {
        f"input{index or ''}": tensor.detach().cpu().contiguous().numpy()
        for index, tensor in enumerate(tensors_in(traced.example))
    }
    return partial(opened.run, {name: array for name, array in feed.items() if name in set(opened.inputs)})
