"""Locks on files: one holder at a time, and nobody is kept out where the file system has none."""

import fcntl

import pytest

from rnope.files import exclusive


def test_one_holder_at_a_time(tmp_path):
    with exclusive(tmp_path / "lock") as first, exclusive(tmp_path / "lock", seconds=0.05) as second:
        assert (first, second) == (True, False)
    with exclusive(tmp_path / "lock") as third:
        assert third


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
        raise KeyError
    with exclusive(tmp_path / "lock") as free:
        assert free


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with exclusive(tmp_path / "lock") as ours:
        assert ours
