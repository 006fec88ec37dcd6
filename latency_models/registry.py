"""Which cost model prices a part: the one that registered for the section of its profile."""

from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from leanfront.hw_profiles import HardwareProfile, Section
from leanfront.latency_models.cost import CostModel
from leanfront.latency_models.errors import TableError

_BUILT_IN = (
    "leanfront.latency_models.roofline.model",
    "leanfront.latency_models.microcontroller",
    "leanfront.latency_models.fpga.overlay",
    "leanfront.latency_models.fpga.dataflow",
)
"""Modules of ours that register when they are imported; here only when a cost is asked for."""

_MODELS: dict[type[Section], Callable[[HardwareProfile], CostModel]] = {}

M = TypeVar("M", bound=Callable[[HardwareProfile], CostModel])
S = TypeVar("S", bound=Section)


def costs_of(section: type[Section]) -> Callable[[M], M]:
    """Decorator of a cost model's class (or of what makes one of a profile): it prices the parts whose
    profiles have this section."""

    def register(model: M) -> M:
        _MODELS[section] = model
        return model

    return register


def model_of(profile: HardwareProfile) -> CostModel:
    """What computes the costs on a part.

    Raises:
        TableError: no cost model computes them: they are measured, or none has registered.
    """
    for module in _BUILT_IN:
        import_module(module)
    model = _MODELS.get(type(profile.section))
    if model is None:
        known = ", ".join(section.model_name for section in _MODELS)
        raise TableError(f"the costs of profile {profile.name!r} are {profile.model}; computed are {known}")
    return model(profile)


def section_of(profile: HardwareProfile, kind: type[S]) -> S:
    """The section of a profile, as a cost model reads it; raises TableError where it is of another kind."""
    if not isinstance(profile.section, kind):
        raise TableError(
            f"profile {profile.name!r} has no [{kind.model_name}] numbers; its model is {profile.model!r}"
        )
    return profile.section
