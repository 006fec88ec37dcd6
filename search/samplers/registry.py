"""The registered samplers, by name; Optuna's are."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler

from leanfront.hw_profiles.near import did_you_mean
from leanfront.search.config import ConfigError
from leanfront.search.trial.trial import Sampler as Sampler

_POPULATION = 20
_SAMPLERS: dict[str, Callable[[], Sampler]] = {}

T = TypeVar("T", bound=Callable[[], Sampler])


def register(name: str) -> Callable[[T], T]:
    """Decorator of a Sampler class: ``search.sampler = "name"`` of a configuration chooses it then."""

    def entry(made: T) -> T:
        _SAMPLERS[name] = made
        return made

    return entry


def sampler_named(name: str) -> Sampler:
    """A sampler of a registered name, which has not looked at any search yet.

    Raises:
        ConfigError: there is none; the near and the existing ones are named.
    """
    if name in _SAMPLERS:
        return _SAMPLERS[name]()
    hint = did_you_mean(name, _SAMPLERS)
    there = ", ".join(map(repr, _SAMPLERS))
    raise ConfigError(
        f"search.sampler is {name!r}, which neither leanfront nor the task file has; {hint}there are {there}"
    )


class OptunaSampler(Sampler):
    """One of Optuna's, which learns from whole trials. ``made``: it from a seed."""

    def __init__(self, made: Callable[[int], BaseSampler]) -> None:
        self._made = made

    def proposer(self, seed: int) -> BaseSampler:
        """Optuna's own."""
        return self._made(seed)


def _tpe(seed: int) -> BaseSampler:
    """Multivariate: all decisions of a policy are drawn together, once. ``constant_liar`` keeps parallel
    workers from proposing what another is trying."""
    return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=10, seed=seed)


register("tpe")(partial(OptunaSampler, _tpe))
register("nsga2")(partial(OptunaSampler, lambda seed: NSGAIISampler(population_size=_POPULATION, seed=seed)))
register("nsga3")(partial(OptunaSampler, lambda seed: NSGAIIISampler(population_size=_POPULATION, seed=seed)))
register("gp")(partial(OptunaSampler, lambda seed: GPSampler(seed=seed)))
register("random")(Sampler)
