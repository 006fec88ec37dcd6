"""What an engine cannot be given is said before anything is trained, also what only a written file shows."""

from pathlib import Path

import pytest

from leanfront.compression.export.dialects import DialectError, dialect_of
from leanfront.search.config import load_config
from leanfront.search.study.prepare import load, proved
from tests.search.cli.test_measure_command import CONFIG, TASK


def test_what_cannot_be_written_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "task.py").write_text(TASK, encoding="utf-8")
    (tmp_path / "search.toml").write_text(CONFIG, encoding="utf-8")
    loaded = load(load_config(tmp_path / "search.toml", ["hardware.profile=raspberry-pi-4"]))
    assert loaded.dialect is dialect_of("tflite")

    def refused(*_: object) -> bytes:
        raise DialectError("tflite cannot run Range: its range is computed")

    monkeypatch.setattr(type(loaded.dialect), "finished", refused)
    with pytest.raises(DialectError, match="its range is computed"):
        proved(loaded, lambda line: None)
