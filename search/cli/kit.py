"""``leanfront profile kit`` and ``profile import``: tables of a device that is not this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanfront.hw_profiles import HardwareProfile, ProfileError, load_profile
from leanfront.latency_models.files import replace_file, writing
from leanfront.latency_models.measured.profile_table import check_measured
from leanfront.latency_models.providers import PROVIDERS, Provider
from leanfront.search.cli.output import NeedsOption, say

if TYPE_CHECKING:
    from leanfront.latency_models.kit.result import KitResult


def kit(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="The profile that the device has.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")],
    config: NeedsOption = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of onnxruntime on the device.")
    ] = None,
    provider: Annotated[
        Provider | None, typer.Option("--provider", help="Execution provider of onnxruntime there.")
    ] = None,
) -> None:
    """Make a folder that measures another device: it needs python, numpy and onnxruntime there."""
    from leanfront.latency_models.kit.folder import write_kit
    from leanfront.latency_models.measured.kit_networks import (
        WHOLES,
        exporter_digest,
        networks_at_large,
        networks_of_search,
    )

    hardware = load_profile(profile)
    check_measured(hardware)
    count, name = threads or 1, provider.value if provider is not None else "cpu"
    if config is None:
        from leanfront.compression.export.network_model import network_model

        sets, networks = networks_at_large(network_model)
        wholes = len(networks)
    else:
        from leanfront.compression.export.walk import random_builder
        from leanfront.search.config import load_config
        from leanfront.search.study.prepare import load

        settings = load_config(config, [f"hardware.profile={profile}"])
        count = threads or settings.hardware.threads
        name = provider.value if provider is not None else settings.hardware.provider
        loaded = load(settings)
        title = settings.task.file.parent.name
        one, networks = networks_of_search(title, loaded.space, random_builder(loaded.traced), say)
        sets, wholes = [one], WHOLES
    write_kit(out, hardware.name, sets, networks, wholes, count, PROVIDERS[name], exporter_digest())
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"wrote {out}: {len(networks)} networks, {size / 1e6:.1f} MB")
    print("copy it to the device and run there: python measure.py   (needs numpy and onnxruntime)")
    print(f"then bring measured.csv back: leanfront profile import measured.csv --profile {profile}")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The measured.csv that a kit wrote.")],
    profile: Annotated[str, typer.Option("--profile", metavar="PROFILE", help="Whose table it is.")],
) -> None:
    """Check what a kit measured, and use it for a profile from now on."""
    from leanfront.latency_models.kit.installed_tables import check_same_device, named, slot, titles
    from leanfront.latency_models.kit.result import read_result

    hardware = load_profile(profile)
    check_measured(hardware)
    result = read_result(file)
    _check_profile(hardware, result)
    check_same_device(hardware.name, result)
    target = slot(hardware.name, result.device) / f"{result.kit}.csv"
    with writing(target, ProfileError):
        replace_file(target, file.read_bytes())
    wholes = sum(network.whole is not None for network in result.networks)
    print(
        f"imported {len(result.kernels)} kernels and {wholes} whole networks ({titles([result])}), measured"
        f" on {named(result.device)}"
    )
    print(f"profile {hardware.name} uses them from now on: {target}")
    if result.noise is not None:
        say(f"warning: {result.noise}")


def _check_profile(profile: HardwareProfile, result: "KitResult") -> None:
    from leanfront.latency_models.errors import TableError

    if result.profile != profile.name:
        raise TableError(
            f"{result.path} is of a kit for profile {result.profile!r}, not {profile.name!r}; import it with"
            f" --profile {result.profile}, or make a kit for {profile.name}"
        )
