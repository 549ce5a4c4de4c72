"""How background work shares a process with those who wait for an answer.

Python runs one thread at a time. A thread that computes without a pause makes each reader beside it
wait a whole switch interval (5 ms) at every system call. So long work is cut into slices, with a
rest behind each: a reader waits at most one slice, once in a slice and a rest.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kvsage.engine.flusher import EngineThread

if TYPE_CHECKING:
    from collections.abc import Callable

SLICE_S = 0.001
ASKED_REST = 8.0  # where somebody waits for the work, and this process has other threads
REST_LEAST_S = 0.00001  # a sleep of nothing might not let anybody in


class Stopped(Exception):  # noqa: N818  # a signal inside the engine; nobody outside sees it
    """The store is being closed: leave the work where it is; the next run finishes it."""


class Pace:
    """Slices and rests.

    Args:
        rest: how long to rest behind each slice, as a share of it; 0 for work that somebody
            waits for, which only lets the others in.
        stopping: whether to stop at the next breath.
    """

    def __init__(
        self,
        rest: Callable[[], float] = lambda: 0.0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rest = rest
        self._stopping = stopping
        self._began_s = time.thread_time()

    def breathe(self) -> None:
        """Between two small steps of the work: rest where a slice is over.

        Raises:
            Stopped: it is time to leave.
        """
        # By this thread's own time: what it waited, it kept nobody out.
        worked_s = time.thread_time() - self._began_s
        if worked_s >= SLICE_S:
            if self._stopping():
                raise Stopped
            time.sleep(max(worked_s * self._rest(), REST_LEAST_S))
            self._began_s = time.thread_time()


UNPACED = Pace()


def asked_rest() -> float:
    """The rest of work that somebody waits for: none where there is nobody to let in."""
    own = threading.current_thread()
    others = (thread for thread in threading.enumerate() if thread is not own)
    return 0.0 if all(isinstance(thread, EngineThread) for thread in others) else ASKED_REST
