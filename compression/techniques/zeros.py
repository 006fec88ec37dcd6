"""Weights that are 0 while the channels stay, in each of the patterns of ``compression.policy.zeros``. No
torch before it is applied.

They are offered where something pays for them: a part whose cost model gains from a pattern, or the size of
the zipped file. A part's ``pattern`` says which of them its own engine gains from.
"""

from typing import TYPE_CHECKING

from leanfront.compression.graph.network import Network
from leanfront.compression.graph.nodes import Layer
from leanfront.compression.policy.policy import Policy
from leanfront.compression.policy.technique import Decision, Options, SpaceError, Technique
from leanfront.compression.policy.zeros import PATTERNS, Pattern
from leanfront.hw_profiles import HardwareProfile, load_profile, profile_names

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced


class Zeros(Technique):
    """Of each layer the share of its weights that are 0, in one pattern: those of least magnitude."""

    stage = 2

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.name = pattern.name

    def decisions(self, network: Network, profile: HardwareProfile, options: Options) -> tuple[Decision, ...]:
        """One for each layer that gains.

        Raises:
            SpaceError: shares are wanted, but nothing pays for any.
        """
        if not any(options.zeros or ()) and options.zeros is not None:
            return ()
        _check(profile, options)
        shares = _shares(self.pattern, options)
        if len(shares) < 2 or not (faster(self.pattern, profile, options) or _smaller(self.pattern, options)):
            return ()
        texts = tuple(f"{share:g}" for share in shares)
        return tuple(
            Decision(f"{self.name}/{layer.name}", shares, texts, 0.0, (layer.name,), "ordered")
            for layer in network.layers
            if self.pattern.fits(layer) and (_smaller(self.pattern, options) or _computes(layer))
        )

    def remark(self, profile: HardwareProfile, options: Options) -> str:
        """Whose gain it is, where the part's own engine has none."""
        if not (faster(self.pattern, profile, options) or _smaller(self.pattern, options)):
            return ""
        return gain_of_another(self.pattern, profile)

    def apply(self, traced: "Traced", wanted: Network, policy: Policy) -> "Traced":
        """With masks put on the weights, in place."""
        from leanfront.compression.techniques.masks import attach_mask

        for layer in wanted.layers:
            if share := policy[layer.name].value(self.name):
                attach_mask(traced.module.get_submodule(layer.name), self.pattern, share)
        return traced


def gain_of_another(pattern: Pattern, profile: HardwareProfile) -> str:
    """A sentence where a profile prices zeros as another engine than its own runs them; else ""."""
    gains = any(profile.section.gain_of_zeros(pattern.name, share) > 1.0 for share in pattern.shares)
    if profile.pattern == pattern.name or not gains:
        return ""
    return (
        f"{profile.name} prices {pattern.name} zeros as an engine that is made for them runs them"
        f" (docs/sparsity.md), not {profile.engine}, which runs the file as if it were dense"
    )


def faster(pattern: Pattern, profile: HardwareProfile, options: Options) -> bool:
    """Whether latency pays for a pattern. Without a word of the user's only in the part's own engine."""
    if options.zeros is None and profile.pattern != pattern.name:
        return False
    section = profile.section
    return any(section.gain_of_zeros(pattern.name, share) > 1.0 for share in _shares(pattern, options))


def _smaller(pattern: Pattern, options: Options) -> bool:
    """Whether the size of a zipped file pays for it: the fewest are lost where they may lie anywhere."""
    return options.zipped and pattern.free


def _computes(layer: Layer) -> bool:
    return not (layer.weight_only or layer.shape.depthwise)


def _shares(pattern: Pattern, options: Options) -> tuple[float, ...]:
    """What may be chosen of a pattern, 0 among it."""
    wanted = pattern.shares if options.zeros is None else options.zeros
    own = (0.0, pattern.share)
    return tuple(sorted({0.0, *(share for share in wanted if pattern.share is None or share in own)}))


def _check(profile: HardwareProfile, options: Options) -> None:
    """Raise SpaceError where shares are wanted and nothing pays for any."""
    if options.zeros is None:
        return
    rows = PATTERNS.values()
    if any(faster(row, profile, options) or _smaller(row, options) for row in rows):
        return
    shares = ", ".join(f"{share:g}" for share in options.zeros if share)
    own = [row for row in rows if faster(row, profile, Options((), (), (), zeros=row.shares))]
    if own:
        can = ", ".join(f"{share:g}" for share in own[0].shares if share)
        raise SpaceError(
            f"space.zeros has {shares}, but on profile {profile.name!r} only pattern {own[0].name!r} pays,"
            f" with shares such as {can}; add one of them"
        )
    others = [name for name in profile_names() if _gains(name)]
    raise SpaceError(
        f"space.zeros has {shares}, but nothing pays for weights that are 0 on profile {profile.name!r}:"
        f" {profile.engine} runs them as all others, and files are dense; leave it out, search for"
        f" zipped_bytes (in search.objectives or limits), or for a part that gains from them:"
        f" {', '.join(others)}"
    )


def _gains(profile: str) -> bool:
    section = load_profile(profile).section
    return any(
        section.gain_of_zeros(row.name, share) > 1.0 for row in PATTERNS.values() for share in row.shares
    )
