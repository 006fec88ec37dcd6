"""The samplers that a search can be run with: Optuna's, our own (cascade), what a task file adds."""

from leanfront.search.samplers.cascade.sampler import Cascade
from leanfront.search.samplers.registry import Sampler, register, sampler_named

__all__ = ["Cascade", "Sampler", "register", "sampler_named"]
