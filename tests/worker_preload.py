"""What every worker loads, loaded once: the commands, torch's capture, and its exporter."""

import torch
from torch import nn

import leanfront as lf
import leanfront.search.cli.app
import leanfront.search.study.run_search
from leanfront.compression.export.template import template

torch.set_num_threads(1)
template(lf.capture(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval(), torch.zeros(1, 1, 6, 6)).traced)
