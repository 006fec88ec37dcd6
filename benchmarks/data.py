"""What a trial waits for when its images are JPEG files behind a Dataset or a DataLoader, not an array.

    python benchmarks/data.py [--files 20000] [--size 96] [--workers 2]

Files of noise and gradients are made with Pillow in a temporary folder. A small network is searched on them
three times: from one array, from a Dataset, from a DataLoader with workers. Of each the seconds in which
everything is read before the first trial, and those of a trial, the third: the first two warm caches up.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from leanfront.compression.capture.trace import trace
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.search.config import parse_config
from leanfront.search.study.threads import use_threads
from leanfront.search.task import ArrayData, Task
from leanfront.search.trial.scorer import Scorer

SHARE = 0.8
"""Of the files, for training."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


class Files(Dataset[Any]):
    """JPEG files, each decoded, scaled and normalised when it is asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(decoded(self.paths[index])).float().div_(255)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
        return pixels.sub_(mean).div_(std), index % CLASSES


def decoded(path: Path) -> NDArray[np.uint8]:
    """A file as (3, H, W)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()


def written(folder: Path, count: int, size: int) -> list[Path]:
    """So many JPEG files; the class is how the brightness rises, so that there is something to tell."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 120, size)[:, None, None]
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        noise = rng.integers(0, 80, (size // 4, size // 4, 3)).repeat(4, 0).repeat(4, 1)
        pixels = noise + ramp * (number % CLASSES) / CLASSES
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    return paths


def network() -> nn.Module:
    """So small that reading would be most of a trial."""
    torch.manual_seed(0)
    relu = nn.ReLU
    layers = [nn.Conv2d(3, 8, 8, stride=8), relu(), nn.Conv2d(8, 16, 3, padding=1), relu()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)).eval()


def seconds(splits: tuple[Any, Any], size: int, folder: Path) -> tuple[float, float]:
    """Before the first trial, and a trial."""
    train, search = splits
    task = Task(network(), torch.zeros(1, 3, size, size), train, search, search)
    count = len(task.train)
    config = parse_config(
        {"task": {"file": "task.py"}, "search": {"sampler": "tpe"}, "finetune": {"images": count}}
    )
    traced = trace(task.model, task.example_input)
    scorer = Scorer(traced, task, config, lambda line: print(f"  {line}"), (count,), folder)
    policy = Policy.uniform(traced.network, LayerPolicy(0.25, 8, 8))
    began = time.perf_counter()
    scorer.scored(scorer.teacher, 0.0, began)
    for _ in scorer.batches.short(0):
        pass
    first = time.perf_counter() - began
    for _ in range(3):
        began = time.perf_counter()
        scorer.start(policy).score(0)
    return first, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    use_threads(1)
    with tempfile.TemporaryDirectory(prefix="leanfront-") as name:
        paths = written(Path(name), given.files, given.size)
        cut = int(SHARE * given.files)
        files = Files(paths)
        parts = [Subset(files, range(cut)), Subset(files, range(cut, given.files))]

        def arrays() -> tuple[Any, Any]:
            pixels = np.stack([decoded(path) for path in paths])
            labels = np.arange(given.files) % CLASSES
            return tuple(ArrayData(pixels[s], labels[s], MEAN, STD) for s in (slice(cut), slice(cut, None)))

        ways: dict[str, Callable[[], Any]] = {
            "one array": arrays,
            "Dataset": lambda: tuple(parts),
            f"DataLoader, {given.workers} workers": lambda: tuple(
                DataLoader(part, num_workers=given.workers) for part in parts
            ),
        }
        base = None
        for way, splits in ways.items():
            (folder := Path(name) / "decoded" / way).mkdir(parents=True)
            first, trial = seconds(splits(), given.size, folder)
            base = base or trial
            held = sum(path.stat().st_size for path in folder.rglob("*.pt"))
            print(
                f"{way:<22} read in {first:6.1f} s, a trial {trial:6.2f} s, {trial / base:.2f} x the array's;"
                f" {held / 1e6:.0f} MB of files",
                flush=True,
            )


if __name__ == "__main__":
    main()
