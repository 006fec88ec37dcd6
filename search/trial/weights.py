"""Weights of networks: copied, written beside and renamed, read again."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leanfront.search.run.disk import when_there_is_space


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's weights and statistics."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def save_weights(module: nn.Module, path: Path, settled: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write a module's state as safetensors, and what was settled of it as their metadata, beside and
    renamed. A full disk is waited for."""
    beside = path.with_suffix(".partial")
    state = {name: value.contiguous() for name, value in module.state_dict().items()}

    def write() -> None:
        try:
            save_file(state, beside, dict(settled))
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    when_there_is_space(write)


def load_weights(module: nn.Module, path: Path) -> dict[str, str]:
    """Read what ``save_weights`` wrote into a module made by the same policy; what was settled of it, nothing
    if that was not kept."""
    module.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
