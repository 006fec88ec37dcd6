"""Energy of inferences from the processor's own counters (RAPL), where the system lets them be read.

Linux shows them as /sys/class/powercap/intel-rapl:N/energy_uj: the energy that package N has used, in
microjoules, counted up to max_energy_range_uj and then from 0 again; AMD processors have the same files. The
kernel lets root alone read them unless it was told otherwise (CVE-2020-8694), and virtual machines have none.

What is counted is the whole package while inferences run back to back: idle power is part of it, as it is
part of what a battery or a bill pays. The counters move about once a millisecond, so a network is run for
``LEAST_S``, and power rather than energy is what networks share: energy is fitted as watts times latency.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from leanfront.hw_profiles import HardwareProfile, Source
from leanfront.latency_models.cost import TableError

POWERCAP = Path("/sys/class/powercap")
LEAST_S = 0.3
"""How long a network runs for one reading: 300 steps of the counter."""


@dataclass(frozen=True)
class Domain:
    """One package's counter."""

    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """The counter now; raises OSError where it may not be read."""
        return int((self.path / "energy_uj").read_text(encoding="ascii"))


@dataclass(frozen=True)
class Energy:
    """Power while networks run, fitted on ``n`` of them; ``error``: mean absolute relative error."""

    power_w: float
    n: int
    error: float

    def to_json(self) -> str:
        """JSON that ``from_json`` reads back."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Energy":
        """Read what ``to_json`` wrote; raises TableError where it is something else."""
        try:
            raw = json.loads(text)
            found = Energy(float(raw["power_w"]), int(raw["n"]), float(raw["error"]))
        except (ValueError, TypeError, KeyError) as error:
            raise TableError(f"this is no measured power: {error}") from error
        if not found.power_w > 0:
            raise TableError(f"a measured power must be above 0, not {found.power_w} W")
        return found

    def of(self, profile: HardwareProfile) -> HardwareProfile:
        """The profile with this power, and with where it is from."""
        source = Source.model_validate(
            {"status": "measured", "from": f"RAPL, {self.n} networks; energies within {self.error:.1%}"}
        )
        sources = {**profile.sources, "power_w": source}
        return profile.model_copy(update={"power_w": self.power_w, "sources": sources})


class Meter:
    """The counters of all packages of this machine, together."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.domains = tuple(domains)

    @staticmethod
    def find(folder: Path = POWERCAP) -> "Meter | str":
        """The meter, or why there is none, in a few words."""
        try:
            names = sorted(folder.glob("intel-rapl:*"))
        except OSError as error:
            return f"{folder} cannot be read ({error.strerror})"
        domains = []
        for path in names:
            if path.name.count(":") != 1:  # intel-rapl:0:1 is a part of intel-rapl:0
                continue
            try:
                if not (path / "name").read_text(encoding="ascii").startswith("package"):
                    continue  # psys, which has the packages in it
                domain = Domain(path, int((path / "max_energy_range_uj").read_text(encoding="ascii")))
                domain.read_uj()
            except PermissionError:
                return f"{path}/energy_uj may be read by root only (sudo chmod a+r {path}/energy_uj)"
            except (OSError, ValueError) as error:
                return f"{path} cannot be read ({error})"
            domains.append(domain)
        return Meter(domains) if domains else f"there are no energy counters in {folder}"

    def read_uj(self) -> tuple[int, ...]:
        """All counters now."""
        return tuple(domain.read_uj() for domain in self.domains)

    def between_mj(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Energy between two readings, in mJ. A counter that fell has gone round once."""
        used = 0
        for domain, first, last in zip(self.domains, before, after, strict=True):
            used += last - first if last >= first else last - first + domain.range_uj
        return used / 1e3

    def measure(
        self,
        run: Callable[[], object],
        seconds: float = LEAST_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> tuple[float, float]:
        """Call ``run`` back to back for so long: (mJ, ms) of one call."""
        run()
        calls, started, before = 0, clock(), self.read_uj()
        while clock() - started < seconds:
            run()
            calls += 1
        taken_s, used_mj = clock() - started, self.between_mj(before, self.read_uj())
        return used_mj / max(calls, 1), 1e3 * taken_s / max(calls, 1)


def fit_power(energies_mj: Sequence[float], latencies_ms: Sequence[float]) -> Energy:
    """Watts that explain the energies best, relative errors counted: mJ = W x ms.

    Raises:
        TableError: no network, or an energy or a latency that is not above 0.
    """
    energy, latency = np.asarray(energies_mj, dtype=float), np.asarray(latencies_ms, dtype=float)
    if not len(energy):
        raise TableError("power is fitted on measured networks, but there are none")
    if not (np.all(energy > 0) and np.all(latency > 0)):
        raise TableError("a measured energy and its latency must be above 0; the counter did not move")
    shares = latency / energy  # the best factor of least relative squares: sum(s) / sum(s^2)
    power_w = float(shares.sum() / (shares**2).sum())
    return Energy(power_w, len(energy), float(np.abs(power_w * shares - 1.0).mean()))
