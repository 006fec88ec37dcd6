"""The front of a search beside what fixed recipes give with the same fine-tune: a table of docs/search.md.

    python -m benchmarks.fixed_recipes RUN

Recipes: int8 everywhere; a quarter, half or three quarters of all channels cut, then int8; 4-bit weights.
Each is trained and scored as a trial of the run is, on the same images, and priced by the same table. One
is outside the front when it is more accurate, beyond noise (paired, 95 %), than every member that costs no
more in any objective; one that loses more accuracy than the search was allowed to was not sought.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.search.run.front import front_rows
from leanfront.search.run.run_folder import RunFolder, TrialRow, open_run
from leanfront.search.run.significance import Scores, load_scores, paired_interval
from leanfront.search.study.prepare import load, prepare
from leanfront.search.trial.trial import Problem


@dataclass(frozen=True, eq=False)
class Tried:
    """A recipe, or a member of the front: what it costs, and its score of each search image, (N,)."""

    name: str
    accuracy: float
    costs: Mapping[str, float]
    scores: Scores


def recipes(space: Space) -> dict[str, Policy]:
    """Name -> policy, of those that the space has the bits for."""
    found = {}
    for sparsity in (0.0, 0.25, 0.5, 0.75):
        cut = f"{sparsity:.0%} of channels cut, " if sparsity else ""
        if (8, 8) in space.pairs:
            found[f"{cut}int8"] = space.uniform(sparsity, (8, 8))
    for pair in [pair for pair in space.pairs if pair[0] == 4]:
        found[f"4-bit weights, activations of {pair[1]} bits"] = space.uniform(0.0, pair)
    return found


def tried(problem: Problem, name: str, policy: Policy) -> Tried:
    """Train a recipe as a trial is trained, and score it."""
    score = problem.scorer.start(policy).score(len(problem.rungs) - 1)
    cost = problem.cost(policy)
    costs = {name: float(getattr(cost, name)) for name in problem.objectives if name != "accuracy"}
    return Tried(name, score.accuracy, costs, score.scores)


def member(run: RunFolder, row: TrialRow, names: tuple[str, ...]) -> Tried:
    """A member of the front, with the scores that its trial had."""
    scores = load_scores(run.scores_file(row.trial))
    if scores is None or row.accuracy is None:
        raise SystemExit(f"the scores of trial {row.trial} were not kept in {run.scores_file(row.trial)}")
    costs = {name: float(getattr(row, name)) for name in names}
    return Tried(f"trial {row.trial}", row.accuracy, costs, scores)


def outside(recipe: Tried, front: list[Tried]) -> bool:
    """Whether no member reaches a recipe, noise allowed for."""
    no_dearer = [m for m in front if all(m.costs[name] <= cost for name, cost in recipe.costs.items())]
    return not any(paired_interval(recipe.scores, m.scores)[0] <= 0.0 for m in no_dearer)


def cheapest(recipe: Tried, front: list[Tried], cost: str) -> Tried | None:
    """The member that costs least among those that are at least as accurate."""
    alike = [m for m in front if m.accuracy >= recipe.accuracy]
    return min(alike, key=lambda m: m.costs[cost], default=None)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = open_run(given.run)
    problem = prepare(load(run.config()), run, print, write=False)
    names = tuple(name for name in problem.objectives if name != "accuracy")
    front = [member(run, row, names) for row in front_rows(run.trials(), problem.objectives)]
    base = problem.baseline_costs
    print(f"| recipe | accuracy | {' | '.join(names)} | outside | at its accuracy, of the front: |")
    for name, policy in recipes(problem.space).items():
        one = tried(problem, name, policy)
        shares = " | ".join(f"{one.costs[cost] / base[cost]:.3f}" for cost in names)
        beside = []
        for cost in names:
            found = cheapest(one, front, cost)
            ratio = (
                f"{one.costs[cost] / found.costs[cost]:.2f}x less {cost} ({found.name})" if found else "none"
            )
            beside.append(ratio)
        drop, most = problem.baseline_accuracy - one.accuracy, problem.limits.max_drop
        if most is not None and drop > most:
            text = f"not searched: over max_drop {most:g}"
        else:
            text = "yes" if outside(one, front) else "no"
        print(f"| {name} | {one.accuracy:.4f} | {shares} | {text} | {', '.join(beside)} |", flush=True)


if __name__ == "__main__":
    main()
