"""Patterns in which weights of a layer are 0 while its channels stay: one row each, read by all that ask. No
torch.

A policy says of each layer, under the name of a pattern in ``LayerPolicy.more``, which share of its weights
is 0. Several patterns of one layer hold at once. Files are dense: zeros take as much room as other weights,
until somebody zips them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from leanfront.compression.graph.nodes import Layer


@dataclass(frozen=True)
class Pattern:
    """One way in which zeros lie.

    kept, among: of every ``among`` weights in a row along the input channels (of one output channel, at one
    place of the kernel) at most ``kept`` are not 0; 0: wherever they are least missed. block: so many
    neighbouring output channels (at one input channel, one place of the kernel) are 0 together. shares: what
    a search offers where nobody says what.
    """

    name: str
    said: str
    shares: tuple[float, ...]
    kept: int = 0
    among: int = 0
    block: int = 1

    @property
    def free(self) -> bool:
        """Whether zeros lie anywhere, so that of a given share the least is lost."""
        return not self.among and self.block == 1

    @property
    def share(self) -> float | None:
        """The one share of zeros that it has; None: any."""
        return 1.0 - self.kept / self.among if self.among else None

    def zeros(self, share: float, inputs: int, outputs: int, places: int) -> int:
        """How many weights are 0 at least, of inputs x outputs at so many places of a kernel."""
        if self.among:
            return outputs * places * (inputs // self.among) * int(share * self.among + 1e-6)
        blocks, narrow = inputs * places * -(-outputs // self.block), outputs % self.block
        chosen = round(share * blocks) - (inputs * places if narrow else 0)  # which may all be narrow ones
        return max(0, chosen) * self.block

    def fits(self, layer: Layer) -> bool:
        """Whether zeros can lie so in a layer: rows of tables are left alone, and ``among`` weights in a row
        need as many input channels, a block as many outputs."""
        shape = layer.shape
        if layer.looked_up:
            return False
        if self.among:
            inside = shape.in_channels // shape.groups
            return not layer.weight_only and inside >= self.among and inside % self.among == 0
        return self.block == 1 or (not layer.weight_only and shape.out_channels // shape.groups >= self.block)


_ROWS = (
    # what the sparse tensor cores of Ampere compute (Mishra et al. 2021, arXiv:2104.08378, section 2), and
    # TensorRT takes: of every four input channels of a kernel's place two (Developer Guide, Sparsity)
    Pattern("2:4", "two of four input channels", (0.0, 0.5), kept=2, among=4),
    Pattern("4:8", "four of eight input channels", (0.0, 0.5), kept=4, among=8),
    # the widest blocks of XNNPACK's sparse 1x1 convolutions, along the output channels (Elsen et al. 2019,
    # Fast Sparse ConvNets, arXiv:1911.09723, section 3); it wants two thirds of the weights to be 0
    Pattern("block", "blocks of four output channels", (0.0, 0.7, 0.8, 0.9), block=4),
    Pattern("unstructured", "any weights", (0.0, 0.5, 0.8, 0.9)),  # last: of what the others leave
)
PATTERNS: Mapping[str, Pattern] = {row.name: row for row in _ROWS}
"""Name -> pattern."""
