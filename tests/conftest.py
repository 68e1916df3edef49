"""One thread a process, also in the processes that tests start.

Tests run side by side, one worker a core. With a thread a core in each of them too, threads that wait for a core that
another one has keep spinning: four times the work and more.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, which no plugin of pytest does
