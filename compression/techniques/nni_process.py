"""Ask a pruner of nni what the outputs of layers are worth: a program of its own, run by nni_pruners.py.

Importing nni 3.0 overwrites how torch's pytree registry knows the lists and dictionaries of torch.fx, adds
warning filters and a logger on stdout. All of that stays in this process. It imports nothing of leanfront.

Usage: python -P nni_process.py INPUT OUTPUT. INPUT: what ``metrics`` takes, written by torch.save; OUTPUT:
what it returns.
"""

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

Rows = list[Tensor]
"""Of each layer the weight (outputs, values)."""


class _Layers(nn.Module):
    """To nni each layer is a linear one: its pruners look at rows of weights, whatever those move over."""

    def __init__(self, weights: Rows) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(rows.shape[1], rows.shape[0], bias=False) for rows in weights)
        for layer, rows in zip(self.layers, weights, strict=True):
            layer.weight = nn.Parameter(rows.clone())

    def forward(self, gradients: Rows) -> Tensor:
        """A loss whose gradients are those: of each layer the sum of its weights times its own."""
        each = [layer(own).diagonal().sum() for layer, own in zip(self.layers, gradients, strict=True)]
        return torch.stack(each).sum()


def metrics(name: str, weights: Rows, gradients: list[Rows]) -> list[Tensor]:
    """What the pruner of this class ranks the outputs of each layer by (outputs,), as float64.

    gradients: of each of some batches; empty for a pruner that looks at weights alone.
    """
    from nni.compression import pruning

    model = _Layers(weights)
    config = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    pruner = getattr(pruning, name)(model, config, *_training(model, gradients))
    judge, found = pruner._calculate_metrics, {}

    def kept(data: Any) -> Any:
        found.update(judge(data))
        return found

    pruner._calculate_metrics = kept
    pruner.compress()
    return [found[f"layers.{index}"]["weight"].flatten().double() for index in range(len(weights))]


def _training(model: nn.Module, gradients: list[Rows]) -> tuple[Any, ...]:
    """The evaluator and the number of steps that pruners take that watch a training."""
    if not gradients:
        return ()
    import nni
    from nni.compression.utils import TorchEvaluator

    def train(model: nn.Module, optimizer: Any, step: Any, *args: Any, **kwargs: Any) -> None:
        for batch in gradients:
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.0)
    return TorchEvaluator(train, optimizer, lambda batch, model: model(batch)), len(gradients)


def main(source: str, target: str) -> None:
    """Read the input file, write the output file."""
    warnings.simplefilter("ignore")
    torch.save(metrics(*torch.load(source, weights_only=True)), target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
