"""Which device a measured profile stands for: one whose table was imported, or the machine that this runs on.

Imported tables are the user's own measurements and cannot be had again without the device, so they lie beside
the user's profiles, not in the cache: <profile>.measured/<threads>-<provider>/<kit>.csv.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from leanfront.hw_profiles import HardwareProfile, user_folder
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.table import Device, LatencyTable, this_device
from leanfront.latency_models.kit.result import KitResult, read_result

CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class InstalledDevice:
    """The device of a profile. ``results``: what was imported, the earliest first; none: this machine's cache
    has the table. ``is_this_machine``: whether the device is at hand, to be measured."""

    device: Device
    results: tuple[KitResult, ...]
    is_this_machine: bool

    def table(self, profile: str) -> LatencyTable:
        """All imported entries of the device; later kits count where two have the same."""
        entries = {key: entry for result in self.results for key, entry in result.kernels.items()}
        return LatencyTable(self.device, entries, profile, self.results[-1].near_cache_bytes)


def measured_folder(profile: str) -> Path:
    """Where the imported results of a profile are."""
    return user_folder() / f"{profile}.measured"


def slot(profile: str, device: Device) -> Path:
    """The folder of one number of threads and one provider: all in it is of one device."""
    return measured_folder(profile) / f"{device.threads}-{device.provider}"


def device_of(profile: HardwareProfile, threads: int = 1, provider: str = CPU) -> InstalledDevice:
    """The device whose latencies a profile of model "measured" has.

    ``provider``: as onnxruntime calls it.

    Raises:
        TableError: only tables for other threads or another provider were imported, or one is damaged.
    """
    here = this_device(threads, provider)
    folder = slot(profile.name, here)
    files = sorted(folder.glob("*.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        _check_no_other(profile.name, here)
        return InstalledDevice(here, (), is_this_machine=True)
    results = tuple(read_result(path) for path in files)
    return InstalledDevice(results[-1].device, results, results[-1].device == here)


def elsewhere(profile: str) -> Device | None:
    """The device that a profile's tables were imported from, if it is not this machine."""
    for path in sorted(measured_folder(profile).glob("*-*/*.csv")):
        device = read_result(path).device
        if device != this_device(device.threads, device.provider):
            return device
    return None


def _check_no_other(profile: str, wanted: Device) -> None:
    others = sorted(path for path in measured_folder(profile).glob("*-*") if any(path.glob("*.csv")))
    if others:
        found = [path.name.partition("-") for path in others]
        have = " and ".join(f"{threads} thread(s) of {provider}" for threads, _, provider in found)
        raise TableError(
            f"profile {profile!r} was measured on its device with {have}, not with {wanted.threads} thread(s)"
            f" of {wanted.provider}; take those (hardware.threads, hardware.provider), or measure it with"
            f" `leanfront profile kit {profile} --threads {wanted.threads} --out DIR`"
        )


def check_same_device(profile: str, result: KitResult) -> None:
    """Refuse a result when another device's is installed for the same profile, threads and provider.

    Raises:
        TableError: the two are named.
    """
    for path in sorted(slot(profile, result.device).glob("*.csv")):
        other = read_result(path).device
        if other != result.device:
            raise TableError(
                f"profile {profile!r} holds the table of {named(other)}, and {result.path} is of"
                f" {named(result.device)}; give the other device a profile of its own (`leanfront profile new"
                f" NAME --like {profile}`), or, if this one replaces it, delete {path.parent} and try again"
            )


def named(device: Device) -> str:
    """A device with its software, for people."""
    return f"{device} ({device.versions})"


def titles(results: Iterable[KitResult]) -> str:
    """What the imported kits were made for."""
    return ", ".join(dict.fromkeys(title for result in results for title in result.titles.values()))
