"""Ways to compress: each offers its decisions and applies what was decided. No torch before something is
applied."""

from leanfront.compression.policy.technique import register
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.compression.techniques.built_in import ChannelPruning, Depth, Quantization
from leanfront.compression.techniques.zeros import Zeros

for _technique in (ChannelPruning(), Depth(), Quantization(), *map(Zeros, PATTERNS.values())):
    register(_technique)
