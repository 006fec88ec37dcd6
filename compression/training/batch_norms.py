"""Batch-norm re-estimation: a cut or quantized network needs the statistics of its own activations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.program import called


@torch.no_grad()
def re_estimate(module: nn.Module, batches: Sequence[Any]) -> None:
    """Set the running mean and variance of every batch norm to those of ``batches`` of inputs, as the module
    takes them.

    Everything else runs as in eval mode: no dropout, no range that moves. Without it the accuracy of a cut
    network says nothing (Yu and Huang 2019, section 3.3).
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or not batches:
        return
    was_training = module.training
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean over the batches
        norm.train()
    for batch in batches:
        called(module, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.train(was_training)
