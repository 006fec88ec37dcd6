"""The cut once more, by nni's ModelSpeedup: a second implementation to hold ours against.

nni was archived by its authors (last release 3.0, in 2023), so nothing else in leanfront depends on it.
"""

import copy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Layer
from leanfront.compression.techniques.prune import CutError, check_shapes, victims

PROGRAM = Path(__file__).with_name("nni_process.py")


class MissingNniError(ValueError):
    """nni was asked for and is not installed."""


def cut_with_nni(traced: Traced, channels: Mapping[str, int]) -> fx.GraphModule:
    """A copy of the traced model with each named group cut to so many channels, by nni.

    The same channels go as in ``prune.cut``; only the surgery is another. nni runs in a process
    of its own (a few seconds), because importing it changes torch.

    nni cannot do a graph with a batch size written into it (it runs batches of 8), a layer that is called
    with keyword arguments, or modules and functions of the user's own that pickle cannot bring to the other
    process. Those raise CutError.

    Raises:
        MissingNniError: nni is not installed.
        CutError: nni failed on this network, or a layer came out with another shape than ``Network.resized``
            says.
        ValueError: a group is unknown, or would have no channel or more than it has.
    """
    try:
        version("nni")
    except ImportError as error:
        raise MissingNniError(
            "cut_with_nni needs nni 3.0, which is not installed: pip install leanfront[nni]"
            " (there is none for ARM processors)"
        ) from error
    module = copy.deepcopy(traced.module)
    removed = victims(traced, channels)
    if removed:
        for name, new in _replaced_modules(module, _masks(traced, removed), traced.example_input).items():
            module.set_submodule(name, new)
    check_shapes(module, traced.network.resized(channels))
    return module.eval()  # nni's new modules are in training mode


def _masks(traced: Traced, removed: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Tensor]]:
    """nni's masks: ones, and zeros for the weights and biases that write a removed channel.

    All layers of a group get the same channels masked: the groups come from the traced network, nni is not
    left to find the residual streams.
    """
    return {
        layer.name: _layer_masks(layer, traced.module.get_submodule(layer.name), removed[group])
        for group in removed
        for layer in traced.network.groups[group]
    }


def _layer_masks(layer: Layer, module: nn.Module, channels: tuple[int, ...]) -> dict[str, Tensor]:
    masks = {name: torch.ones_like(value) for name, value in module.named_parameters()}
    transposed = layer.shape.op == "conv_transpose2d" and layer.shape.groups == 1
    masks["weight"].index_fill_(1 if transposed else 0, torch.tensor(channels), 0.0)
    if "bias" in masks:
        masks["bias"][list(channels)] = 0.0
    return masks


def _replaced_modules(
    module: fx.GraphModule, masks: Mapping[str, Mapping[str, Tensor]], example_input: Tensor
) -> dict[str, nn.Module]:
    with tempfile.TemporaryDirectory(prefix="leanfront-nni-") as folder:
        source, target = Path(folder, "input.pt"), Path(folder, "output.pt")
        torch.save((module, masks, example_input), source)
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM), str(source), str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise CutError(f"nni cannot cut this network: {said[-1]}")
        replaced: dict[str, nn.Module] = torch.load(target, weights_only=False)
    return replaced
