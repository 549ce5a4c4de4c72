"""Wall time, injectable: the one place that asks the system what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Seconds since the Unix epoch, as ``time.time`` gives them; tests pass one they can move."""

SYSTEM: Clock = time.time
