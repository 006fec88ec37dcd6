"""Ways to compress: each offers its decisions and applies what was decided. No torch before something is
applied."""

from leanfront.compression.policy.technique import register
from leanfront.compression.techniques.built_in import ChannelPruning, Depth, DynamicQuantization, Quantization

for _technique in (ChannelPruning(), Depth(), Quantization(), DynamicQuantization()):
    register(_technique)
