"""Costs: what is worked out when somebody asks."""

from leanfront.latency_models.cost import Cost, LateCost


def late(peak_bytes: int, limit_bytes: int | None, asked: list[int]) -> LateCost:
    def memory() -> int:
        asked.append(peak_bytes)
        return peak_bytes

    return LateCost(
        latency_ms=1.0,
        energy_mj=2.0,
        size_bytes=3,
        memory=memory,
        limit_bytes=limit_bytes,
        kind="calibrated",
        estimated=True,
    )


def test_memory_is_worked_out_once_and_only_when_it_is_read() -> None:
    asked: list[int] = []
    cost = late(100, 102, asked)
    assert (cost.latency_ms, cost.energy_mj, cost.size_bytes, cost.kind) == (1.0, 2.0, 3, "calibrated")
    assert asked == []
    assert not cost.fits
    assert cost.peak_memory_bytes == 100
    assert asked == [100]


def test_what_is_at_the_limit_fits() -> None:
    assert late(100, 103, []).fits  # 3 bytes of weights
    assert late(100, None, []).fits


def test_late_costs_are_costs() -> None:
    known = Cost(1.0, 2.0, 3, 100, kind="measured")
    assert late(100, None, []) == late(100, 200, [])
    assert late(100, None, []) != late(101, None, [])
    assert known + late(150, None, []) == Cost(2.0, 4.0, 6, 150, kind="calibrated", estimated=True)
