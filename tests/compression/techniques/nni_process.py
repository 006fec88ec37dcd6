"""Run nni's ModelSpeedup. This file is a program of its own, started by nni_speedup.py.

Importing nni 3.0 overwrites how torch's pytree registry knows the lists and dictionaries of torch.fx, adds
warning filters and a logger on stdout, and its speedup draws from the global random state and prints. All of
that stays in this process. It imports nothing of leanfront.

Usage: python -P nni_process.py INPUT OUTPUT. INPUT: the module, the masks and the example input, written by
torch.save; OUTPUT: layer name -> the module that nni put in its place.
"""

import copy
import logging
import sys
import warnings

import torch
from torch import Tensor, fx, nn

Masks = dict[str, dict[str, Tensor]]


def replaced_modules(module: fx.GraphModule, masks: Masks, example_input: Tensor) -> dict[str, nn.Module]:
    """The leaf modules that nni replaced by smaller ones. The module itself is changed, too.

    masks: layer name -> parameter name -> ones, and zeros where a channel goes.
    """
    warnings.simplefilter("ignore")
    from nni.compression.speedup import ModelSpeedup

    logging.getLogger("nni").setLevel(logging.ERROR)
    torch.manual_seed(0)  # nni follows the channels by what random values turn into
    before = dict(module.named_modules())
    # nni's own tracer does not run on current torch: give it the graph. It gets a copy of the weights, too,
    # because it fills them with random values on the way.
    quiet = logging.getLogger("nni.leanfront")
    speedup = ModelSpeedup(module, example_input, masks, graph_module=copy.deepcopy(module), logger=quiet)
    speedup.speedup_model()
    return {name: new for name, new in module.named_modules() if name and new is not before[name]}


def main(source: str, target: str) -> None:
    """Read the input file, write the output file."""
    module, masks, example_input = torch.load(source, weights_only=False)
    torch.save(replaced_modules(module, masks, example_input), target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
