"""What is computed at once fits into memory, and what happens when it does not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import SPACING, keep, tubes

from LabelPropLib import machine, planner
from LabelPropLib.annotation import annotate_from_label_volume
from LabelPropLib.errors import InputError
from LabelPropLib.pipeline import propagate
from LabelPropLib.planner import Plan
from LabelPropLib.registration import instance
from LabelPropLib.settings import Settings

CPU = torch.device("cpu")
FAST = Settings(preset="fast", fusion="similarity", device="cpu")
GB = 10**9


@pytest.fixture(scope="module")
def annotation():
    image, labels = tubes()
    return annotate_from_label_volume(image, keep(labels, [0, 4, 8, 16]), SPACING)


@pytest.fixture(scope="module")
def found(annotation):
    return propagate(annotation, FAST)


@pytest.mark.parametrize("limit", [4.0, 1.0])
def test_limits_of_memory_give_the_same_labels(annotation, found, monkeypatch, limit):
    """In a process that holds 0.4 GB when the registration begins, which pytest's may be beyond."""
    monkeypatch.setattr(planner, "held_memory", lambda: int(0.4 * GB))
    limited = propagate(annotation, Settings(preset="fast", fusion="similarity", device="cpu", memory_gb=limit))
    np.testing.assert_array_equal(limited.label_maps[0], found.label_maps[0])


def test_batches_do_not_change_the_fields(annotation):
    torch.manual_seed(0)
    images = torch.rand(7, 1, 24, 20)
    levels = (instance.Level(2, 12), instance.Level(1, 5))
    whole, single = (
        instance.register(images, schedule=instance.Schedule(levels=levels, batch_pixels=pixels))
        for pixels in (2**22, 1)
    )
    torch.testing.assert_close(single, whole, rtol=0, atol=0)


def test_little_memory_makes_slices_coarser_and_says_so(annotation, found, monkeypatch):
    """Slices that are small enough stay as they are, and nothing is said of them."""
    monkeypatch.setattr(planner, "memory_to_use", lambda device, limit: 1000)
    small = propagate(annotation, FAST)
    np.testing.assert_array_equal(small.label_maps[0], found.label_maps[0])
    assert not any("memory" in message for message in small.report["messages"])

    image, labels = (np.repeat(np.repeat(volume, 3, axis=1), 3, axis=2) for volume in tubes())
    large = annotate_from_label_volume(image, keep(labels, [0, 4, 8]), SPACING)
    assert any("registered at 64 pixels" in message for message in propagate(large, FAST).report["messages"])


@pytest.mark.parametrize(
    ("size", "pixels", "is_told"), [((60, 80), 80, True), ((60, 79), 80, False), ((90, 160), 160, False)]
)
def test_only_slices_that_were_made_coarser_for_want_of_memory_are_told(size, pixels, is_told):
    assert bool(planner.messages(Plan(CPU), size, pixels, planner.EFFORTS["fast"])) == is_told


def test_what_is_drawn_takes_memory_too(annotation):
    (label, *_), free = annotation.labels, 8e7
    alone = replace(annotation, complete={label: annotation.complete[label]}, absent={}, scribbles={})
    many = replace(annotation, complete={number: annotation.complete[label] for number in range(1, 41)}, absent={})
    sides = [planner.fitting_pixels(10**4, given, free) for given in (alone, annotation, many)]
    assert sides[0] > sides[1] > sides[2] > planner.LEAST_PIXELS
    held = 26 * 17 + 4 * 40 * 4 + 2 * 6 * 40  # 17 planes, 40 labels on 4 of them, 6 ends of gaps
    assert held * sides[2] ** 2 <= free < held * (sides[2] + 1) ** 2


@pytest.mark.parametrize("preset", planner.EFFORTS)
@given(side=st.integers(8, 1000))
def test_finer_planes_take_fewer_of_the_finest_steps(preset, side):
    effort = planner.EFFORTS[preset]
    *coarse, finest = effort.levels
    *same, taken = effort.levels_for((side // 2, side))
    assert same == coarse
    if side <= effort.side:
        assert taken == finest
    else:
        assert instance.FEWEST_STEPS <= taken.steps <= finest.steps
        most = max(instance.FEWEST_STEPS, finest.steps * (effort.side / side) ** 2 + 0.5)
        assert taken.steps <= most  # as many pixels in all, but for what rounding adds


@given(steps=st.integers(1, 100), share=st.floats(0, 1))
def test_a_shortened_level_keeps_a_few_of_its_steps(steps, share):
    shorter = instance.Level(1, steps).shortened(share).steps
    assert min(steps, instance.FEWEST_STEPS) <= shorter <= steps
    assert shorter <= max(instance.FEWEST_STEPS, share * steps + 0.5)


@given(steps=st.integers(1, 100), rate=st.floats(0.01, 1))
def test_the_rate_of_a_level_falls_evenly_from_the_middle_of_its_steps(steps, rate):
    level = instance.Level(1, steps, rate)
    rates = [level.rate_at(step) for step in range(1, steps + 1)]
    half = steps // 2 + 1
    assert rates[:half] == pytest.approx([rate] * half)
    falling = [before - after for before, after in zip(rates[half - 1 :], [*rates[half:], 0.0], strict=True)]
    assert falling[1:] == pytest.approx([2 * rate / steps] * len(falling[1:]))


class ScarceMemory:
    """In place of the registration one that needs memory for more than `most` pixels at once, and remembers calls."""

    def __init__(self, most, error):
        self.most, self.error, self.calls = most, error, []
        self._register = instance.register

    def __call__(self, images, ends, schedule, **options):
        self.calls.append((images.device.type, schedule.batch_pixels))
        if schedule.batch_pixels > self.most:
            raise self.error("not enough memory: you tried to allocate 100 bytes.")
        return self._register(images, ends, schedule, **options)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_is_followed_by_smaller_batches(annotation, found, monkeypatch, error):
    monkeypatch.setattr(planner, "memory_to_use", lambda device, limit: 4 * GB)
    registration = ScarceMemory(2**20, error)
    monkeypatch.setattr(instance, "register", registration)
    result = propagate(annotation, FAST)
    assert len(registration.calls) == 2
    assert "Memory ran out: computed in smaller batches." in result.report["messages"]
    np.testing.assert_array_equal(result.label_maps[0], found.label_maps[0])


def test_a_gpu_without_memory_is_followed_by_the_cpu(annotation, found, monkeypatch):
    """A tensor cannot be on a GPU here, so a plan for it is stood in for by one that says so and runs on the CPU."""
    first, smaller, *rest = planner.plans(torch.device("cuda"))
    assert [plan.device.type for plan in (first, smaller, *rest)] == ["cuda", "cuda", "cpu", "cpu"]
    monkeypatch.setattr(planner, "plans", lambda device: (Plan(CPU), Plan(CPU, why=smaller.why), *rest))
    register, calls = instance.register, []

    def run_out_twice(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return register(*arguments, **options)

    monkeypatch.setattr(instance, "register", run_out_twice)
    result = propagate(annotation, FAST)
    assert "The GPU's memory ran out: computed on the CPU." in result.report["messages"]
    np.testing.assert_array_equal(result.label_maps[0], found.label_maps[0])


def test_other_errors_are_not_taken_for_want_of_memory(annotation, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("The size of tensor a (3) must match")

    monkeypatch.setattr(instance, "register", fail)
    with pytest.raises(RuntimeError, match="must match"):
        propagate(annotation, FAST)


def test_running_out_of_memory_for_good_is_an_error(annotation, monkeypatch):
    monkeypatch.setattr(instance, "register", ScarceMemory(0, MemoryError))
    with pytest.raises(MemoryError):
        propagate(annotation, FAST)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_is_none(limit):
    with pytest.raises(InputError, match="give a number above 0"):
        Settings(memory_gb=limit)


def test_memory_of_this_machine():
    assert 10**7 < machine.held_memory() < 10**12
    assert machine.free_memory() is None or machine.free_memory() > 0
    assert planner.memory_to_use(CPU, 1e-3) == 0


@pytest.mark.parametrize("succeeds, expected", [(1, 3 * GB), (0, None)])
def test_free_memory_on_windows(monkeypatch, succeeds, expected):
    def tell(reference):
        status = reference._obj
        assert status.length == 64  # what Windows expects, or it refuses
        status.total_physical, status.available_physical = 8 * GB, 3 * GB
        return succeeds

    kernel = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=tell))
    monkeypatch.setattr(machine.ctypes, "windll", kernel, raising=False)
    monkeypatch.setattr(machine.sys, "platform", "win32")
    monkeypatch.setattr(machine, "CONTROL_GROUP_FILES", ())
    assert machine.free_memory() == expected


@pytest.mark.parametrize(
    "limit, consists_of, expected",
    [
        ("1000", "anon 100\ninactive_file 0\n", 600),
        ("1000", "anon 100\ninactive_file 250\nactive_file 50\n", 850),
        ("1000", "inactive_file 10\ntotal_inactive_file 250\n", 850),
        ("1000", None, 600),
        ("300", "inactive_file 50\n", 0),
        ("max", "inactive_file 250\n", None),
    ],
)
def test_limit_of_a_control_group(tmp_path, monkeypatch, limit, consists_of, expected):
    files = [tmp_path / name for name in ("max", "now", "stat")]
    files[0].write_text(limit)
    files[1].write_text("400\n")
    if consists_of is not None:
        files[2].write_text(consists_of)
    monkeypatch.setattr(machine, "CONTROL_GROUP_FILES", [(tmp_path / "none", tmp_path, tmp_path), files])
    assert machine._left_in_control_group() == expected
    if expected is not None:
        assert machine.free_memory() == expected


def test_threads_that_are_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.thread_count() == 3
    for nonsense in ("", "0", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert 1 <= machine.thread_count() <= machine.MOST_THREADS


def test_auto_leaves_apples_gpu_alone_where_pytorch_cannot_warp_on_it(monkeypatch):
    def fail(*inputs, **options):
        raise RuntimeError("MPS: Unsupported Border padding mode")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, **options: torch.ones(size))
    monkeypatch.setattr(planner.F, "grid_sample", fail)
    planner.can_use_mps.cache_clear()
    try:
        assert planner.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    finally:
        planner.can_use_mps.cache_clear()
