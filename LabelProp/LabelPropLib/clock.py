"""Seconds by stage, progress and cancellation, for all that takes time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Cancelled

Progress = Callable[[float, str], None]


def portion(on_step: Callable[[float], None], done: float, cost: float, total: float) -> Callable[[float], None]:
    """A callback for a part of some work, which turns the fraction done of the part into that of the whole.

    on_step: called with the latter. done: cost of what came before; cost: of the part; total: of the whole.
    """
    return lambda fraction: on_step((done + fraction * cost) / total)


class Clock:
    """Seconds by stage; progress and cancellation on the way."""

    def __init__(self, progress: Progress | None, is_cancelled: Callable[[], bool] | None):
        self.seconds: dict[str, float] = {}
        self._progress = progress or (lambda fraction, message: None)
        self._is_cancelled = is_cancelled or (lambda: False)
        self._stage = ""
        self._fraction = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside under `name`."""
        self._stage, started = name, time.perf_counter()
        self.tell(self._fraction)
        yield
        self.seconds[name.lower()] = round(time.perf_counter() - started, 3)

    def tell(self, fraction: float):
        """Tell the progress. Raises Cancelled if the caller has cancelled."""
        if self._is_cancelled():
            raise Cancelled
        self._fraction = fraction
        self._progress(fraction, self._stage)
