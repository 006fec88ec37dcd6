"""Ways to compress: each offers its decisions and applies what was decided. No torch before something is
applied."""

from leanfront.compression.policy.technique import register
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.compression.techniques.built_in import ChannelPruning, Depth, DynamicQuantization, Quantization
from leanfront.compression.techniques.zeros import Zeros

_OURS = (ChannelPruning(), Depth(), Quantization(), *map(Zeros, PATTERNS.values()), DynamicQuantization())
for _technique in _OURS:
    register(_technique)
