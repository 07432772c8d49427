"""Independent parts of the work side by side, each on a processor of its own.

PyTorch spreads every operation over the processors and waits for all of them after it, thousands of times; where
another program keeps one of them busy, each wait is for that one. Pairs of slices, and labels, do not depend on each
other: a processor that works through its share of them is waited for once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads inside, and afterwards as many as before."""
    choose_kernels()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_kernels():
    """Let MKL choose its kernels of square roots, exponentials and the like, while a single thread computes.

    It chooses at the first call of a process. A second thread that calls it meanwhile can be given one of low accuracy
    (https://github.com/pytorch/pytorch/issues/188792), and the same input would once in a while give other voxels.
    """
    torch.ones(1).sqrt()  # a single element is computed by the thread that asks


def processors(device: torch.device) -> int:
    """How many parts can be worked on at once: PyTorch's threads, one on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part], device: torch.device) -> list[Result]:
    """`work` of every part, in their order; as many at once as there are `processors`.

    Raises what the first part to fail raises, once all have ended.
    """
    workers = processors(device)
    if min(workers, len(parts)) < 2:
        return [work(part) for part in parts]
    with_gradients = torch.is_grad_enabled()

    def alone(part: Part) -> Result:
        torch.set_num_threads(1)
        with torch.set_grad_enabled(with_gradients):
            return work(part)

    pool = _pool(workers)
    with threads(1):  # which also puts back the default of new threads, which `alone` changes
        try:
            running = [pool.submit(alone, part) for part in parts]
            wait(running)
        except BaseException:  # a pool interrupted while it starts a thread forgets that one, and nothing would end it
            _pool.cache_clear()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [part.result() for part in running]


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """The threads, started as they are needed and kept: each new one would have memory of its own set aside."""
    return ThreadPoolExecutor(workers, thread_name_prefix="LabelProp")
