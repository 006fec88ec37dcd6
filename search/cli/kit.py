"""``leanfront profile kit`` and ``profile import``: tables of a device that is not this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanfront.hw_profiles import HardwareProfile, ProfileError, load_profile
from leanfront.latency_models.files import replace_file, writing
from leanfront.latency_models.measured.profile_table import check_measured
from leanfront.latency_models.providers import PROVIDERS, Provider
from leanfront.search.cli.output import NeedsOption, say
from leanfront.search.config import ConfigError

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
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="Whole networks in that engine: tensorrt.")
    ] = None,
) -> None:
    """Make a folder that measures another device: it needs python, numpy and onnxruntime there."""
    if engine is not None:
        if threads is not None or provider is not None:
            raise ConfigError("--threads and --provider are onnxruntime's; a kit with --engine has neither")
        _engine_kit(profile, out, config, engine)
        return
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


def _engine_kit(profile: str, out: Path, config: Path | None, engine: str) -> None:
    """Whole networks of a search, to be built and timed by the part's own engine."""
    from leanfront.compression.export.dialects import dialect_for
    from leanfront.compression.export.walk import random_builder
    from leanfront.latency_models.errors import TableError
    from leanfront.latency_models.kit.engine_folder import SCRIPTS, write_engine_kit
    from leanfront.latency_models.measured.kit_networks import networks_of_engine
    from leanfront.search.config import load_config
    from leanfront.search.study.prepare import load

    if engine not in SCRIPTS:
        raise TableError(f"there is no kit for {engine!r}; there is one for {', '.join(SCRIPTS)}")
    if config is None:
        raise TableError(f"a kit for {engine} holds the networks of a search: give --config CONFIG")
    loaded = load(load_config(config, [f"hardware.profile={profile}"]), dialect_for(engine, engine).name)
    builder = random_builder(loaded.traced, loaded.dialect)
    networks = networks_of_engine(loaded.space, builder, loaded.dialect.takes)
    write_engine_kit(out, loaded.profile.name, engine, networks, loaded.dialect.suffix)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out}: {len(networks)} networks, {size / 1e6:.1f} MB")
    print("copy it to the device and run there: python3 measure.py   (needs trtexec)")
    print(f"then bring measured.csv back into it: leanfront profile fit {profile} --rows {out}/measured.csv")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The measured.csv that a kit wrote.")],
    profile: Annotated[str, typer.Option("--profile", metavar="PROFILE", help="Whose table it is.")],
) -> None:
    """Check what a kit measured, and use it for a profile from now on."""
    from leanfront.latency_models.kit.installed_tables import check_same_device, named, slot, titles
    from leanfront.latency_models.kit.result import read_result

    hardware = load_profile(profile)
    if not hardware.measured and _of_whole_networks(file):
        from leanfront.search.cli.fit import fit

        fit(profile, file)
        return
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


def _of_whole_networks(file: Path) -> bool:
    """Whether an engine's kit wrote it, and not one that measures kernels."""
    from leanfront.search.cli.fit import NEEDED

    try:
        with file.open(encoding="utf-8") as lines:
            return set(NEEDED) <= set(lines.readline().strip().split(","))
    except (OSError, UnicodeDecodeError):
        return False  # whoever reads it says why


def _check_profile(profile: HardwareProfile, result: "KitResult") -> None:
    from leanfront.latency_models.errors import TableError

    if result.profile != profile.name:
        raise TableError(
            f"{result.path} is of a kit for profile {result.profile!r}, not {profile.name!r}; import it with"
            f" --profile {result.profile}, or make a kit for {profile.name}"
        )
