"""The examples of kinds of tasks on the real command line: what each loses and gains.

    python -m benchmarks.tasks [NAME ...]

Of each folder of examples/tasks: check, a search of eight trials, front, report, pick, export, and the costs
of the uncompressed and the picked file on two parts, each in a process of its own. Printed is a
table, as docs/tasks.md has it. Lines are also appended to benchmarks/results/tasks.jsonl.
"""

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples" / "tasks"
RESULTS = HERE / "results" / "tasks.jsonl"
PARTS = ("raspberry-pi-4", "jetson-orin-nano")
TRIALS = 8


@dataclass(frozen=True)
class Line:
    """What became of one task. Values are the metric's own: uncompressed and picked on the test split, int8
    (what is free) and searched (the uncompressed network) on the search split. latency: part -> share of the
    uncompressed network's, as predicted of both files. size: the same of the files' bytes. seconds: of
    processor time, all commands together. failures: what was
    promised and not found, or the command that ended with an error, in sentences."""

    task: str
    metric: str
    unit: str
    uncompressed: float
    picked: float
    searched: float
    int8: float
    latency: dict[str, float]
    size: float
    seconds: float
    failures: tuple[str, ...]


class Stopped(Exception):
    """A command ended with an error."""


def leanfront(*words: str) -> str:
    """What a command prints; raises Stopped with its error. Of pick exit code 1 is an answer."""
    done = subprocess.run(
        [sys.executable, "-m", "leanfront", *words],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        check=False,
    )
    if done.returncode and not (words[0] == "pick" and done.returncode == 1 and done.stdout):
        raise Stopped(f"{' '.join(words[:2])}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def walked(name: str, folder: Path) -> Line:
    """One task from check to costs; raises Stopped."""
    before = _processor_seconds()
    config, run = str(EXAMPLES / name), str(folder / "run")
    leanfront("check", config)
    leanfront("search", config, "--trials", str(TRIALS), "--run", run)
    front = json.loads(leanfront("front", run, "--format", "json"))
    leanfront("report", run)
    found = json.loads(leanfront("pick", run, "--to", "onnx", "--format", "json"))
    exported = folder / "run" / "exported" / str(found["trial"])
    leanfront("export", run, "--trial", str(found["trial"]), "--out", str(folder / "as_trained"))
    latency = {}
    for part in PARTS:
        costs = [_cost(exported / file, part) for file in ("model.onnx", "baseline.onnx")]
        latency[part] = costs[0]["latency_ms"] / costs[1]["latency_ms"]
    sign = 1.0 if front["metric"]["higher_is_better"] else -1.0
    return Line(
        task=name,
        metric=front["metric"]["name"],
        unit=front["metric"]["unit"],
        uncompressed=sign * found["test"]["baseline_accuracy"],
        picked=sign * found["test"]["accuracy"],
        searched=sign * front["baseline"]["accuracy"],
        int8=next(sign * free["accuracy"] for free in front["free"] if free["name"] == "int8"),
        latency=latency,
        size=found["size"]["bytes"] / found["size"]["baseline_bytes"],
        seconds=_processor_seconds() - before,
        failures=tuple(found["failures"]),
    )


def _processor_seconds() -> float:
    """Of all commands so far: how busy the machine is otherwise changes the time on the clock, not these."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cost(file: Path, part: str) -> dict[str, Any]:
    cost: dict[str, Any] = json.loads(leanfront("cost", str(file), "--profile", part, "--format", "json"))
    return cost


def table(lines: list[Line]) -> str:
    """As Markdown, a line a task."""
    head = ("task", "metric", "uncompressed", "picked", "int8 for free", *(f"latency, {p}" for p in PARTS))
    rows = [[*head, "file", "CPU s", "as promised"]]
    rows.append(["---"] * len(rows[0]))
    for one in lines:
        digits = ".3f" if not one.unit else ".1f"
        values = [f"{value:{digits}}" for value in (one.uncompressed, one.picked)]
        free = f"{one.int8:{digits}} of {one.searched:{digits}}"
        shares = [f"{one.latency[part]:.2f}x" for part in PARTS]
        metric = f"{one.metric}, {one.unit}" if one.unit else one.metric
        size = f"1/{1 / one.size:.1f}"
        kept = "; ".join(one.failures) or "yes"
        rows.append([one.task, metric, *values, free, *shares, size, f"{one.seconds:.0f}", kept])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(names: list[str]) -> None:
    known = sorted(file.parent.name for file in EXAMPLES.glob("*/task.py"))
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"tasks are {', '.join(known)}, but {unknown[0]} came; give one of these, or none")
    lines = []
    for name in names or known:
        with tempfile.TemporaryDirectory(prefix="leanfront-") as folder:
            try:
                line = walked(name, Path(folder))
            except Stopped as problem:
                print(f"{name}: {problem}", file=sys.stderr, flush=True)
                continue
        lines.append(line)
        with RESULTS.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        print(f"{name}: {line.seconds:.0f} s", file=sys.stderr, flush=True)
    print(table(lines))
    if len(lines) < len(names or known):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
