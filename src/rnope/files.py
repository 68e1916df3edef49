"""Files and folders that a reader sees old or new, whole: written beside their place and renamed; and locks on them."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place to write a file or folder that takes the place of `path` when the block ends well.

    When it does not, nothing of it is left; what a killed process left is overwritten by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.tmp")
    _remove(place)
    try:
        yield place
        if place.is_dir() and path.is_dir():
            _exchange(place, path)
        else:
            os.replace(place, path)
    finally:
        _remove(place)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`."""
    with beside(path) as place:
        place.write_text(text, encoding="utf-8")


@contextmanager
def exclusive(path: Path, *, seconds: float = 0.0) -> Iterator[bool]:
    """Hold the lock file `path`, or give False if another process still does after so many seconds.

    The lock ends with the process, however that ends. Where the file system has no locks, everybody holds it.
    """
    with path.open("a") as file:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    yield False
                    return
                time.sleep(0.02)
                continue
            except OSError:  # a file system without locks
                pass
            yield True
            return


def _exchange(place: Path, path: Path) -> None:
    """Rename a folder over one that holds something: the old one steps aside until the new one stands."""
    aside = path.with_name(f".{path.name}.old")
    _remove(aside)
    os.replace(path, aside)
    try:
        os.replace(place, path)
    except BaseException:
        os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
