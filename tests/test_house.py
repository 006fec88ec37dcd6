"""Who may import whom, and what answers without the heavy libraries."""

import ast
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("hw_profiles", "latency_models", "compression", "search", "leanfront")
HEAVY = {"torch", "optuna", "pandas", "onnx", "onnxruntime", "plotly"}
LOW = ("hw_profiles", "compression.graph", "compression.policy")
COSTS = (*LOW, "latency_models")
TORCH_ROOMS = ("capture", "layers", "techniques", "training", "export")
FLOORS = (
    ("errors", "objectives", "config", "storage_url"), ("readers",), ("data", "scores"), ("task",), ("gate",),
    ("run",), ("trial",), ("samplers", "report"), ("study",), ("pick",), ("compare",), ("cli",),
)  # fmt: skip
"""Rooms of search, each of which imports from those before it alone."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, at_import_only: bool = False) -> set[str]:
    """Modules that a file imports; ``at_import_only``: without those inside functions and TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.update([node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(parsed(path))
    return found


def files(package: str) -> list[Path]:
    if package == "leanfront":
        return sorted((ROOT / package).glob("*.py"))
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    """As it is imported, without ``leanfront.`` before it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ALL = {module_of(path): path for package in PACKAGES for path in files(package)}


def ours(path: Path, at_import_only: bool = False) -> set[str]:
    """Modules of ours that a file imports, without ``leanfront.`` before them."""
    found = set()
    for name in imports(path, at_import_only):
        if name.startswith("leanfront."):
            found.add(name.removeprefix("leanfront."))
    return found


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def top(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def allowed(module: str) -> tuple[str, ...] | None:
    """Rooms that a module may import from; None: all."""
    package, _, inside = module.partition(".")
    room = inside.partition(".")[0]
    if package == "hw_profiles":
        return ("hw_profiles",)
    if module.startswith("compression.graph"):
        return ("compression.graph",)
    if module.startswith("compression.policy"):
        return LOW
    if package == "latency_models":
        return COSTS
    if package == "compression":
        return ("compression", "hw_profiles")
    if package == "search" and room:
        floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
        below = [f"search.{other}" for rooms in FLOORS[:floor] for other in rooms]
        beside = [f"search.{other}" for other in FLOORS[floor]] if floor == 0 else [f"search.{room}"]
        # the commands are written on the Python face, and the gate proves what it gives
        face = {"cli": ("runs", "networks"), "gate": ("networks",)}.get(room, ())
        return (*COSTS, "compression", *face, *below, *beside)
    return None


def test_there_is_something_to_check():
    assert len(ALL) > 100
    assert {"search.cli.app", "compression.graph.network", "leanfront"} <= set(ALL)


@pytest.mark.parametrize("module", ALL, ids=str)
def test_imports_run_down(module):
    rooms = allowed(module)
    for other in ours(ALL[module]):
        if rooms is not None:
            assert within(other, rooms), f"{module} imports {other}"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def test_the_search_for_circles_finds_them():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_files_import_in_a_circle():
    arrows = {module: {other for other in ours(path) if other in ALL} for module, path in ALL.items()}
    assert circles(arrows) == []


@pytest.mark.parametrize("module", ALL, ids=str)
def test_heavy_libraries_stay_in_their_rooms(module):
    used = top(imports(ALL[module]))
    if within(module, LOW):
        assert not used & HEAVY
    if within(module, ("latency_models",)):
        assert not used & {"torch", "optuna"}
    if not within(module, ("search.report",)):
        assert "plotly" not in used
    if not within(module, ("search",)):
        assert "optuna" not in used
    if (
        within(module, ("search.cli", "leanfront")) and module != "leanfront.networks"
    ):  # loaded when asked for
        assert not top(imports(ALL[module], at_import_only=True)) & HEAVY


@pytest.mark.parametrize("module", ALL, ids=str)
def test_no_file_is_a_drawer_and_no_function_a_scroll(module):
    path = ALL[module]
    assert path.stem not in {"utils", "helpers", "common", "manager", "handler"}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 80, f"{node.name} has {lines} lines"


def test_nothing_of_ours_is_imported_under_a_name_that_a_user_may_have():
    rooms = {"search", "compression", "latency_models", "hw_profiles"}
    for path in ROOT.rglob("*.py"):
        if ".venv" not in path.parts and "build" not in path.parts:
            assert not top(imports(path)) & rooms, path


def run_cli(arguments: list[str], cwd: Path) -> tuple[set[str], float]:
    """The modules that a command loads, and the seconds of processor time it takes (a busy machine changes
    the time on the clock, not these)."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['leanfront', *{arguments!r}]\n"
        "from leanfront.search.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:]), seconds


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    from leanfront.search.config import parse_config
    from leanfront.search.run.run_folder import TrialRow, make_run

    run = make_run(tmp_path_factory.mktemp("runs") / "run", parse_config({"task": {"file": "task.py"}}))
    run.write_trials([TrialRow(0, "complete", accuracy=0.9, latency_ms=1.0)])
    return run.path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["profile", "list"], ["front", "RUN"], ["search", "--help"]], ids=" ".join
)
def test_quick_commands_load_no_heavy_library_and_answer_within_a_second(arguments, run_folder, tmp_path):
    arguments = [str(run_folder) if argument == "RUN" else argument for argument in arguments]
    for _ in range(3):
        modules, seconds = run_cli(arguments, tmp_path)
        assert not modules & {"torch", "optuna", "pandas", "onnx", "onnxruntime", "plotly", "scipy"}
        if seconds < 1.0:
            return
    pytest.fail(f"it took {seconds:.1f} s, three times more than one")
