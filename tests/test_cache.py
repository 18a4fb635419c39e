"""Files and folders appear whole or not at all, and what is damaged afterwards is found."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from leadline import cache
from leadline.cache import SEAL, cache_folder, damaged_file, file_sha256, whole_file, whole_folder


def build(folder: Path) -> None:
    (folder / "one").write_bytes(b"1")
    (folder / "two").write_bytes(b"")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LEADLINE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"LEADLINE_CACHE": "~/a", "HOME": "/c"}, "/c/a"),
        ({"LEADLINE_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/leadline"),
        ({"HOME": "/c"}, "/c/.cache/leadline"),
    ],
)
def test_where_the_cache_is(monkeypatch, environment, expected):
    for name in ("LEADLINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_sha256_is_the_published_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_is_built_once_and_readable_by_others(tmp_path):
    made = whole_folder(tmp_path / "shelf" / "made", build)
    assert {path.name for path in made.iterdir()} == {"one", "two", SEAL}
    assert made.stat().st_mode & 0o777 == 0o755
    assert whole_folder(made, lambda folder: pytest.fail("built again")) == made
    assert damaged_file(made) is None


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        build(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        whole_folder(tmp_path / "made", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_the_first_to_finish_stays(tmp_path):
    def slower(folder: Path) -> None:
        whole_folder(tmp_path / "made", build)
        (folder / "three").touch()

    assert damaged_file(whole_folder(tmp_path / "made", slower)) is None
    assert not (tmp_path / "made" / "three").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_build_left_is_swept_away_after_a_day(tmp_path):
    old, young, other = (tmp_path / name for name in (".a-1.partial", ".b-2.partial", ".config"))
    for folder in (old, young, other):
        build_into = folder
        build_into.mkdir()
        build(build_into)
    long_ago = time.time() - cache.ABANDONED_SECONDS - 60
    for folder in (old, other):
        os.utime(folder, (long_ago, long_ago))
    whole_folder(tmp_path / "made", build)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b-2.partial", ".config", "made"]


def test_a_folder_elsewhere_sweeps_nothing_away(tmp_path):
    """Beside an exported folder lies what is not leadline's."""
    other = tmp_path / ".mine.partial"
    other.mkdir()
    long_ago = time.time() - cache.ABANDONED_SECONDS - 60
    os.utime(other, (long_ago, long_ago))
    assert damaged_file(cache.new_folder(tmp_path / "made", build)) is None
    assert other.is_dir()


@pytest.mark.parametrize("name", ["one", "two", SEAL])
def test_any_change_is_found(tmp_path, name):
    made = whole_folder(tmp_path / "made", build)
    whole = (made / name).read_bytes()
    for damage in (b"x", b"[]", None):
        if damage is None:
            (made / name).unlink()
        else:
            (made / name).write_bytes(damage)
        assert damaged_file(made) == made / name
        (made / name).write_bytes(whole)
    assert damaged_file(made) is None


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    for data in (b"first", b"second"):
        whole_file(path, data)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    whole_file(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        whole_file(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(NotADirectoryError) as other:
        whole_file(path / "below", b"new")
    assert other.value.filename == str(path / "below")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        whole_file(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []
