"""Decisions of a search, and the techniques that offer them. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from leanfront.compression.graph import Network
from leanfront.compression.policy.batch import SIZE_CHANGES, PolicyBatch
from leanfront.compression.policy.policy import Policy, unregistered
from leanfront.hw_profiles import HardwareProfile

Value = Any
"""What a decision decides: a share (float), whether a branch is left out (bool), bits ((weights,
activations)), or the number of another technique (float)."""


class Trial(Protocol):
    """Who says what is chosen: Optuna's trials do."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number, low .. high."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of some texts."""
        ...


class SpaceError(ValueError):
    """A space in which nothing can be proposed: the rule, what was found, what there is."""


@dataclass(frozen=True)
class Options:
    """What may be proposed, as the user says it. sparsity: shares of a group's channels that are cut;
    weight_bits, activation_bits: 32 is float; depth: residual branches may be left out; zeros: shares of a
    layer's weights that are 0, None: those that pay; zipped: smaller when zipped is better; dynamic: tensors
    may be quantized at run time.
    """

    sparsity: tuple[float, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    depth: bool = True
    zeros: tuple[float, ...] | None = None
    zipped: bool = False
    dynamic: bool = False


@dataclass(frozen=True)
class Decision:
    """One choice of a space.

    name: "<technique>/<what it is about>", the parameter of a study. values: what may be chosen; the place of
    one is its code. texts: of each value, for tables. plain: the value of the uncompressed network, which may
    be none of them. layers: names of the layers it is about. scale: neighbouring values are alike
    ("ordered"), there are two, no and yes ("switch"), or neither ("category").
    """

    name: str
    values: tuple[Value, ...]
    texts: tuple[str, ...]
    plain: Value
    layers: tuple[str, ...]
    scale: Literal["ordered", "switch", "category"]

    @property
    def kind(self) -> str:
        """The name of its technique."""
        return self.name.partition("/")[0]

    @property
    def about(self) -> str:
        """The group, branch or layer that is decided on."""
        return self.name.partition("/")[2]

    @property
    def plain_code(self) -> int:
        """The code of what the uncompressed network has, or of the first value."""
        return self.values.index(self.plain) if self.plain in self.values else 0

    def param(self, code: int) -> int | str:
        """A code as a study holds it: a category by its text, so that samplers see no order in it."""
        return self.texts[code] if self.scale == "category" else int(code)

    def code(self, param: int | str) -> int:
        """What ``param`` made back into the code."""
        return self.texts.index(param) if isinstance(param, str) else int(param)

    def suggest(self, trial: Trial) -> Value:
        """The value that a study's sampler wants; where there is one alone, that."""
        if len(self.values) == 1:
            return self.values[0]
        if self.scale == "category":
            return self.values[self.code(trial.suggest_categorical(self.name, self.texts))]
        return self.values[trial.suggest_int(self.name, 0, len(self.values) - 1)]


class Technique:
    """One way to compress a network. What it does not do it inherits from here.

    name: of its decisions, before the "/". Those of channel pruning, depth and quantization have fields of
    their own in a policy; the values of any other are numbers, 0 among them for what stays as it is, and
    become ``more`` of each layer that a decision is about. stage: techniques are applied in this order: 0
    takes layers out, 1 channels, 2 changes weights, 3 says in how many bits they are held.
    """

    name: str
    stage: int = 2

    def decisions(self, network: Network, profile: HardwareProfile, options: Options) -> tuple[Decision, ...]:
        """What may be decided for a network on a part, in order.

        Raises:
            SpaceError: the options leave nothing that the part can run.
        """
        raise NotImplementedError

    def remark(self, profile: HardwareProfile, options: Options) -> str:
        """Which of the options the part cannot have, in a few words; "" where it can have all."""
        return ""

    def fits(self, weight_bits: Any, activation_bits: Any) -> Any:
        """Whether a layer of these bits, numbers or arrays of them, can have another number than 0: where
        one that a decision is about cannot, a space gives all of them 0, whatever was decided."""
        return True

    def apply(self, traced: Any, wanted: Network, policy: Policy) -> Any:
        """A traced model (``Traced``) as a policy wants it, as far as this technique goes.

        From stage 2 on its module is a copy that may be changed in place.

        Args:
            traced: what the techniques before this one have left.
            wanted: the network that there will be in the end.
            policy: the policy.
        """
        return traced

    def size_change(self, batch: PolicyBatch, values: NDArray[Any]) -> NDArray[Any] | int:
        """(n,): bytes by which the file is larger than that of the same layers without this technique.

        Args:
            batch: n policies.
            values: (layers, n) the numbers of this technique in them.
        """
        return 0


_REGISTERED: dict[str, Technique] = {}


def register(technique: Technique) -> None:
    """Offer a technique in every space that is made from now on, in this process; one of the same name is
    replaced. A user's own is registered in the file of the task."""
    _REGISTERED[technique.name] = technique
    SIZE_CHANGES[technique.name] = technique.size_change


def techniques() -> Mapping[str, Technique]:
    """Name -> technique, in the order in which they were registered: channel pruning, depth and quantization
    first."""
    return _REGISTERED


def technique(name: str) -> Technique:
    """The technique of this name; raises PolicyError where nobody registered it."""
    if name not in _REGISTERED:
        raise unregistered(name, _REGISTERED)
    return _REGISTERED[name]
