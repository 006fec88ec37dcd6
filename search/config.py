"""The search.toml file: what is searched, on which hardware, with how much training."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from leanfront.compression.training.schedule import SCHEDULES
from leanfront.hw_profiles.loading import toml_key, toml_value
from leanfront.hw_profiles.near import did_you_mean
from leanfront.latency_models.providers import Provider
from leanfront.search.objectives import LIMITS, ObjectiveError, names, objective
from leanfront.search.storage_url import without_password

WeightBits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, 32]
ActivationBits = Literal[2, 3, 4, 5, 6, 7, 8, 16, 32]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
WholeShare = Annotated[float, Field(ge=0.0, le=1.0)]

_WANTED = {
    "model_type": "a section",
    "dict_type": "a section",
    "tuple_type": "a list",
    "path_type": "a path in quotes",
    "string_type": "text in quotes",
}

_NOT_AT_FIRST = ("space.zeros", "limits.zipped_bytes")
"""Keys that run folders of earlier versions do not have: left out, they change no digest."""
_LEAST_HOURS = 1.0
"""A shorter search has no time to spare for a long fine-tune."""


TUNED_FROM_HOURS = 3.0
"""A shorter search trains as it is told, unless it is told to look for better."""


class ConfigError(ValueError):
    """A search configuration that cannot be used: the rule, what was found, what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TaskSection(_Section):
    """The user's Python file, and the options that its ``load`` function is called with."""

    file: Annotated[Path, Strict(False)]
    options: dict[str, Any] = {}


class HardwareSection(_Section):
    """The part that the network will run on. ``threads`` and ``provider``: of the inference engine
    (onnxruntime), where latency is measured."""

    profile: str = "this-machine"
    threads: int = Field(default=1, ge=1, le=1024)
    provider: Annotated[Provider, Strict(False)] = Provider.CPU


class SearchSection(_Section):
    """How long, how wide and towards what. ``sampler``: a registered name (search.sampler); the task file may
    register more, so it is looked up once that is loaded."""

    sampler: str = Field(default="cascade", min_length=1)
    objectives: Annotated[tuple[str, ...], Strict(False)] = ("accuracy", "latency_ms")
    trials: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0.0)
    workers: int = Field(default=1, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**32)
    storage: str | None = None
    trial_minutes: float | None = Field(default=None, gt=0.0)

    @field_validator("storage", mode="before")
    @classmethod
    def _no_password(cls, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):  # said here: the message of any other check repeats the value
            raise ValueError("must be text in quotes")
        return without_password(value)

    @field_validator("objectives")
    @classmethod
    def _accuracy_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(value) <= 4 or value[0] != "accuracy" or len(set(value)) < len(value):
            others = ", ".join(name for name in names() if name != "accuracy")
            raise ValueError(
                f"must start with accuracy and name one to three of {others}, each once, not {list(value)}"
            )
        return value


class LimitsSection(_Section):
    """What a network must not exceed; checked before it is trained, ``max_drop`` (in the score's unit)
    after."""

    latency_ms: float | None = Field(default=None, gt=0.0)
    size_bytes: float | None = Field(default=None, gt=0.0)
    energy_mj: float | None = Field(default=None, gt=0.0)
    peak_memory_bytes: float | None = Field(default=None, gt=0.0)
    zipped_bytes: float | None = Field(default=None, gt=0.0)
    max_drop: float | None = Field(default=None, ge=0.0)

    @property
    def costs(self) -> dict[str, float]:
        """The limits that are known before any training: name of the objective -> most."""
        return {name: float(value) for name in LIMITS if (value := getattr(self, name)) is not None}


class SpaceSection(_Section):
    """What may be proposed. Sparsity: share of a group's channels that is cut. 32 bits: float. ``depth``:
    residual branches may be left out. ``zeros``: shares of a layer's weights that are 0, in the pattern that
    pays; None: the usual ones, where they do. ``dynamic``: linear layers and LSTMs may quantize what they
    read at run time. ``criterion``: which channels go (techniques/criteria.py); of several the one that costs
    least before any training."""

    sparsity: Annotated[tuple[Share, ...], Strict(False)] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
    weight_bits: Annotated[tuple[WeightBits, ...], Strict(False)] = (4, 8, 32)
    activation_bits: Annotated[tuple[ActivationBits, ...], Strict(False)] = (8, 32)
    depth: bool = True
    zeros: Annotated[tuple[Share, ...], Strict(False)] | None = None
    dynamic: bool = False
    criterion: Annotated[tuple[str, ...], Strict(False)] = ("l2",)

    @field_validator("zeros")
    @classmethod
    def _sorted(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if value is None else tuple(sorted(set(value)))

    @field_validator("criterion", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("criterion")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"must name at least one criterion, each once, not {list(value)}")
        return value

    @field_validator("sparsity", "weight_bits", "activation_bits")
    @classmethod
    def _not_empty(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("must name at least one value, not []")
        return tuple(sorted(set(value)))


class FinetuneSection(_Section):
    """The short training inside the search: images seen, not epochs. ``rungs``: shares of it after which a
    trial is scored and goes on only where no other is better. ``tune``: temperature, distillation_weight and
    learning_rate are looked for first; None: where the search has TUNED_FROM_HOURS or more. ``steps``: of
    grids in all training, also that of a pick: "learned", "observed", or "few bits": of few bits learned.
    ``features``: weight of what layers inside say (compression.training.features), beside the answers."""

    images: int = Field(default=8192, ge=0)
    rungs: Annotated[tuple[WholeShare, ...], Strict(False)] = (0.0, 0.1875, 1.0)
    batch: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=0.02, gt=0.0)
    temperature: float = Field(default=4.0, gt=0.0)
    distillation_weight: float = Field(default=0.9, ge=0.0, le=1.0)
    features: float = Field(default=0.0, ge=0.0)
    calibration_images: int = Field(default=512, ge=1)
    tune: bool | None = None
    steps: Literal["few bits", "learned", "observed"] = "few bits"

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[-1] != 1.0 or any(a >= b for a, b in pairwise(value)):
            raise ValueError(f"must rise and end at 1.0, such as [0.0, 0.1875, 1.0], not {list(value)}")
        return value


class PickSection(_Section):
    """The long training of the network that is picked. ``share_of_hours``: of a search, kept for it;
    ``schedule``: when the zeros among its weights come (compression.training.schedule); None: gradually where
    they are many."""

    epochs: float = Field(default=8, ge=0)
    learning_rate: float = Field(default=0.02, gt=0.0)
    share_of_hours: Share = 0.15
    schedule: str | None = None

    @field_validator("schedule")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEDULES:
            raise ValueError(f"must be one of {', '.join(SCHEDULES)}, not {value!r}")
        return value


class ExportSection(_Section):
    """The file of a network that is picked or exported. ``to``: its kind (export/dialects.py), that of the
    profile's engine by default; a task file may bring more, so that the name is looked up when the task was
    loaded."""

    to: str | None = None


class SearchConfig(_Section):
    """A whole search.toml. ``task.file`` is absolute once it was read by ``load_config``."""

    task: TaskSection
    hardware: HardwareSection = HardwareSection()
    search: SearchSection = SearchSection()
    limits: LimitsSection = LimitsSection()
    space: SpaceSection = SpaceSection()
    finetune: FinetuneSection = FinetuneSection()
    pick: PickSection = PickSection()
    export: ExportSection = ExportSection()

    @property
    def rung_images(self) -> tuple[int, ...]:
        """Images that a trial has trained on at the end of each rung, ascending; which of them its trials are
        scored at is the sampler's (``Sampler.rungs``)."""
        images = self.finetune.images
        return tuple(dict.fromkeys(round(share * images) for share in self.finetune.rungs))

    @property
    def seconds_to_finish(self) -> float:
        """How much of the hours is kept for the long fine-tune of the front; trials end so much earlier."""
        hours = self.search.hours
        return 0.0 if hours is None or hours < _LEAST_HOURS else 3600 * hours * self.pick.share_of_hours

    @property
    def tunes(self) -> bool:
        """Whether a search looks for better settings of its fine-tune first."""
        if self.finetune.tune is not None:
            return self.finetune.tune
        return self.search.hours is not None and self.search.hours >= TUNED_FROM_HOURS

    def tuned(self, found: Mapping[str, Any]) -> "SearchConfig":
        """With settings of the fine-tune that were found (``Tuned.to_dict``), where they were kept."""
        better = dict(found["settings"]) if found.get("kept") else {}
        if found.get("length"):
            better["images"] = found["length"]
        return self.model_copy(update={"finetune": self.finetune.model_copy(update=better)})

    @property
    def shared(self) -> dict[str, Any]:
        """What all calls that work on one run folder must have in common, as flat "section.key" -> value.

        Not in it: how long (hours, trials), how many workers, the seed, the sampler, the address of the
        storage, the long training of a pick, and the kind of its file. Of the task file the name counts, not
        its folder: folders may be moved.
        """
        raw = self.model_dump(mode="json", exclude={"pick": True, "export": True})
        raw["task"]["file"] = self.task.file.name
        raw["search"] = {"objectives": raw["search"]["objectives"]}
        del raw["finetune"]["tune"]  # what it found is kept with the run
        options = raw["task"].pop("options")
        flat = {f"{section}.{key}": value for section, keys in raw.items() for key, value in keys.items()}
        flat = {key: value for key, value in flat.items() if value is not None or key not in _NOT_AT_FIRST}
        return flat | {f"task.options.{key}": value for key, value in options.items()}

    @property
    def zipped(self) -> bool:
        """Whether it is asked what a file takes when zipped."""
        return "zipped_bytes" in (*self.search.objectives, *self.limits.costs)

    @property
    def digest(self) -> str:
        """Hash of ``shared``."""
        text = json.dumps(self.shared, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """TOML that ``load_config`` reads back as an equal configuration."""
        raw = self.model_dump(mode="python", exclude_none=True)
        raw["task"]["file"] = str(self.task.file)
        return "".join(_table(name, section) for name, section in raw.items())


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search.toml. ``overrides``: "section.key=value" texts, values written as in TOML (a bare word
    is a string).

    A relative ``task.file`` is relative to the folder of the configuration, and comes back absolute.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (the nearest is named), a value is
            not allowed, an override cannot be read, or the task file does not exist.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "search.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration {str(path)!r}; give the path of a search.toml") from None
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not text, not TOML, too many digits or brackets
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    config = parse_config(raw, str(path))
    try:
        task_file = (path.parent / config.task.file.expanduser()).resolve()
        there = task_file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # no such user, too long, a zero
        raise ConfigError(f"{path}: task.file is {str(config.task.file)!r}, no path: {error}") from error
    if not there:
        raise ConfigError(f"{path}: task.file is {str(config.task.file)!r}, but there is no file {task_file}")
    return config.model_copy(update={"task": config.task.model_copy(update={"file": task_file})})


def parse_config(raw: Mapping[str, Any], source: str = "the configuration") -> SearchConfig:
    """Validate plain dictionaries as they come out of TOML; ``source`` names them in errors.

    Raises:
        ConfigError: as ``load_config``.
    """
    try:
        return SearchConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from error


def check_names(config: SearchConfig) -> None:
    """Raise ConfigError for an objective that is neither ours nor the task's, which was loaded by now."""
    for number, name in enumerate(config.search.objectives):
        try:
            objective(name)
        except ObjectiveError as error:
            raise ConfigError(f"search.objectives.{number}: {error}") from error


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set takes section.key=value (such as search.seed=1), not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    table = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    table[parts[-1]] = value


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, an unknown key before all others, in one sentence."""
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        everywhere = (f"{name}.{key}" for name in SearchConfig.model_fields for key in _known_keys([name]))
        elsewhere = [name for name in everywhere if name.split(".")[-1] == location[-1]]
        hint = did_you_mean(location[-1], known, elsewhere)
        where = f"[{'.'.join(location[:-1])}]" if location[:-1] else "the file"
        return f"unknown key {location[-1]!r} in {where}; {hint}There are {', '.join(known)}"
    if first["type"] == "missing":
        return f'{key} is missing; a search needs at least [task] file = "task.py"'
    if first["type"] == "value_error":
        return f"{key} {first['msg'].removeprefix('Value error, ')}"
    wanted = _WANTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    return f"{key} must be {wanted}, not {first['input']!r}"


def _known_keys(section: Sequence[str]) -> list[str]:
    model: type[BaseModel] = SearchConfig
    for part in section:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


def _table(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"[{name}]"]
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines += [f"{toml_key(key)} = {toml_value(value)}" for key, value in values.items() if key not in inner]
    tables = [_table(f"{name}.{toml_key(key)}", value) for key, value in inner.items()]
    return "\n".join(lines) + "\n\n" + "".join(tables)
