"""``leanfront profile measure`` and ``profile validate``: latency tables of this machine, and their proof."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanfront.hw_profiles import load_profile
from leanfront.latency_models.providers import Provider, provider_of
from leanfront.search.cli.output import Format, FormatOption, NeedsOption, print_table, say, show
from leanfront.search.config import ConfigError, SearchConfig, load_config

if TYPE_CHECKING:
    from leanfront.latency_models.measured.profile_table import Measured


ProfileArgument = Annotated[
    str, typer.Argument(metavar="PROFILE", help="Name of a profile that is measured here, or its file.")
]
ProviderOption = Annotated[
    Provider | None, typer.Option("--provider", help="Execution provider of onnxruntime.")
]


def measure(
    profile: ProfileArgument,
    config: NeedsOption = None,
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="N,...", help="Threads, several with commas: 1,2.")
    ] = None,
    provider: ProviderOption = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what the table has.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Fill the latency table of this machine: for a search, or for networks at large.

    Kernels that the table has are not timed again, unless they were disturbed all the time.
    """
    from leanfront.latency_models.measured.profile_table import (
        check_is_this_machine,
        check_measured_here,
        drop_disturbed,
        measure_for,
        measure_general,
    )

    hardware = load_profile(profile)
    check_measured_here(hardware)
    settings = _config(config, profile) if config is not None else None
    chosen = settings.hardware if settings is not None else None
    counts = _threads(threads) if threads is not None else (chosen.threads if chosen else 1,)
    name = provider.value if provider is not None else chosen.provider if chosen else "cpu"
    for count in counts:
        check_is_this_machine(hardware, count, name)
    done: list[Measured] = []
    if settings is None:
        from leanfront.compression.export.network_model import network_model

        done = [measure_general(hardware, count, name, network_model, again, say) for count in counts]
    else:
        from leanfront.compression.export.walk import random_builder
        from leanfront.search.study.prepare import load

        loaded = load(settings)
        what = loaded.space, partial(random_builder, loaded.traced), loaded.profile
        done = [measure_for(*what, count, name, again, say) for count in counts]
    noisy = [found for found in done if found.noise is not None]
    for found in noisy:
        drop_disturbed(found.threads, found.provider)
    answer = [found.to_dict() for found in done]

    def people() -> None:
        print_table([_row(found) for found in done])
        print(done[0].device)
        for found in done:
            print(f"{found.threads} thread(s): {found.table}")

    show(format_, lambda: answer, lambda: answer, people)
    if noisy:
        say(f"failed: {noisy[0].noise}")
        raise typer.Exit(1)


def validate(
    profile: ProfileArgument,
    config: Annotated[
        Path, typer.Option("--config", metavar="CONFIG", help="Whose networks: a search.toml, or its folder.")
    ],
    policies: Annotated[int, typer.Option("--policies", min=2, help="How many networks to measure.")] = 40,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Default: hardware.threads of CONFIG.")
    ] = None,
    provider: ProviderOption = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Measure networks that the table has not seen, and say how well it predicted them."""
    from leanfront.compression.export.walk import random_builder
    from leanfront.latency_models.measured.building import cost_model
    from leanfront.latency_models.measured.model import table_model
    from leanfront.latency_models.measured.profile_table import check_measured
    from leanfront.latency_models.measured.validation import validate as compare
    from leanfront.search.cli.validation_text import as_json, print_validation
    from leanfront.search.study.prepare import load

    check_measured(load_profile(profile))
    settings = _config(config, profile)
    count = threads if threads is not None else settings.hardware.threads
    name = provider.value if provider is not None else settings.hardware.provider
    provider_of(name)  # before anything slow is loaded
    loaded = load(settings)
    builder = partial(random_builder, loaded.traced)
    model = table_model(cost_model(loaded.space, builder, loaded.profile, count, say, name))
    assert model is not None
    found = compare(model, loaded.space, policies, log=say)
    answer = as_json(found)
    show(
        format_, lambda: answer, lambda: answer["rows"], lambda: print_validation(found, model, loaded.space)
    )
    if found.noise is not None:
        say(f"warning: {found.noise}")


def _config(path: Path, profile: str) -> SearchConfig:
    """The configuration, on this profile instead of its own."""
    settings = load_config(path)
    hardware = settings.hardware.model_copy(update={"profile": profile})
    return settings.model_copy(update={"hardware": hardware})


def _threads(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ConfigError(f"--threads takes numbers from 1, several with commas (1,2), not {text!r}")
    return tuple(dict.fromkeys(counts))


def _row(found: "Measured") -> dict[str, Any]:
    row: dict[str, Any] = {
        "threads": found.threads,
        "kernels measured": found.measured,
        "reused": found.reused,
        "spread": f"{found.spread:.1%}",
        "disturbed": found.disturbed,
    }
    if found.networks:
        row |= {"networks": found.networks, "held-out error": _share(found.mape)}
        row |= {"within 10 %": _share(found.within_10_percent), "Spearman": found.spearman}
    return row


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
