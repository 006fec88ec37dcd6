"""A compressed network as onnxruntime will run it, to be scored like any other."""

import numpy as np
import torch
from torch import Tensor, nn

from leanfront.compression.export.template import Template
from leanfront.compression.export.walk import exported
from leanfront.compression.techniques.compress import Compressed
from leanfront.latency_models.benchmark.timing import session


class AsFile(nn.Module):
    """The exported network, one example at a time.

    For a CPU: there torch takes three to five times as long for the same in floats with fake quantization
    (VGG-11), and the score is that of the file itself.
    """

    def __init__(self, template: Template, compressed: Compressed) -> None:
        super().__init__()
        model = exported(template, compressed).SerializeToString()
        self._session = session(model, torch.get_num_threads())
        self._input = self._session.get_inputs()[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) -> the network's first output, (N, ...)."""
        one_by_one = [{self._input: one[None].numpy()} for one in inputs.contiguous()]
        return torch.from_numpy(np.concatenate([self._session.run(None, feed)[0] for feed in one_by_one]))
