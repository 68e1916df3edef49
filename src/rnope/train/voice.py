"""What goes wrong on many ranks, said once. It knows torchrun's environment and how errors end, and loads no torch."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rnope.errors import UserError

PAUSE = 2.0
"""Seconds in which torchrun sees that a rank has ended, and ends the others."""
STOPPED = 130
"""Exit code of a rank that the user stopped."""


@contextmanager
def one_voice() -> Iterator[None]:
    """Let one rank of a machine say what goes wrong in here.

    A mistake of the user's is found by all ranks: the machine's first one raises it, and torchrun ends the others while they
    wait. One that a single rank finds (its disk is full) is raised after the wait. Last come errors of other kinds,
    which most often say only that another rank is gone.
    """
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    first = os.environ["LOCAL_RANK"] == "0"
    try:
        yield
    except KeyboardInterrupt:
        if first:
            raise
        raise SystemExit(STOPPED) from None
    except (UserError, OSError):
        time.sleep(0 if first else PAUSE)
        raise
    except Exception:
        time.sleep(2 * PAUSE if first else 3 * PAUSE)
        raise
