"""What rounding after training costs: leanfront's int8 beside onnxruntime's own, and 4-bit weights.

    python -m benchmarks.free [NAME ...]

Of each network the accuracy on images that neither has seen, in floats, in int8 by leanfront (as its file,
not trained), and in int8 by onnxruntime's ``quantize_static`` with each of its calibrators on the same
training images, per channel. Networks that have no weights with them are trained first, which takes minutes;
their weights are kept in the cache folder. Lines are also appended to benchmarks/results/free.jsonl.
"""

import hashlib
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.networks import MobileNetV2, VisionTransformer
from leanfront import ArrayData, Task, TaskError, load_state
from leanfront.compression.capture.trace import trace
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.readers import CIFAR10_MEAN, CIFAR10_STD, cache_folder, read_cifar10, read_image_folder
from leanfront.search.config import parse_config
from leanfront.search.readers import read_fashion_mnist
from leanfront.search.run.significance import paired_interval
from leanfront.search.task import load_task
from leanfront.search.trial.scorer import Scorer

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
RESULTS = HERE / "results" / "free.jsonl"
CALIBRATED = 256
"""Images, the same for both."""
CALIBRATORS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class ResNet18(nn.Module):
    """Four stages of two basic blocks (He et al. 2016) at half the width, for (channels, 64, 64)."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks, before = [], width
        for stage in range(4):
            for index in range(2):
                after = width << stage
                blocks.append(_Block(before, after, 2 if stage and not index else 1))
                before = after
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.b = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if stride > 1 or before != after
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return F.relu(inner + self.shortcut(x))


def _example(name: str) -> Task:
    return load_task(HERE.parent / "examples" / name / "task.py", {})


def _digits() -> Task:
    """Pad and flip in the task, though the network never saw them."""
    task = _example("digits")
    return replace(task, train=replace(task.train, pad=2, flip=True))  # type: ignore[type-var]


def _cifar10(model: nn.Module, epochs: int, rate: float) -> Task:
    images = read_cifar10(SHARED / "data" / "cifar10_jpeg.zip")

    def data(split: Any, **options: Any) -> ArrayData:
        return ArrayData(split.images, split.labels, CIFAR10_MEAN, CIFAR10_STD, **options)

    train = data(images.train, pad=4, flip=True)
    return Task(trained(model, train, epochs, rate), torch.zeros(1, 3, 32, 32), train,
                data(images.search), data(images.test))  # fmt: skip


def _mobilenet() -> Task:
    model = _seeded(MobileNetV2)
    model.stem[0].stride = (1, 1)  # images of 32 pixels instead of 96
    return _cifar10(model, 6, 0.05)


def _transformer() -> Task:
    return _cifar10(_seeded(lambda: VisionTransformer(width=96, depth=4)), 8, 1e-3)


def _eurosat() -> Task:
    folder = SHARED / "data" / "eurosat_sample.zip"
    train, test = (read_image_folder(folder, split) for split in ("train", "test"))
    mean = tuple((train.images / 255).mean((0, 2, 3)).tolist())
    std = tuple((train.images / 255).std((0, 2, 3)).tolist())
    data = ArrayData(train.images, train.labels, mean, std, pad=4, flip=True)
    model = trained(_seeded(lambda: ResNet18(3, 10)), data, 12, 0.05)
    rows = np.arange(len(test.labels))
    halves = [
        ArrayData(test.images[rows % 2 == half], test.labels[rows % 2 == half], mean, std) for half in (0, 1)
    ]
    return Task(model, torch.zeros(1, 3, 64, 64), data, *halves)


def _fashion() -> Task:
    train, test = (read_fashion_mnist(split) for split in ("train", "test"))
    mean, std = (0.286,), (0.353,)
    data = ArrayData(train.images, train.labels, mean, std, pad=2, flip=True)

    def net() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1)):
            layers += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            ]  # fmt: skip
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))

    halves = [ArrayData(test.images[half::2], test.labels[half::2], mean, std) for half in (0, 1)]
    return Task(trained(_seeded(net), data, 3, 0.1), torch.zeros(1, 1, 28, 28), data, *halves)


NETWORKS: dict[str, Callable[[], Task]] = {
    "digits, pad and flip": _digits,
    "ResNet-20, CIFAR-10": lambda: _example("cifar10_resnet20"),
    "VGG-11, CIFAR-10": lambda: _example("cifar10_vgg11"),
    "ResNet-18, EuroSAT": _eurosat,
    "convolutions, Fashion-MNIST": _fashion,
    "MobileNetV2, CIFAR-10": _mobilenet,
    "vision transformer, CIFAR-10": _transformer,
}


def _seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def trained(model: nn.Module, data: ArrayData, epochs: int, rate: float) -> nn.Module:
    """With weights of an earlier call, or trained now: SGD for networks with batch norms, else AdamW."""
    recipe = f"{inspect.getsource(trained)} {model} {epochs} {rate} {len(data)} {data.pad} {data.flip}"
    kept = cache_folder() / f"free-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"
    with suppress(TaskError):
        load_state(model, kept)
        return model.eval()
    batch, generator = 128, torch.Generator().manual_seed(0)
    steps = epochs * (len(data) // batch)
    norms = any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        if norms
        else torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(data), generator=generator)
        inputs, targets = data.batch(order[:batch], generator)
        order = order[batch:]
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, kept)
    return model.eval()


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Tensor) -> None:
        self.feeds: Iterator[dict[str, Any]] = ({name: image[None].numpy()} for image in images)

    def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
        return next(self.feeds, None)


def theirs(model: bytes, images: Tensor, method: CalibrationMethod) -> bytes:
    """onnxruntime's int8 of a file in floats."""
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, made = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "made"))
        plain.write_bytes(model)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(made), _Reader(_input_name(model), images),
            quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=method,
        )  # fmt: skip
        return made.read_bytes()


def _input_name(model: bytes) -> str:
    return str(onnx.load_from_string(model).graph.input[0].name)


def right(model: bytes, data: ArrayData) -> np.ndarray[Any, Any]:
    """Whether a file is right about each image, (N,)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, found = session.get_inputs()[0].name, []
    for row in range(len(data)):
        inputs, target = data.batch(torch.tensor([row]), None)
        found.append(float(session.run(None, {name: inputs.numpy()})[0].argmax() == int(target[0])))
    return np.array(found, dtype=np.float32)


def compared(name: str) -> dict[str, Any]:
    """One line of the table."""
    task = NETWORKS[name]()
    assert isinstance(task.train, ArrayData)
    test = _both(task.search, task.test)  # nothing is chosen on either
    config = parse_config({"task": {"file": "none.py"}, "hardware": {"profile": "raspberry-pi-4"}})
    traced = trace(task.model, task.example_input)
    scorer = Scorer(traced, task, config)

    def ours(weight_bits: int, activation_bits: int) -> tuple[np.ndarray[Any, Any], dict[str, str]]:
        bits = LayerPolicy(weight_bits=weight_bits, activation_bits=activation_bits)
        compressed, settled = scorer.compressed(Policy.uniform(traced.network, bits), rough=False)
        return right(exported(template(traced), compressed).SerializeToString(), test), settled

    plain = Policy.uniform(traced.network, LayerPolicy())
    floats = exported(template(traced), compress(traced, plain)).SerializeToString()
    base, (int8, settled), (int4, settled4) = right(floats, test), ours(8, 8), ours(4, 8)
    images = task.train.batch(scorer.batches.order[:CALIBRATED], None)[0].contiguous()
    rival = {kind: right(theirs(floats, images, method), test) for kind, method in CALIBRATORS.items()}
    best = max(rival, key=lambda kind: float(rival[kind].mean()))
    return {
        "network": name, "images": len(test), "float": float(base.mean()), "int8": float(int8.mean()),
        "settled": settled, "onnxruntime": {kind: float(each.mean()) for kind, each in rival.items()},
        "best": best, "beside_best": float(int8.mean() - rival[best].mean()),
        "interval": [float(end) for end in paired_interval(int8, rival[best])],
        "weights_of_4_bits": float(int4.mean()), "settled_4": settled4,
    }  # fmt: skip


def _both(one: Any, other: Any) -> ArrayData:
    images, labels = np.concatenate([one.images, other.images]), np.concatenate([one.labels, other.labels])
    return replace(one, images=images, labels=labels)  # type: ignore[no-any-return]


def main(names: list[str]) -> None:
    """Print the table, best calibrator of onnxruntime's in brackets."""
    print(f"{'network':<30}{'float':>8}{'int8':>8}{'theirs':>8}{'':<13}{'ours - theirs, 95 %':<26}{'w4':>7}")
    for name in names or list(NETWORKS):
        started = time.time()
        line = compared(name)
        low, high = line["interval"]
        rival = line["onnxruntime"][line["best"]]
        print(
            f"{name:<30}{line['float']:8.4f}{line['int8']:8.4f}{rival:8.4f} {'(' + line['best'] + ')':<12}"
            f"{100 * line['beside_best']:+.2f} points ({100 * low:+.2f} .. {100 * high:+.2f})"
            f"{line['weights_of_4_bits']:8.4f}",
            flush=True,
        )
        with RESULTS.open("a") as file:
            file.write(json.dumps(line | {"seconds": round(time.time() - started)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
