"""Ways to compress: each offers its decisions and applies what was decided. No torch before something is
applied."""

from leanfront.compression.policy.technique import register
from leanfront.compression.techniques.channel_pruning import ChannelPruning
from leanfront.compression.techniques.depth import Depth
from leanfront.compression.techniques.quantization import Quantization

for _technique in (ChannelPruning(), Depth(), Quantization()):
    register(_technique)
