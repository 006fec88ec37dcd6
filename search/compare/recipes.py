"""What ``leanfront compare`` compares: each technique alone, and the usual combinations, one row each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import HardwareProfile
from leanfront.hw_profiles.near import did_you_mean
from leanfront.search.study.free import uniform_on

Note = Callable[[str], None]
Origin = Literal["policy", "dynamic", "student"]
"""Where a row's network comes from: a policy of the user's network, onnxruntime's dynamic quantization of its
file, or the task's student."""


@dataclass(frozen=True)
class Recipe:
    """One row. techniques: what is done, in order. steps: the policy on the way after which the network is
    trained, one after the other, the last the row's own. trained: with the budget that all rows have, divided
    evenly among the steps. distilled: with the uncompressed network as teacher, as a search trains; else with
    the task's loss alone.
    """

    name: str
    techniques: tuple[str, ...]
    steps: tuple[LayerPolicy, ...] = (LayerPolicy(),)
    trained: bool = True
    distilled: bool = False
    origin: Origin = "policy"

    def policies(self, network: Network, profile: HardwareProfile) -> tuple[Policy, ...]:
        """The policy of each step, for a network on a part."""
        return tuple(uniform_on(network, profile, step) for step in self.steps)

    @property
    def bits(self) -> tuple[int, int]:
        """Of weights and activations in the end."""
        return self.steps[-1].weight_bits, self.steps[-1].activation_bits


def _cut(share: float, bits: tuple[int, int] = (32, 32)) -> LayerPolicy:
    return LayerPolicy(share, *bits)


def _zeros(share: float, pattern: str = "unstructured", bits: tuple[int, int] = (32, 32)) -> LayerPolicy:
    return LayerPolicy(0.0, *bits, more=((pattern, share),))


INT8 = (8, 8)
PRUNING, DISTILLATION = "channel pruning", "distillation"
AFTER, DURING = "post-training quantization", "quantization-aware training"
ALL = (PRUNING, DURING, DISTILLATION)
WEIGHTS = "weight pruning"

_ALONE = (
    Recipe("uncompressed", (), trained=False),
    Recipe("float16", (AFTER,), (_cut(0, (16, 16)),), trained=False),
    Recipe("16-bit weights", (AFTER,), (_cut(0, (16, 32)),), trained=False),
    Recipe("int8", (AFTER,), (_cut(0, INT8),), trained=False),
    Recipe("int8 dynamic", ("dynamic quantization",), trained=False, origin="dynamic"),
    Recipe("int8, trained", (DURING,), (_cut(0, INT8),)),
    Recipe("4-bit weights", (AFTER,), (_cut(0, (4, 8)),), trained=False),
    Recipe("4-bit weights, trained", (DURING,), (_cut(0, (4, 8)),)),
    Recipe("2-bit weights, trained", (DURING,), (_cut(0, (2, 8)),)),
    Recipe("1-bit weights, trained", (DURING,), (_cut(0, (1, 8)),)),
    Recipe("channels 25 %", (PRUNING,), (_cut(0.25),)),
    Recipe("channels 50 %", (PRUNING,), (_cut(0.5),)),
    Recipe("channels 75 %", (PRUNING,), (_cut(0.75),)),
    Recipe("channels 50 %, in 3 steps", ("iterative " + PRUNING,), (_cut(0.2), _cut(0.35), _cut(0.5))),
    Recipe("channels 75 %, in 3 steps", ("iterative " + PRUNING,), (_cut(0.35), _cut(0.6), _cut(0.75))),
    Recipe("weights 50 %", (WEIGHTS,), (_zeros(0.5),)),
    Recipe("weights 80 %", (WEIGHTS,), (_zeros(0.8),)),
    Recipe("weights 90 %", (WEIGHTS,), (_zeros(0.9),)),
    Recipe("2 of 4 weights", (WEIGHTS,), (_zeros(0.5, "2:4"),)),
    Recipe("student", ("smaller network",), origin="student"),
)

_COMBINED = (
    Recipe("channels 50 %, distilled", (PRUNING, DISTILLATION), (_cut(0.5),), distilled=True),
    Recipe("student, distilled", ("smaller network", DISTILLATION), distilled=True, origin="student"),
    Recipe("int8, distilled", (DURING, DISTILLATION), (_cut(0, INT8),), distilled=True),
    Recipe("4-bit weights, distilled", (DURING, DISTILLATION), (_cut(0, (4, 8)),), distilled=True),
    Recipe("2-bit weights, distilled", (DURING, DISTILLATION), (_cut(0, (2, 8)),), distilled=True),
    Recipe("channels 25 %, int8, distilled", ALL, (_cut(0.25, INT8),), distilled=True),
    Recipe("channels 50 %, int8, distilled", ALL, (_cut(0.5, INT8),), distilled=True),
    Recipe(
        "weights 80 %, int8, distilled", (WEIGHTS, DURING, DISTILLATION), (_zeros(0.8, bits=INT8),),
        distilled=True,
    ),
    Recipe("channels 50 %, 4-bit weights, distilled", ALL, (_cut(0.5, (4, 8)),), distilled=True),
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (*_ALONE, *_COMBINED)}
"""Name -> row, in the order of the table."""


class CompareError(ValueError):
    """Rows that nobody can compare: the rule, what came, what there is."""


def recipes_named(wanted: Sequence[str]) -> tuple[Recipe, ...]:
    """The rows of these names in the order of the table, the uncompressed network always; all of none.

    Raises:
        CompareError: there is no row of a name; the nearest is named.
    """
    for name in wanted:
        if name not in RECIPES:
            hint = did_you_mean(name, RECIPES)
            raise CompareError(f"no row is called {name!r}; {hint}there are {'; '.join(RECIPES)}")
    kept = {"uncompressed", *wanted} if wanted else set(RECIPES)
    return tuple(recipe for name, recipe in RECIPES.items() if name in kept)
