"""The samplers that a search can be run with: Optuna's own."""

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from search.config import ConfigError, SearchSection


def sampler(settings: SearchSection, offset: int = 0) -> BaseSampler:
    """The sampler of the configuration; ``offset`` gives each worker and each resumption its own draws.

    TPE is multivariate: all decisions of a policy are drawn together, once. ``constant_liar`` keeps parallel
    workers from proposing what another is trying.
    """
    seed = (settings.seed + offset) % 2**32
    if settings.sampler == "cascade":
        raise ConfigError("search.sampler cascade is not here yet; take tpe, nsga2 or random")
    if settings.sampler == "random":
        return RandomSampler(seed=seed)
    if settings.sampler == "nsga2":
        return NSGAIISampler(population_size=20, seed=seed)
    return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=10, seed=seed)
