"""Execution providers of onnxruntime by the names that a configuration uses."""

from collections.abc import Mapping
from enum import StrEnum

from leanfront.latency_models.errors import TableError


class Provider(StrEnum):
    """Execution providers of onnxruntime."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


PROVIDERS: Mapping[str, str] = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}
"""Name -> what onnxruntime calls it."""

_NEEDED: Mapping[str, str] = {
    "cuda": "an NVIDIA GPU with CUDA and cuDNN, and `pip install onnxruntime-gpu` in place of onnxruntime",
    "tensorrt": "an NVIDIA GPU with CUDA and TensorRT, and `pip install onnxruntime-gpu` in place of"
    " onnxruntime",
}


def provider_of(name: str) -> str:
    """onnxruntime's name of a provider that it has.

    Raises:
        TableError: there is no such provider, or this onnxruntime lacks it; what it has and what to install.
    """
    import onnxruntime

    if name not in PROVIDERS:
        raise TableError(f"the provider must be one of {', '.join(PROVIDERS)}, not {name!r}")
    there = onnxruntime.get_available_providers()
    if PROVIDERS[name] not in there:
        known = [short for short, long in PROVIDERS.items() if long in there]
        raise TableError(
            f"provider {name!r} is not in this onnxruntime {onnxruntime.__version__}, which has"
            f" {', '.join(known)}; it needs {_NEEDED.get(name, 'another build of onnxruntime')}"
        )
    return PROVIDERS[name]
