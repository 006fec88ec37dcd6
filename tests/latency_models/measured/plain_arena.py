"""The block that onnxruntime plans for tensors, step by step: ``measured.arena`` without short cuts."""

from bisect import insort

from leanfront.latency_models.measured.arena import _OUTSIDE, Arena, _Tape


class PlainArena(Arena):
    """An ``Arena`` that looks at every buffer and every gap."""

    @staticmethod
    def _block(tape: _Tape) -> int:
        return _block_bytes(_buffers(tape))


def _buffers(tape: _Tape) -> list[tuple[int, int, int]]:
    """The buffers that the tensors take, in order of their beginnings: (bytes, first step, last step)."""
    kinds, last = tape.kinds, tape.last
    of: list[int] = []  # tensor -> buffer
    sizes: list[int] = []
    begins: list[int] = []
    ends: list[int] = []
    freed: dict[int, list[int]] = {}  # kind -> buffers
    for tensor, (kind, begin) in enumerate(zip(kinds, tape.made, strict=True)):
        if kind == _OUTSIDE:
            of.append(-1)
            continue
        buffer = -1
        for other in tape.over.get(tensor, ()):
            if kinds[other] == kind and last[other] == begin == ends[of[other]]:
                buffer = of[other]
                break
        known = freed.setdefault(kind, [])
        if buffer < 0:
            for candidate in known:
                if ends[candidate] < begin and (buffer < 0 or ends[candidate] > ends[buffer]):
                    buffer = candidate
        if buffer < 0:
            buffer = len(sizes)
            known.append(buffer)
            sizes.append(tape.sizes[kind])
            begins.append(begin)
            ends.append(0)
        ends[buffer] = last[tensor]
        of.append(buffer)
    return list(zip(sizes, begins, ends, strict=True))


def _block_bytes(buffers: list[tuple[int, int, int]]) -> int:
    """The size of the block that holds buffers, in order of their beginnings."""
    block = 0
    held: list[tuple[int, int, int]] = []  # (begin, end in the block, last step)
    for size, first, last in buffers:
        held = [one for one in held if one[2] >= first]
        at, best, waste = 0, held[-1][1] if held else 0, -1
        for begin, end, _ in held:
            gap = begin - at
            if gap >= size and (waste < 0 or gap - size < waste):
                best, waste = at, gap - size
            at = end
        insort(held, (best, best + size, last))
        block = max(block, best + size)
    return block
