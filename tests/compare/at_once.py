"""Jobs of a comparison in this process, for tests."""

from concurrent.futures import Future

from rnope.compare import pool


class Here:
    """An executor that does at once what it is given."""

    _processes = None

    def __init__(self, workers, *, mp_context, initializer, initargs):
        pool._ticks = initargs[0]

    def submit(self, job, *args):
        future = Future()
        future.set_result(job(*args))
        return future

    def shutdown(self, **_):
        pass
