"""What takes long is made once, and again where it cannot be read."""

from pathlib import Path

import pytest

from leanfront.latency_models.remembered import remembered, source_digest


def test_it_is_made_once_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    made: list[str] = []

    def ask(key: str) -> tuple[str, ...]:
        def make() -> tuple[str, ...]:
            made.append(key)
            return (key, "é")

        return remembered("kind", key, make, list, tuple)

    assert [ask("a"), ask("b"), ask("a")] == [("a", "é"), ("b", "é"), ("a", "é")]
    assert made == ["a", "b"]
    (tmp_path / "kind" / "a.json").write_text("[")
    assert ask("a") == ("a", "é")
    assert made == ["a", "b", "a"]
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == ["a.json", "b.json"]


def test_without_a_folder_it_is_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "file"))
    made: list[int] = []
    for _ in range(2):
        assert remembered("kind", "a", lambda: made.append(1) or len(made), int, int) == len(made)
    assert len(made) == 2


def test_what_has_no_plain_values_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    assert remembered("kind", "a", lambda: 3, lambda _: None, int) == 3
    assert not list(tmp_path.iterdir())


def test_each_folder_of_source_has_its_digest() -> None:
    assert source_digest("compression") == source_digest("compression") != source_digest("search/gate")
