# %% [markdown]
# # From a module to a picked file, in Python
#
# The cells of this file can be run one after the other (VS Code, Jupyter with jupytext), or all together:
# `python examples/python/walk.py`. Nothing is downloaded: the data are scikit-learn's digits, and the network
# is trained here in seconds.

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import leanfront as lf

FOLDER = Path(mkdtemp())

# %% [markdown]
# ## A trained network and its three splits

# %%
digits = load_digits()
images = (digits.images / 16).astype(np.float32)[:, None]
labels = digits.target.astype(np.int64)
order = np.random.default_rng(0).permutation(len(labels))
parts = {"train": order[:1000], "search": order[1000:1400], "test": order[1400:]}
train, search, test = (lf.ArrayData(images[part], labels[part], (0.3,), (0.4,)) for part in parts.values())

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), 0.004)
for _epoch in range(6):
    for batch in torch.randperm(len(train)).split(50):
        inputs, targets = train.batch(batch, None)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()

# %% [markdown]
# ## One policy by hand
#
# Half of the channels, weights and activations of 8 bits: what does it cost on a Raspberry Pi 4, and what is
# left?

# %%
captured = lf.capture(model, torch.zeros(1, 1, 8, 8))
policy = lf.uniform(captured, sparsity=0.5, weight_bits=8, activation_bits=8)
for name, bits in (("float", lf.uniform(captured)), ("cut, int8", policy)):
    price = lf.cost(captured, bits, profile="raspberry-pi-4")
    print(f"{name:10} {price.latency_ms:.4f} ms {price.size_bytes:,} bytes ({price.kind})")

calibration = [train.batch(torch.arange(256), None)[0]]
compressed = lf.compress(captured, policy, calibration=calibration)
print("channels of the last convolution that stay:", compressed.kept["7"][1])
print(lf.export(compressed, FOLDER / "by_hand.onnx"))

# %% [markdown]
# ## A search, and one network of its front

# %%
task = lf.Task(model=model, example_input=torch.zeros(1, 1, 8, 8), train=train, search=search, test=test)
settings = {"finetune": {"images": 1000, "batch": 50, "learning_rate": 0.01}, "search": {"sampler": "tpe"}}
run = lf.search(task, profile="raspberry-pi-4", trials=6, run=FOLDER / "night", settings=settings)
print(run.front[["trial", "accuracy", "latency_ms", "size_bytes"]])

# %%
picked = run.pick(prefer="accuracy", epochs=2)
print(
    picked.folder / "model.tflite",
    picked.found.test["accuracy"],
    "passed" if picked.found.passed else "failed",
)
print(run.report())
