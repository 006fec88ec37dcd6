"""Ten thousand trials: the journal is read as Optuna's own backend would, and what reads a run stays quick.

Limits are of processor time, several times what it takes, as other programs may be busy; benchmarks/scale.py
measures.
"""

import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.scale import resume, space_of, write_run
from leanfront.search.run.run_folder import RunFolder
from leanfront.search.study.journal import RepairingJournal, open_journal
from tests.variants import some

ROOT = Path(__file__).parents[2]
TRIALS, LAYERS = 10_000, 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("scale") / "run", TRIALS, LAYERS)


@pytest.mark.parametrize("words", some([["status"], ["report"], ["front", "--format", "json"]], 1))
def test_a_long_run_is_read_in_three_seconds(run: RunFolder, words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "leanfront", words[0], str(run.path), *words[1:]]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, env=_environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0
    assert done.stdout


@pytest.mark.slow
def test_a_long_study_resumes_in_fifteen_seconds(run: RunFolder) -> None:
    before = time.process_time()
    study = resume(run, space_of(run.config(), LAYERS))
    assert time.process_time() - before < 15.0
    assert len(study.get_trials(deepcopy=False)) == TRIALS
    assert [row.trial for row in run.trials()] == list(range(TRIALS))


def test_what_is_read_is_what_optunas_own_backend_reads(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 150, 5)
    theirs = JournalStorage(JournalFileBackend(str(run.journal))).get_all_trials(0)
    ours = open_journal(run.journal).get_all_trials(0)
    assert len(ours) == 150
    assert ours == theirs
    assert [trial.distributions for trial in ours] == [trial.distributions for trial in theirs]


def test_two_storages_of_one_file_see_what_the_other_writes(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = optuna.create_study(
        storage=open_journal(path), directions=["maximize", "minimize"], study_name="a"
    )
    other = optuna.load_study(storage=open_journal(path), study_name="a")
    theirs = JournalStorage(JournalFileBackend(str(path)))
    for one in (study, other, study, other):
        trial = one.ask()
        trial.suggest_int("level", 0, 4)
        trial.suggest_categorical("bits", ["w4a8", "w8a8"])
        trial.set_user_attr("digest", "abc")
        one.tell(trial, [0.5, 1.0])
    study.ask().suggest_int("level", 0, 4)
    assert study.get_trials() == other.get_trials() == theirs.get_all_trials(0)
    assert [trial.state for trial in other.get_trials()] == [TrialState.COMPLETE] * 4 + [TrialState.RUNNING]
    assert open_journal(path).get_all_trials(0) == other.get_trials()


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    journal = RepairingJournal(path)
    journal.append_logs([{"op_code": 2, "n": 0}, {"op_code": 2, "n": 1}])
    line = json.dumps({"op_code": 2, "n": 2}).encode()
    with path.open("ab") as file:
        file.write(line[:7])
    assert [log["n"] for log in journal.read_logs(0)] == [0, 1]
    assert list(journal.read_logs(2)) == []
    with path.open("ab") as file:
        file.write(line[7:] + b"\n")
    assert [log["n"] for log in journal.read_logs(2)] == [2]
    assert list(journal.read_logs(3)) == []
    assert [log["n"] for log in journal.read_logs(1)] == [1, 2]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def test_a_line_that_is_finished_while_it_is_read_is_left_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that meets the end of the file within a line asks again, and may get the rest as a line."""
    path = tmp_path / "study.journal"
    journal = RepairingJournal(path)
    whole = [b'{"n":0}\n', b'{"n":1}\n', b'{"n":2}\n']
    path.write_bytes(b"".join(whole))

    class Growing(io.BytesIO):
        def readlines(self, hint: int | None = -1) -> list[bytes]:  # type: ignore[override]
            lines = super().readlines(hint)
            return [lines[0], lines[1][:4], lines[1][4:], *lines[2:]] if len(lines) == 3 else lines

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode: Growing(b"".join(whole)))
        assert [log["n"] for log in journal.read_logs(0)] == [0, 1, 2]
