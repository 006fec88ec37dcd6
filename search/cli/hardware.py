"""The commands about hardware: ``leanfront profile ...`` and ``leanfront cost``. No torch."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanfront.compression.graph import Network, Written, kernels
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.layer_size import CLIP_BYTES, CODED_BYTES
from leanfront.hw_profiles import (
    HardwareProfile,
    ProfileError,
    load_profile,
    profile_paths,
    read_profile,
    to_toml,
    user_folder,
)
from leanfront.latency_models.files import replace_file, writing
from leanfront.search.cli.output import Format, FormatOption, print_table, say, show

if TYPE_CHECKING:
    from leanfront.latency_models.cost import Cost, LayerCost

profile_app = typer.Typer(
    no_args_is_help=True, help="Hardware profiles: list, show, check, new; measure, kit, import, validate."
)


@profile_app.command("list")
def list_profiles(format_: FormatOption = Format.TABLE) -> None:
    """List the hardware profiles: built-in ones and those in your own folder."""
    rows = [_listed(name, path) for name, path in profile_paths().items()]
    numbers = {True: "some assumed", False: "all sourced", None: "-"}
    columns = ("name", "kind", "model", "numbers", "description")
    told = [row | {"numbers": numbers[row["estimated"]]} for row in rows]
    people = [{column: row[column] for column in columns} for row in told]
    show(format_, lambda: rows, lambda: rows, lambda: print_table(people))


def _listed(name: str, path: Path) -> dict[str, Any]:
    known: dict[str, Any] = dict.fromkeys(("kind", "model", "estimated", "description"))
    try:
        profile = read_profile(path)
        known = {field: getattr(profile, field) for field in known}
    except ProfileError as error:  # one broken file does not hide the others
        known["description"] = f"not valid: {error}"
    return {"name": name, **known, "file": str(path)}


@profile_app.command("show")
def show_profile(
    name: Annotated[str, typer.Argument(help="Name of a profile, or its file.", metavar="PROFILE")],
    format_: FormatOption = Format.TABLE,
) -> None:
    """Show a profile: every number with its source."""
    profile = load_profile(name)
    sources = {path: profile.source(path) for path in profile.numbers}
    rows = [
        {
            "field": path,
            "value": profile.supported_sentence if path == "supported" else _shown(value),
            "status": source.status if (source := sources[path]) else "",
            "from": source.from_ if source else "",
        }
        for path, value in profile.numbers.items()
    ]

    def answer() -> dict[str, Any]:
        fields = profile.model_dump(mode="json", by_alias=True)
        fields["sources"] = {p: s.model_dump(by_alias=True) for p, s in sources.items() if s is not None}
        return {**fields, "estimated": profile.estimated, "digest": profile.digest}

    def people() -> None:
        print(f"{profile.name}: {profile.description}")
        print(
            f"kind {profile.kind}, engine {profile.engine}, latency model {profile.model},"
            f" pattern that pays {profile.pattern}"
        )
        if profile.measured:
            from leanfront.latency_models.kit.installed_tables import elsewhere

            print(f"measured on {elsewhere(profile.name) or 'this machine'}")
        print_table(rows, texts=rows[0])

    show(format_, answer, lambda: rows, people)


def _shown(value: Any) -> str:
    """A number with its thousands apart; choices and lists as they are."""
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


@profile_app.command("check")
def check_profile(
    file: Annotated[str, typer.Argument(help="A profile's TOML file, or its name.", metavar="FILE")],
) -> None:
    """Check a profile; the first thing that is wrong is named."""
    profile = load_profile(file)
    assumed = [p for p in profile.numbers if (s := profile.source(p)) and s.status == "assumed"]
    note = f"; assumed: {', '.join(assumed)}" if assumed else "; no number is assumed"
    print(f"{profile.name} is valid: {len(profile.numbers)} numbers with their sources{note}")


@profile_app.command("new")
def new_profile(
    name: Annotated[str, typer.Argument(help="Name of the new profile: small letters, digits, . _ -")],
    like: Annotated[str, typer.Option("--like", help="The profile to start from.", metavar="PROFILE")],
) -> None:
    """Start a profile of your own from another one; edit the file that it writes."""
    like_profile = load_profile(like)
    fields = like_profile.model_dump(by_alias=True)
    fields |= {"name": name, "description": f"Copy of {like_profile.name}: replace the numbers and sources"}
    # what is measured or published for one part is only an assumption about another
    fields["sources"] = {
        path: {"status": "assumed", "from": f"copied from {like_profile.name} ({s.status}: {s.from_})"}
        for path, s in like_profile.sources.items()
    }
    profile = HardwareProfile.of(fields, where=f"profile {name!r}")
    target = user_folder() / f"{name}.toml"
    if name in profile_paths():
        raise ProfileError(f"there is a profile {name!r} already, {profile_paths()[name]}; take another name")
    with writing(target, ProfileError):
        replace_file(target, to_toml(profile))
    print(f"wrote {target}; every source in it is now 'assumed' until you replace it")


def cost(
    network: Annotated[Path, typer.Argument(help="An .onnx file, or a layer table (.csv).")],
    profile: Annotated[str, typer.Option("--profile", help="Name of a hardware profile, or its file.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Policy of each layer, a JSON file.", metavar="FILE")
    ] = None,
    weight_bits: Annotated[
        int | None, typer.Option("--weight-bits", help="Bits of all weights (default: as in the file).")
    ] = None,
    activation_bits: Annotated[
        int | None, typer.Option("--activation-bits", help="Bits of all layer inputs (default: the same).")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="Share of the channels to cut, 0 .. 1, wherever they can be."),
    ] = None,
    upsets_per_bit_day: Annotated[
        float | None,
        typer.Option(
            "--upsets-per-bit-day",
            help="Your rate of radiation upsets, from the vendor's report: gives upsets per day (FPGAs).",
        ),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """What a network costs on a part: latency, energy, size, memory; per layer and in all.

    Without bits, those of the file count (32 in a layer table). Where the part has half precision, it is
    16 for both.
    """
    hardware = load_profile(profile)
    original, own = read_network(network)
    if policy is not None:
        if (weight_bits, activation_bits, sparsity) != (None, None, None):
            raise PolicyError(
                "give either --policy, which says everything for each layer, or --weight-bits,"
                " --activation-bits and --sparsity; not both"
            )
        wanted = _read_policy(policy)
    else:
        wanted = uniform(original, own, weight_bits, activation_bits, sparsity)
    from leanfront.compression.export.network_model import network_model
    from leanfront.latency_models.pricing import price

    priced = price(original, wanted, hardware, network_model, say)
    resized, total, rows, model = priced.network, priced.cost, priced.layers, priced.model
    upsets = misfit = None
    if upsets_per_bit_day is None and hardware.space is not None:
        upsets_per_bit_day = hardware.space.upsets_per_bit_day
    if upsets_per_bit_day is not None:
        from leanfront.latency_models.fpga.radiation import upsets_per_day

        upsets = upsets_per_day(hardware, total, upsets_per_bit_day)
    if not total.fits:
        from leanfront.latency_models.fpga.fit import misfit as misfit_of

        misfit = misfit_of(hardware, original, wanted, total)
    device = model.measured_on
    more = {"upsets_per_day": upsets, "misfit": misfit, "measured_on": device}
    known = {key: value for key, value in more.items() if value is not None}

    def people() -> None:
        _print_costs(network, hardware, resized, wanted, total, rows)
        if device is not None:
            print(f"Measured on {device}")
        if upsets is not None:
            print(f"{upsets:.3g} upsets per day in the memory blocks that it occupies, before correction")
        if misfit is not None:
            print(misfit)

    layers = [asdict(row) for row in rows]
    show(format_, lambda: {**asdict(total), "layers": layers, **known}, lambda: layers, people)


def read_network(path: Path) -> tuple[Network, Policy]:
    """A network file by its suffix, and the policy that it already follows (float32 for a layer table).

    Raises:
        PolicyError: neither .onnx nor .csv. OnnxError, TableError: the file is not good.
    """
    if path.suffix.lower() == ".onnx":
        from leanfront.compression.capture.onnx_network import read_onnx

        read = read_onnx(path)
        return _as_large_as(path, read.network, read.policy), read.policy
    if path.suffix.lower() == ".csv":
        from leanfront.latency_models.layer_table import read_layer_table

        network = read_layer_table(path)
        return network, Policy.uniform(network, LayerPolicy())
    raise PolicyError(f"a network is an .onnx file or a layer table (.csv), not {path.name!r}")


def _as_large_as(path: Path, network: Network, policy: Policy) -> Network:
    """A network read from a file, of which a file is foretold as large as that one: what is stored for no
    layer (tables that are looked up, names) stays when its bits change. Of a file whose weights lie in others
    the formulas count."""
    import onnx

    from leanfront.compression.policy.batch import size_bytes

    stored = onnx.load_model(path, load_external_data=False).graph.initializer
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in stored):
        return network
    first, *others = network.nodes

    def taking(fixed: int) -> Network:
        written = Written(fixed, 0, CODED_BYTES, CODED_BYTES + CLIP_BYTES)
        return replace(network, nodes=(replace(first, written=written), *others))

    return taking(path.stat().st_size - size_bytes(taking(0), policy))


def _read_policy(path: Path) -> Policy:
    try:
        return Policy.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"cannot read the policy {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"a policy is JSON, {path} is not even text") from error
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error


def uniform(
    network: Network,
    own: Policy,
    weight_bits: int | None,
    activation_bits: int | None,
    sparsity: float | None,
) -> Policy:
    """The file's own policy, with what the options say put over it."""
    if sparsity and not network.groups:
        raise PolicyError(
            "--sparsity cannot be applied: the channels of this network are not followed (an .onnx file, or a"
            " layer table with branches or concats); export or list the network that is cut already"
        )
    layers = {}
    for layer in network.layers:
        before = own[layer.name]
        layers[layer.name] = replace(
            before,
            weight_bits=before.weight_bits if weight_bits is None else weight_bits,
            activation_bits=before.activation_bits if activation_bits is None else activation_bits,
            sparsity=sparsity or 0.0 if layer.group is not None else 0.0,
        )
    return Policy.of(layers)


def _print_costs(
    path: Path,
    profile: HardwareProfile,
    network: Network,
    policy: Policy,
    total: "Cost",
    rows: "tuple[LayerCost, ...]",
) -> None:
    lines = []
    used = {kernel.label: kernel.layer for kernel in kernels(network) if kernel.layer is not None}
    for row in rows:
        layer = used.get(row.name)
        other = network.node.get(row.name)
        bits = f"{policy[layer.name].weight_bits}/{policy[layer.name].activation_bits}" if layer else "-"
        shape = str(layer.shape) if layer else other.op if other else "-"
        macs = f"{layer.shape.macs:,}" if layer else "-"
        lines.append(
            (row.name, shape, bits, macs, f"{row.latency_ms:.4f}", f"{row.energy_mj:.4f}", row.source)
        )
    lines += [(name, "left out", *"-----") for name in policy if name in policy.absent]
    names = ("layer", "shape", "bits w/a", "MACs", "latency_ms", "energy_mj", "source")
    print_table([dict(zip(names, line, strict=True)) for line in lines])
    print(
        f"{path.name} on {profile.name}: {total.latency_ms:.4f} ms, {total.energy_mj:.4f} mJ,"
        f" {total.size_bytes:,} bytes of file, {total.peak_memory_bytes:,} bytes of live tensors,"
        f" {network.macs:,} MACs; {total.kind}"
    )
    if total.resources:
        blocks = ", ".join(f"{count:,.0f} {name}" for name, count in total.resources.items())
        print(f"Resources: {blocks}")
    if total.estimated:
        assumed = ", ".join(path for path, s in profile.sources.items() if s.status == "assumed")
        print(f"An estimate: these numbers of the profile are assumed: {assumed}.")
