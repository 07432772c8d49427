"""Parts side by side: the same results as one after the other, and nothing left behind."""

import threading
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from LabelPropLib import parallel
from LabelPropLib.parallel import processors, side_by_side, threads
from LabelPropLib.registration import instance
from LabelPropLib.registration.consistency import FarEnds

CPU = torch.device("cpu")


def test_results_come_in_the_order_of_the_parts():
    with threads(3):
        assert side_by_side(lambda n: n * n, range(20), CPU) == [n * n for n in range(20)]


def test_parts_are_worked_on_at_once_each_with_a_single_thread():
    together = threading.Barrier(2, timeout=30)  # broken, and an error, unless two parts wait at once

    def meet(_):
        together.wait()
        return torch.get_num_threads()

    with threads(2):
        assert side_by_side(meet, range(2), CPU) == [1, 1]
        assert torch.get_num_threads() == 2


def test_kernels_are_chosen_before_two_threads_could_ask_for_them():
    """The race itself takes a few instructions: it cannot be brought about at will."""
    computed = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            computed.append((function, args[0].numel() if args and isinstance(args[0], torch.Tensor) else None))
            return function(*args, **(kwargs or {}))

    with Recorder(), threads(2):
        torch.rand(1000).sqrt()
    roots = [size for function, size in computed if function is torch.ops.aten.sqrt.default]
    assert roots == [1, 1000]


def test_a_part_may_have_parts():
    with threads(2):
        found = side_by_side(lambda n: side_by_side(lambda m: n + m, range(3), CPU), range(4), CPU)
    assert found == [[n + m for m in range(3)] for n in range(4)]


@pytest.mark.parametrize("with_gradients", [False, True])
def test_gradients_are_kept_where_they_are_wanted(with_gradients):
    with threads(2), torch.set_grad_enabled(with_gradients):
        assert side_by_side(lambda n: torch.is_grad_enabled(), range(4), CPU) == [with_gradients] * 4


def test_a_failure_reaches_the_caller_and_threads_are_as_before():
    def fail(n):
        if n == 2:
            raise ValueError("the third")
        return n

    with threads(2):
        with pytest.raises(ValueError, match="the third"):
            side_by_side(fail, range(4), CPU)
        assert torch.get_num_threads() == 2


def test_an_interruption_while_a_thread_starts_leaves_none_behind(monkeypatch):
    """It would wait for work for ever, and the process for it."""
    started, start = [], threading.Thread.start

    def interrupted_start(thread):
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    parallel._pool.cache_clear()
    with threads(2):
        with monkeypatch.context() as interrupted:
            interrupted.setattr(threading.Thread, "start", interrupted_start)
            with pytest.raises(KeyboardInterrupt):
                side_by_side(lambda n: n, range(4), CPU)
        assert torch.get_num_threads() == 2
        started[0].join(30)
        assert not started[0].is_alive()
        assert side_by_side(lambda n: n, range(4), CPU) == [0, 1, 2, 3]


def test_the_same_threads_work_on_however_many_parts():
    """Kept for each number of parts, they would add up to many on a machine with many processors."""
    together = threading.Barrier(2)

    def who(part):
        if part < 2:
            together.wait(timeout=30)  # so that it takes two threads
        return threading.get_ident()

    with threads(5):
        workers = {worker for count in (2, 3, 4, 5) for worker in side_by_side(who, range(count), CPU)}
    assert 2 <= len(workers) <= 5


def test_a_failure_is_told_once_all_parts_have_ended():
    """What still ran would hold the memory that a smaller batch is then tried with."""
    failed, ended = threading.Event(), []

    def work(n):
        if n == 0:
            failed.set()
            raise MemoryError
        failed.wait(timeout=30)
        time.sleep(0.1)
        ended.append(n)

    with threads(2), pytest.raises(MemoryError):
        side_by_side(work, range(4), CPU)
    assert sorted(ended) == [1, 2, 3]


def test_a_gpu_works_on_one_part_after_the_other():
    with threads(4):
        assert processors(torch.device("cuda")) == 1
        assert processors(CPU) == 4
        named = side_by_side(lambda n: threading.current_thread(), range(3), torch.device("cuda"))
    assert set(named) == {threading.current_thread()}


def test_registration_does_not_depend_on_the_number_of_threads():
    images = torch.rand(9, 1, 96, 128, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(4, 1, 96, 128)
    masks[..., 30:60, 40:80] = 1
    ends = FarEnds((0, 4, 4, 8), (4, 0, 8, 4), masks, masks.roll(3, dims=-1))
    schedule = instance.Schedule(levels=(instance.Level(2, 3), instance.Level(1, 3)))
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(instance.register(images, ends, schedule))
    assert torch.equal(*found)
