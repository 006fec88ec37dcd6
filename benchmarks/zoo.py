"""Networks of the world, one row each: captured, cut by half, in 8 bits, exported, run in onnxruntime.

    python -m benchmarks.zoo --cases ../shared/cases/networks.py --json zoo.json
    python -m benchmarks.zoo --only resnet18 googlenet

Needs torchvision, timm and transformers beside leanfront; weights are random, and so are the statistics and
gains of norms, around what the inputs give. Each network runs in a process of its own: one that crashes, or
takes longer than --timeout, costs its row alone.

Columns: captured, file, cut: largest differences as shares of the range (the captured network from the
module; the float files, uncut and cut, from their networks; the cut network from the uncut one with the
removed channels at zero); steps: the 8-bit file from its network at 99.9 % of the outputs, in quantization
steps; a file that lies farther off is right only where each operation by itself is right and the network's
own answers move as far with the rounding of floats (docs/gate.md); size: predicted over real bytes, the worst
of the files; frozen: multiply-accumulates in layers of which nothing can be cut; left: parameters that stay
at sparsity .5.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COLUMNS = (
    "network", "captured", "file", "steps", "cut", "size", "frozen", "left", "capture_s", "template_s",
    "export_s", "rss_mb", "verdict",
)  # fmt: skip


def row(name: str, size: int, cases: Path | None) -> Iterator[dict[str, Any]]:
    """The columns of one network, as soon as each is known."""
    import torch

    import leanfront as lf
    from benchmarks.zoo_networks import zoo
    from leanfront.search.gate.tensors import answers, drawn_like, share_of_range, together, tolerance

    torch.set_num_threads(1)
    torch.manual_seed(0)
    entry = zoo(cases)[name]
    model, example = entry.make(entry.size or size)
    model.eval()
    examples = drawn_like(example, 8, 1)
    randomised(model, [together(examples[:4]), together(examples[4:])])
    batches = [together(examples[:4]), together(examples[4:])]

    started = time.perf_counter()
    captured = lf.capture(model, example)
    yield {"capture_s": time.perf_counter() - started}
    pairs = [together(examples[:1]), together(examples[:3])]
    apart = [share_of_range(answers(model, given), answers(captured.module, given)) for given in pairs]
    yield {"captured": max(apart), "limit": tolerance(model), "frozen": frozen(captured.network)}
    half = lf.uniform(captured, sparsity=0.5)
    cut = lf.compress(captured, half)
    yield {"left": parameters(cut.module) / max(parameters(model), 1)}
    yield from masked_difference(captured, cut, half, together(examples[:2]))

    started = time.perf_counter()
    _ = captured._template
    yield {"template_s": time.perf_counter() - started}
    uncut = lf.uniform(captured)
    int8 = lf.uniform(captured, sparsity=0.5, weight_bits=8, activation_bits=8)
    sizes, files, took = [], [], []
    for policy, made, theirs in (
        (uncut, lf.compress(captured, uncut), model),
        (half, cut, cut.module),
        (int8, lf.compress(captured, int8, calibration=batches), None),
    ):
        started = time.perf_counter()
        content = written(made)
        took.append(time.perf_counter() - started)
        sizes.append(predicted_bytes(captured, policy) / len(content))
        yield {"size": max(sizes, key=lambda ratio: abs(math.log(ratio))), "bytes": len(content)}
        yield {"export_s": max(took)}
        found = judged(captured, made, content, examples, theirs)
        if theirs is None:
            yield {"steps": found.largest, "steps_right": found.passed, "steps_said": found.why}
        else:
            files.append(found)
            worst = max(files, key=lambda one: (not one.passed, one.largest))
            yield {"file": worst.largest, "file_right": worst.passed, "file_said": worst.why}


def randomised(model: Any, batches: list[Any]) -> None:
    """Give norms gains, shifts and statistics unlike 1 and 0: around what the batches have, so that tensors
    stay in the ranges that training leaves."""
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [part for part in model.modules() if "norm" in type(part).__name__.lower()]
    with torch.no_grad():
        for norm in norms:
            for name, middle in (("weight", 1.0), ("bias", 0.0)):
                held = getattr(norm, name, None)
                if isinstance(held, nn.Parameter) and held.dim() == 1:
                    held.normal_(middle, 0.3)
        counted = [norm for norm in norms if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        momenta = [norm.momentum for norm in counted]
        for norm in counted:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for batch in batches:
                model(*batch)
        except ValueError:  # one value for each channel: they keep mean 0 and variance 1
            for norm in counted:
                norm.reset_running_stats()
        for norm, momentum in zip(counted, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean += 0.2 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 1.5)


def masked_difference(captured: Any, cut: Any, policy: Any, given: Any) -> Iterator[dict[str, Any]]:
    """The cut network from the uncut one with the removed channels at zero."""
    from leanfront.search.gate.masked import masked
    from leanfront.search.gate.tensors import answers, share_of_range, tolerance

    if all(not layer.sparsity for layer in policy.values()):
        yield {"cut": None, "cut_said": "nothing can be cut"}
        return
    found = masked(captured.module, cut.module, cut.kept, given, held=cut.kept_parameters)
    apart = share_of_range(found.outputs, answers(cut.module, given))
    if apart > tolerance(cut.module) and found.spread is not None:
        yield {"cut": None, "cut_said": f"channels are mixed in front of {found.spread}", "cut_apart": apart}
    else:
        yield {"cut": apart}


def written(made: Any) -> bytes:
    """The file, without what ``lf.export`` compares before it writes."""
    from leanfront.networks import file_of

    return file_of(made)


def predicted_bytes(captured: Any, policy: Any) -> int:
    """What a search takes for the size of the file."""
    from leanfront.compression.export.measured_sizes import measured
    from leanfront.compression.policy.batch import PolicyBatch

    return int(PolicyBatch.of(measured(captured.traced), [policy]).size_bytes()[0])


def judged(captured: Any, made: Any, content: bytes, examples: list[Any], theirs: Any) -> Any:
    """A file from its network, or from the user's module, as the gate judges it."""
    from leanfront.compression.export.template import template
    from leanfront.compression.techniques.compress import Compressed
    from leanfront.search.gate.files import held

    inner = Compressed(made.module, made.network, made.policy)
    return held(template(captured.traced), inner, content, examples, against=theirs)


def frozen(network: Any) -> float:
    """Share of the multiply-accumulates that are in layers of which neither inputs nor outputs can be cut."""
    stuck, every = 0, 0
    for node in network.nodes:
        own = getattr(node, "macs", 0)
        every, stuck = every + own, stuck + own
        if node.layer is None:
            continue
        layer = network.used(node)
        every += layer.shape.macs
        segments = (*node.channels, *network.node[node.source].channels)
        if all(segment.group is None for segment in segments):
            stuck += layer.shape.macs
    return stuck / every if every else 0.0


def parameters(module: Any) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in module.parameters())


def child(name: str, size: int, cases: Path | None, out: Path) -> None:
    """One row into a file, whatever becomes of it."""
    from leanfront.search.errors import is_wrong_input

    found: dict[str, Any] = {"network": name}
    try:
        for known in row(name, size, cases):
            found |= known
            save(out, found)
        found["verdict"] = verdict(found)
    except Exception as error:
        message = " ".join(str(error).split())
        told = is_wrong_input(error) or type(error).__name__ == "ExportError"
        found["verdict"] = f"refused: {message}" if told else f"crash: {type(error).__name__}: {message}"
        if wrong := wrongs(found):
            found["verdict"] = f"wrong: {', '.join(wrong)}; {found['verdict']}"
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    save(out, found)


def save(out: Path, found: dict[str, Any]) -> None:
    """Kept as it grows: what a process that is killed had found is in it."""
    out.write_text(json.dumps(found))


def wrongs(found: dict[str, Any]) -> list[str]:
    """Columns that are not as they have to be."""
    limits: dict[str, Callable[[float], bool]] = {
        "captured": lambda value: value > found["limit"],  # larger where its own floats have fewer digits
        "cut": lambda value: value > found["limit"],
    }
    wrong = [name for name, broken in limits.items() if found.get(name) is not None and broken(found[name])]
    wrong += [name for name in ("file", "steps") if found.get(f"{name}_right") is False]
    ratio, size = found.get("size"), found.get("bytes", 0)
    if ratio is not None and abs(ratio - 1) * size > max(300, 0.01 * size):
        wrong.append("size")
    return wrong


def verdict(found: dict[str, Any]) -> str:
    """Right, or what is wrong."""
    return f"wrong: {', '.join(wrong)}" if (wrong := wrongs(found)) else "right"


def run_one(name: str, size: int, cases: Path | None, timeout_s: float) -> dict[str, Any]:
    """A row from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.zoo", "--row", name, str(out), "--size", str(size)]
        command += ["--cases", str(cases.absolute())] if cases is not None else []
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        ended = ""
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                cwd=ROOT,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                ended = f"crash: exit code {done.returncode}: {lines[-1] if lines else ''}"
        except subprocess.TimeoutExpired:
            ended = f"crash: took longer than {timeout_s:g} s"
        found = json.loads(out.read_text()) if out.exists() else {"network": name}
        if ended:
            found["verdict"] = ended
        return found


def text(name: str, value: Any) -> str:
    """A cell."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)[:160]
    if name in ("captured", "file", "cut"):
        return f"{value:.0e}"
    return f"{value:.3f}" if name in ("size", "frozen", "left") else f"{value:.1f}"


def line(found: dict[str, Any], width: int) -> str:
    """A row as text."""
    cells = [text(name, found.get(name)) for name in COLUMNS]
    return f"{cells[0]:<{width}} " + " ".join(f"{cell:>9}" for cell in cells[1:-1]) + f"  {cells[-1]}"


def main() -> None:
    """Print the table, row by row."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks alone")
    parser.add_argument("--cases", type=Path, help="a file with NETWORKS, which are added")
    parser.add_argument("--size", type=int, default=96, help="pixels of images where a network takes any")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="seconds for one network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--row", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        child(given.row[0], given.size, given.cases, Path(given.row[1]))
        return
    from benchmarks.zoo_networks import zoo

    names = list(zoo(given.cases))
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"no network is called {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    chosen = given.only or names
    width = max(map(len, chosen))
    print(f"{COLUMNS[0]:<{width}} " + " ".join(f"{name:>9}" for name in COLUMNS[1:-1]) + f"  {COLUMNS[-1]}")
    rows = []
    for name in chosen:
        rows.append(run_one(name, given.size, given.cases, given.timeout))
        print(line(rows[-1], width), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1))
    right = sum(found.get("verdict") == "right" for found in rows)
    print(f"{right} of {len(rows)} are right")


if __name__ == "__main__":
    main()
