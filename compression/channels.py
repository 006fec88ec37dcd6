"""Which channels must be cut together: union-find over the outputs of layers."""

from compression.policy import Segment


class ChannelGroups:
    """Groups of coupled channels while a network is walked. A frozen group cannot be cut."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._frozen: set[str] = set()

    def new(self, layer: str) -> str:
        """A group of its own for a layer's outputs; returns its key."""
        self._parent[layer] = layer
        return layer

    def join(self, one: tuple[Segment, ...], other: tuple[Segment, ...]) -> None:
        """Couple two tensors channel by channel; tensors whose segments differ are frozen instead."""
        if [(s.size, s.repeat) for s in one] != [(s.size, s.repeat) for s in other]:
            self.freeze((*one, *other))
            return
        for a, b in zip(one, other, strict=True):
            if a.group is None or b.group is None:
                self.freeze((a, b))
                continue
            first, second = self._root(a.group), self._root(b.group)
            if first != second:
                self._parent[second] = first
                if second in self._frozen:
                    self._frozen.add(first)

    def freeze(self, segments: tuple[Segment, ...]) -> None:
        """Say that these channels must stay."""
        self._frozen.update(self._root(s.group) for s in segments if s.group is not None)

    def names(self) -> dict[str, str]:
        """Key of each layer -> name of its group (its first layer); frozen ones are left out."""
        roots = {layer: self._root(layer) for layer in self._parent}
        first: dict[str, str] = {}
        for layer, root in roots.items():
            first.setdefault(root, layer)
        return {layer: first[root] for layer, root in roots.items() if root not in self._frozen}

    def _root(self, layer: str) -> str:
        while self._parent[layer] != layer:
            layer = self._parent[layer]
        return layer
