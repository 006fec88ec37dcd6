"""The documentation against the code: commands, options, keys, defaults and examples are as they are said."""

import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import leanfront.latency_models.measured.space_table
import leanfront.search.readers
from leanfront.hw_profiles import read_profile
from leanfront.latency_models.layer_table import COLUMNS as LAYER_COLUMNS
from leanfront.search.cli.app import app, main
from leanfront.search.config import SearchConfig, parse_config
from leanfront.search.run.run_folder import COLUMNS, STATES

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "runs" / "README.md",
        ROOT / "hw_profiles" / "README.md",
    ]
)
COMMAND = typer.main.get_command(app)
FAST = "--set hardware.profile=toy --set search.sampler=random --set finetune.images=0 --trials 3 --workers 1"
Run = Callable[[str], str]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def block(name: str, mark: str, number: int = 0) -> str:
    """The fenced block that follows ``<!-- mark -->``."""
    found = re.findall(rf"<!-- {mark} -->\n```\w*\n(.*?)```", text(name), re.S)
    assert len(found) > number, f"{name} has no block {number} marked {mark!r}"
    return str(found[number])


def lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.startswith("leanfront ")]


def rows(section: str) -> list[list[str]]:
    """The cells of a section's tables, without their two header lines."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if re.match(r"[`\[]", row[0])]


def sections(page: str, pattern: str) -> dict[str, str]:
    """Heading (what the pattern's group matches) -> text up to the next heading of any level."""
    parts = re.split(r"^#+ (.*)$", text(page), flags=re.M)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {match[1]: body for heading, body in pairs if (match := re.fullmatch(pattern, heading))}


def commands(command: Any = COMMAND, path: str = "") -> Iterator[tuple[str, Any]]:
    """("profile list", its command) of every command that does something."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, f"{path} {name}".strip())


COMMANDS = dict(commands())


def options(command: Any) -> dict[str, Any]:
    return {
        option: parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.hidden  # what a search tells its workers
        for option in parameter.opts
        if option != "--help"
    }


def choices(command: Any, parameter: Any) -> list[str]:
    """The values that an option may have, where it is one of a few."""
    hint = typing.get_type_hints(inspect.unwrap(command.callback))[parameter.name]
    kinds = [hint, *typing.get_args(hint)]
    return [
        str(value) for kind in kinds if inspect.isclass(kind) and issubclass(kind, StrEnum) for value in kind
    ]


def test_every_command_has_its_section_and_no_other() -> None:
    assert set(sections("docs/commands.md", "`leanfront (.*)`")) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command(name: str) -> None:
    command, section = COMMANDS[name], sections("docs/commands.md", "`leanfront (.*)`")[name]
    documented = {row[0].strip("`"): row for row in rows(section)}
    assert set(documented) == set(options(command))
    for option, parameter in options(command).items():
        _, values, default, _ = documented[option]
        assert (default == "required") == bool(parameter.required), option
        named = choices(command, parameter)
        assert not named or set(named) == set(re.findall(r"`(\w+)`", values)), option
        if isinstance(parameter.default, bool):
            assert (default, values) == ("", ""), option  # a switch: on when it is given
        elif isinstance(parameter.default, StrEnum | int | float):
            assert default == f"`{parameter.default}`", option
        assert parameter.multiple == ("given again" in documented[option][3]), option
    usage = re.search(rf"^    leanfront {name}\b(.*)$", section, re.M)
    assert usage is not None
    given = re.sub(r"--[a-z-]+ [A-Z]+|\[options\]", "", usage[1]).split()
    assert len(given) == sum(p.param_type_name == "argument" for p in command.params), usage[0]


def test_no_page_names_an_option_that_does_not_exist() -> None:
    known = {option for command in (COMMAND, *COMMANDS.values()) for option in options(command)} | {
        "--help",
        "--no-deps",
    }  # the second is pip's
    for page in PAGES:
        if page.name not in ("CONTRIBUTING.md", "dashboard.md"):  # name options of other tools
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"<!--|-->", "", page.read_text())))
            assert named <= known, page.name


def command_lines() -> list[tuple[str, str]]:
    """Every line in code that starts with leanfront; those of commands.md are usage lines, checked above."""
    return [
        (page.name, match[1])
        for page in PAGES
        if page.name != "commands.md"
        for match in re.finditer(r"^ *(leanfront [a-z].*)$", code_of(page), re.M)
    ]


def code_of(page: Path) -> str:
    content = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```sh\n(.*?)^```", content, re.M | re.S)
    indented = re.findall(r"^    leanfront .*$", content, re.M)
    return "\n".join([*fenced, *indented])


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_parse(page: str, line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command = COMMAND
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"{page}: {line}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("leanfront", arguments)  # raises for an unknown option or a bad value


def config_keys() -> dict[str, dict[str, Any]]:
    """Section -> key -> its field."""
    return {name: dict(field.annotation.model_fields) for name, field in SearchConfig.model_fields.items()}


def test_every_configuration_key_with_its_default() -> None:
    found = sections("docs/configuration.md", r"`\[(\w+)\]`")
    assert set(found) == set(config_keys())
    for name, fields in config_keys().items():
        documented = {row[0].strip("`"): row for row in rows(found[name])}
        assert list(documented) == list(fields), name
        for key, field in fields.items():
            default = documented[key][2]
            if field.is_required():
                assert default == "required", key
            elif field.default is None:
                assert default == "none", key
            else:
                value = tomllib.loads(f"value = {default.strip('`')}")["value"]
                assert value == (
                    list(field.default) if isinstance(field.default, tuple) else field.default
                ), key


def test_configurations_on_the_pages_are_valid() -> None:
    found = [
        code for page in PAGES for code in re.findall(r"```toml\n(\[task\].*?)```", page.read_text(), re.S)
    ]
    assert len(found) >= 2
    for code in found:
        parse_config(tomllib.loads(code))


def test_keys_named_anywhere_exist() -> None:
    keys = config_keys()
    for page in PAGES:
        named = re.findall(r"`(\w+)\.(\w+)(?: = [^`]*)?`|--set (\w+)\.(\w+)", page.read_text())
        for first, second, *overridden in named:
            section, key = (first, second) if first else overridden
            module = section == "search" and any((ROOT / "search").glob(f"{key}*"))
            if section in keys and not module and key not in ("toml", "py"):
                assert key in keys[section], f"{page.name}: {section}.{key}"


def test_environment_variables() -> None:
    packages = ("search", "compression", "hw_profiles", "latency_models")
    code = "".join(file.read_text() for name in packages for file in (ROOT / name).rglob("*.py"))
    used = set(re.findall(r"leanfront_[A-Z_]+", code))
    assert {row[0].strip("`") for row in rows(text("docs/configuration.md")) if "leanfront" in row[0]} == used


def links() -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_links_lead_somewhere(page: str, target: str) -> None:
    assert ((ROOT / page).parent / target).exists()


ROOMS = ("search", "compression", "hw_profiles", "latency_models")


def missing_files(content: str) -> list[str]:
    folders = "|".join((*ROOMS, "leanfront", "examples", "tests", "benchmarks", "docs"))
    named = re.findall(rf"`((?:{folders})/[\w/.-]*)`", content)
    return [target for target in named if not (ROOT / target).exists()]


def missing_names(content: str) -> list[str]:
    named = re.findall(r"`(leanfront(?:\.\w+)+)[`(]", content)
    return [name for name in named if locate(name) is None]


def old_imports(content: str) -> list[str]:
    return re.findall(rf"^ *(?:from|import) (?:{'|'.join(ROOMS)})\b.*$", content, re.M)


def test_files_modules_and_names_on_the_pages_exist() -> None:
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for wrong in (missing_files, missing_names, old_imports):
            assert wrong(content) == [], page.name


def test_what_is_missing_would_be_found() -> None:
    assert missing_files("`search/task.py` and `search/tusk.py`") == ["search/tusk.py"]
    assert missing_names("`leanfront.search.task.Task`, `leanfront.search.tusk`, `leanfront.Tusk(...)`") == [
        "leanfront.search.tusk",
        "leanfront.Tusk",
    ]
    assert old_imports("from leanfront import Task\n    from search.task import Task\n") == [
        "    from search.task import Task"
    ]


def test_the_table_of_what_can_be_added() -> None:
    section = sections("docs/architecture.md", "(To add something)")["To add something"]
    table = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| a")]
    added = ["objective", "cost model", "technique", "sampler", "dialect", "operation"]
    added += ["profile", "reader", "command"]
    assert [re.sub("^an? ", "", cells[0].strip()) for cells in table] == added
    for _, _, _, registered, example in table:
        calls = re.findall(r"`(leanfront[\w.]+)`", registered)
        assert calls
        assert all(callable(locate(name)) for name in calls), registered
        assert (ROOT / example.strip().strip("`")).is_file(), example


@pytest.mark.parametrize(
    ("page", "heading", "example"),
    [
        ("docs/your-own-task.md", "An objective of your own", "objective"),
        ("docs/search.md", "A sampler of your own", "sampler"),
        ("docs/commands.md", "`leanfront export`", "dialect"),
    ],
)
def test_what_the_pages_show_is_what_the_examples_walk(page: str, heading: str, example: str) -> None:
    shown = re.findall(r"```python\n(.*?)```", sections(page, f"({re.escape(heading)})")[heading], re.S)
    added = importlib.import_module(f"tests.extending.test_{example}").ADDED
    assert [code.strip() for code in shown] == [added.strip()]


def test_readers_columns_and_states() -> None:
    task_page, runs_page = text("docs/your-own-task.md"), text("runs/README.md")
    readers = {name for name in leanfront.search.readers.__all__ if name.startswith("read_")}
    assert {row[0].strip("`").partition("(")[0] for row in rows(task_page) if "read_" in row[0]} == readers
    for row in rows(task_page):
        if "read_" in row[0]:
            name, arguments = re.fullmatch(r"`(\w+)\((.*)\)`", row[0]).groups()  # type: ignore[union-attr]
            known = inspect.signature(getattr(leanfront.search.readers, name)).parameters
            assert {argument.partition("=")[0] for argument in arguments.split(", ")} <= set(known), name
    described = sections("runs/README.md", r"(trials\.csv)")["trials.csv"]
    assert tuple(re.findall(r"`(\w+)`", described.partition("An empty")[0])) == COLUMNS
    assert tuple(row[0].strip("`") for row in rows(described)) == STATES
    assert "exported/<trial>/" in runs_page
    assert ",".join(LAYER_COLUMNS) in text("docs/commands.md")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a line as the shell would, in a fresh folder; what it prints. It must succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEANFRONT_PROFILES", str(tmp_path / "profiles"))

    def run_line(line: str) -> str:
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        else:
            code = 0
        printed = capsys.readouterr()
        assert code == 0, f"{line}: exit code {code}: {printed.err[-2000:]}"
        return printed.out

    return run_line


def hurried(line: str) -> str:
    """The same line with less work: invented hardware, three trials at random, no training, nothing for the
    end."""
    command = shlex.split(line)[1]
    line = line.partition(" #")[0]
    return (
        f"{line} {FAST}"
        if command == "check"
        else f"{re.sub(r' --hours [0-9]+', '', line)} {FAST}"
        if command == "search"
        else f"{line} --epochs 0"
        if command == "pick"
        else line
    )


def test_quick_start(run: Run, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (start,) = re.findall(r"<!-- quick start -->\n```sh\n(.*?)```", text("README.md"), re.S)
    commands_run = [shlex.split(line)[1] for line in lines(start)]
    assert commands_run == ["check", "search", "status", "front", "report", "pick"]
    printed = {shlex.split(line)[1]: run(hurried(line)) for line in lines(start)}
    assert "3 trials are done" in printed["search"]
    (folder,) = (tmp_path / "runs" / "digits" / "exported").iterdir()
    written = {path.name for path in folder.iterdir()}
    for page in ("README.md", "runs/README.md"):
        listed = {row[0].strip("`") for row in rows(text(page))}
        assert written <= listed, page
    described = text("runs/README.md")
    for path in (tmp_path / "runs" / "digits").iterdir():
        assert f"`{path.name}" in described, f"runs/README.md does not say what {path.name} is"
    assert (tmp_path / "runs" / "digits" / "report.html").stat().st_size > 1000
    assert "ms" in run(f"leanfront cost {folder / 'model.onnx'} --profile toy")


def test_own_task(run: Run, tmp_path: Path) -> None:
    code = block("docs/your-own-task.md", "task")
    assert block("README.md", "task") == code
    (tmp_path / "task.py").write_text(code)
    (tmp_path / "search.toml").write_text(block("docs/your-own-task.md", "config"))
    images = {
        split: _write_images(tmp_path / "images" / split, count)
        for split, count in (("train", 32), ("test", 20))
    }
    _train(code, tmp_path, *images["train"])
    printed = {
        shlex.split(line)[1]: run(hurried(line)) for line in lines(block("docs/your-own-task.md", "run"))
    }
    assert set(printed) == {"check", "search", "front", "report"}
    assert "about 3 in 8 h" in printed["check"]
    assert printed["front"].count("ms") + printed["front"].count("us") >= 2  # the baseline and a member
    assert (tmp_path / "night" / "report.html").exists()


def _write_images(folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright and dark images, ``count`` of each; the same as tensors, scaled to 0..1."""
    rng = np.random.default_rng(count)
    pixels, labels = [], []
    for label, (name, level) in enumerate((("bright", 190), ("dark", 60))):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(level, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{number:02d}.png")
            pixels.append(image.transpose(2, 0, 1) / np.float32(255))
            labels.append(label)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


def _train(code: str, folder: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train the network of the example and save its weights where the example looks for them."""
    example: dict[str, Any] = {"__file__": str(folder / "task.py"), "__name__": "example"}
    exec(code, example)
    mean, std = (torch.tensor(example[name]).view(1, 3, 1, 1) for name in ("MEAN", "STD"))
    torch.manual_seed(0)
    model = example["network"](2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model((images - mean) / std), labels).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "weights.pt")


@pytest.mark.slow
def test_this_machine_under_a_name_of_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "cache").mkdir()
    for trained in leanfront.search.readers.cache_folder().glob(
        "digits-*"
    ):  # the example's network: not once more
        shutil.copy(trained, tmp_path / "cache")
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    smaller = (("SAMPLES", 12), ("DRAWS", 20), ("COVER_SECONDS", 2.0), ("SURPRISE_SECONDS", 1.0))
    for name, value in smaller:
        monkeypatch.setattr(leanfront.latency_models.measured.space_table, name, value)
    # tests share their machine: what follows takes any moment for a quiet one, and waits for none
    monkeypatch.setattr("leanfront.latency_models.benchmark.timing.QUIET", 100.0)
    monkeypatch.setattr("leanfront.latency_models.benchmark.timing.noise", lambda timings: None)
    monkeypatch.setattr("leanfront.latency_models.measured.profile_table.TOLD_APART", 1.0)
    # cascade would first measure what each decision does alone
    small = "--set finetune.images=0 --set search.sampler=random"
    printed = {}
    for line in lines(block("docs/adding-hardware.md", "walk")):
        hasty = line.replace("--policies 12", "--policies 4").replace("--trials 8", f"--trials 3 {small}")
        printed[" ".join(shlex.split(line)[1:3])] = run(hasty)
    assert "is valid" in printed["profile check"]
    assert "kernels measured" in printed["profile measure"]
    assert "4 networks that the table had not seen" in printed["profile validate"]
    assert "3 trials are done" in printed["search examples/digits"]
    environment = json.loads((tmp_path / "runs" / "first" / "environment.json").read_text())
    assert environment["profile"] == "my-desk"
    assert environment["latency_validation"]["n"] == 8
    page = (tmp_path / "runs" / "first" / "report.html").read_text()
    assert 'data-figure="validation"' in page


def test_adding_hardware(run: Run, tmp_path: Path) -> None:
    page = "docs/adding-hardware.md"
    for line in lines(block(page, "run")):
        run(line)
    own = tmp_path / "profiles" / "my-board.toml"
    assert own.exists()
    own.write_text(block(page, "profile"))
    assert read_profile(own).estimated  # its power is assumed
    (tmp_path / "layers.csv").write_text(block(page, "layers"))
    in_floats, in_integers = (run(line) for line in lines(block(page, "run", 1)))
    said = text(page).partition("## Check it with a pencil")[2]
    for printed, latency_ms in ((in_floats, "2.3693"), (in_integers, "0.5998")):
        assert f"{latency_ms} ms" in said
        assert f"{latency_ms} ms" in printed
