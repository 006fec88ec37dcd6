"""The wheel, installed beside whatever a user has: folders of the same names must not be in its way."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest

from tests.bright import CONFIG, TASK

ROOT = Path(__file__).parents[2]
NOT_OURS = 'raise RuntimeError("this is the user\'s own module, which nobody asked for")\n'


def done(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, or would: the checkout itself stays as it is."""
    source = tmp_path_factory.mktemp("source")
    listed = done("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.splitlines():
        if name.startswith(("benchmarks/", "tests/", "docs/")) or not os.path.lexists(ROOT / name):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done(*pip, "--wheel-dir", out, source, cwd=out)
    (built,) = out.glob("leanfront-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it; what that needs comes from the one that tests run in."""
    folder = tmp_path_factory.mktemp("environment")
    done(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "needed.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's folder, with a search.py and a compression of their own."""
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG.replace("trials = 4", "trials = 2"))
    (tmp_path / "search.py").write_text(NOT_OURS)
    (tmp_path / "compression").mkdir()
    (tmp_path / "compression" / "__init__.py").write_text(NOT_OURS)
    return tmp_path


def test_the_wheel_holds_one_package_with_all_that_it_reads(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"leanfront"}
    profiles = {path.name for path in (ROOT / "hw_profiles").glob("*.toml")}
    assert {f"leanfront/hw_profiles/{name}" for name in profiles} <= set(names)
    assert "leanfront/search/report/report.html.j2" in names


def test_it_checks_and_searches_beside_folders_of_the_same_names(environment: Path, place: Path) -> None:
    command = environment / "bin" / "leanfront"
    where = done(
        environment / "bin" / "python", "-c", "import leanfront; print(leanfront.__file__)", cwd=place
    )
    assert Path(where.strip()).is_relative_to(environment)
    assert "trial" in done(command, "check", ".", cwd=place, PYTHONPATH=".")
    done(command, "search", ".", "--run", "run", cwd=place, PYTHONPATH=".")
    assert (place / "run" / "front.csv").is_file()


@pytest.mark.slow
def test_another_package_of_that_name_may_come_first(environment: Path, place: Path, tmp_path: Path) -> None:
    """As Python 3.14's own `compression` does."""
    first = tmp_path / "first"
    (first / "compression").mkdir(parents=True)
    (first / "compression" / "__init__.py").write_text("zstd = None\n")
    front = done(
        environment / "bin" / "leanfront",
        "check",
        ".",
        cwd=place,
        PYTHONPATH=os.pathsep.join([str(first), "."]),
    )
    assert "trial" in front
