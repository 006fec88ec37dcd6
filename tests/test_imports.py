"""Who may import whom, and what answers without the heavy libraries."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("hw_profiles", "latency_models", "compression", "search")
MEASURING = {
    "measure", "micrographs", "fused_graph", "fill", "structure", "network_model", "table_model", "kit_device"
}  # fmt: skip
"""Modules of latency_models that make, read or time ONNX models, and the model of measured tables, made of
their graphs. No other may import onnx, or one of these, at import time."""


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
            found.add(node.module or "")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def top(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_there_is_something_to_check():
    for package in OURS:
        assert len(files(package)) >= 3, package


@pytest.mark.parametrize("path", files("hw_profiles"), ids=str)
def test_profiles_import_nothing_of_ours(path):
    assert top(imports(path)) & set(OURS) <= {"hw_profiles"}
    assert not top(imports(path)) & {"torch", "optuna", "pandas", "onnx", "onnxruntime"}


@pytest.mark.parametrize("path", files("latency_models"), ids=str)
def test_latency_models_know_profiles_and_policies(path):
    used = imports(path)
    ours = {module for module in used if module.partition(".")[0] in OURS}
    for module in ours:
        assert module.startswith(("hw_profiles", "latency_models", "compression.policy")), module
    assert not top(used) & {"torch", "torch_pruning", "optuna"}
    if path.stem not in MEASURING:
        at_import = imports(path, at_import_only=True)
        assert not top(at_import) & {"onnx", "onnxruntime"}
        assert not at_import & {f"latency_models.{name}" for name in MEASURING}


@pytest.mark.parametrize("path", files("compression"), ids=str)
def test_compression_knows_itself(path):
    assert top(imports(path)) & set(OURS) <= {"compression"}
    if path.parent.name == "policy":
        assert not top(imports(path)) & {"torch", "torch_pruning", "onnx", "onnxruntime", "pandas", "optuna"}


@pytest.mark.parametrize("path", [p for package in OURS for p in files(package)], ids=str)
def test_plotly_is_for_the_report_and_optuna_for_the_search(path):
    used = top(imports(path))
    if not path.name.startswith("report"):
        assert "plotly" not in used
    if path.is_relative_to(ROOT / "search"):
        return
    assert "optuna" not in used


@pytest.mark.parametrize("path", [p for package in OURS for p in files(package)], ids=str)
def test_no_file_is_a_drawer_for_everything(path):
    assert path.stem not in {"utils", "helpers", "common", "manager", "handler"}
    assert len(path.read_text().splitlines()) <= 420


def run_cli(arguments: list[str], cwd: Path) -> tuple[set[str], float]:
    """The modules that a command loads, and the seconds of processor time it takes (a busy machine changes
    the time on the clock, not these)."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.argv = ['leanfront', *{arguments!r}]\n"
        "import search.cli\n"
        "try:\n    search.cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
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
    from search.config import parse_config
    from search.run_folder import TrialRow, make_run

    run = make_run(tmp_path_factory.mktemp("runs") / "run", parse_config({"task": {"file": "task.py"}}))
    run.write_trials([TrialRow(0, "complete", accuracy=0.9, latency_ms=1.0)])
    return run.path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["profile", "list"], ["front", "RUN"], ["search", "--help"]], ids=" ".join
)
def test_quick_commands_load_no_heavy_library_and_answer_within_a_second(arguments, run_folder, tmp_path):
    arguments = [str(run_folder) if argument == "RUN" else argument for argument in arguments]
    attempts = [run_cli(arguments, tmp_path) for _ in range(3)]
    for modules, _ in attempts:
        assert not modules & {"torch", "optuna", "pandas", "onnx", "onnxruntime", "plotly", "scipy"}
    assert min(seconds for _, seconds in attempts) < 1.0


@pytest.mark.parametrize(
    "path", [p for p in files("search") if p.name.startswith(("cli.", "command"))], ids=str
)
def test_the_command_line_imports_no_heavy_library(path):
    assert not top(imports(path, at_import_only=True)) & {
        "torch",
        "optuna",
        "pandas",
        "onnx",
        "onnxruntime",
        "plotly",
    }
