"""A second run on the same scan: what it takes over from the first, and that its result is as good."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pipeline import SPACING, dice, keep, tubes

from LabelPropLib.annotation import annotate_from_label_volume
from LabelPropLib.errors import Cancelled
from LabelPropLib.memory import Memory, fingerprint
from LabelPropLib.pipeline import propagate
from LabelPropLib.registration import instance
from LabelPropLib.settings import Settings

FAST = Settings(preset="fast", device="cpu")


@pytest.fixture(scope="module")
def volume():
    return tubes()


def drawn(volume, planes, scribbles=None):
    image, labels = volume
    return annotate_from_label_volume(image, keep(labels, planes), SPACING, 0, scribbles=scribbles)


@pytest.fixture(scope="module")
def first_run(volume):
    """The memory after a run with slices 0, 8 and 16, and the run's result."""
    memory = Memory()
    return memory, propagate(drawn(volume, [0, 8, 16]), FAST, memory=memory)


@pytest.fixture
def memory(first_run):
    """The memory after a first run, to be spent by one test."""
    again = Memory()
    again.__dict__.update(first_run[0].__dict__)
    return again


@pytest.fixture
def registered(monkeypatch):
    """Numbers of pairs that went through the optimiser, level by level."""
    pairs = []
    optimise = instance.optimise

    def counted(planes, velocity, level, schedule, ends, on_step, chosen=None):
        pairs.append(len(velocity) if chosen is None else len(chosen))
        return optimise(planes, velocity, level, schedule, ends, on_step, chosen)

    monkeypatch.setattr(instance, "optimise", counted)
    return pairs


def test_first_run_with_a_memory_is_like_one_without(volume, first_run):
    cold = propagate(drawn(volume, [0, 8, 16]), FAST)
    np.testing.assert_array_equal(first_run[1].label_maps, cold.label_maps)
    assert first_run[1].report["registration"] == cold.report["registration"] == "instance"
    assert first_run[1].report["messages"] == cold.report["messages"]


def test_same_input_needs_no_registration(volume, first_run, memory, registered):
    again = propagate(drawn(volume, [0, 8, 16]), FAST, memory=memory)
    np.testing.assert_array_equal(again.label_maps, first_run[1].label_maps)
    assert registered == []
    assert again.report["registration"] == "instance, reused"


def test_scribbles_and_fusion_need_no_registration(volume, memory, registered):
    strokes = np.zeros(volume[1].shape, np.int32)
    strokes[5, 20:22, 20:22] = 3
    propagate(drawn(volume, [0, 8, 16], strokes), replace(FAST, fusion="distance"), memory=memory)
    assert registered == []


def test_added_slice_refines_the_gap_it_lies_in(volume, memory, registered):
    before = memory._remembered.velocity
    again = propagate(drawn(volume, [0, 4, 8, 16]), FAST, memory=memory)
    assert registered == [8]
    after = memory._remembered.velocity
    assert torch.equal(after[8:], before[8:])
    assert all(not torch.equal(after[pair], before[pair]) for pair in range(8))
    assert "8 of 16 pairs" in again.report["messages"][-1]
    cold = propagate(drawn(volume, [0, 4, 8, 16]), FAST)
    for label in (3, 700):
        truth = volume[1] == label
        np.testing.assert_array_equal(again.mask(label)[[0, 4, 8, 16]], truth[[0, 4, 8, 16]])
        assert dice(again.mask(label), truth) > dice(cold.mask(label), truth) - 0.003


def test_corrected_slice_refines_the_gaps_beside_it(volume, memory, registered):
    image, labels = volume
    corrected = keep(labels, [0, 8, 16])
    corrected[0][:, :18][corrected[0][:, :18] == 3] = 0
    propagate(annotate_from_label_volume(image, corrected, SPACING, 0), FAST, memory=memory)
    assert registered == [8]


def test_slices_beyond_the_last_ones_are_registered_from_the_beginning(volume, registered):
    memory = Memory()
    propagate(drawn(volume, [0, 6, 12]), FAST, memory=memory)
    del registered[:]
    again = propagate(drawn(volume, [0, 6, 12, 16]), FAST, memory=memory)
    assert registered == [4, 4, 4]  # pairs 12 to 15 on three levels
    cold = propagate(drawn(volume, [0, 6, 12, 16]), FAST)
    for label in (3, 700):
        truth = volume[1] == label
        assert dice(again.mask(label), truth) > dice(cold.mask(label), truth) - 0.003


def test_slice_taken_away_narrows_the_stack(volume, memory, registered):
    before = memory._remembered.velocity
    propagate(drawn(volume, [8, 16]), FAST, memory=memory)
    assert registered == []
    assert torch.equal(memory._remembered.velocity, before[8:])


@pytest.mark.parametrize(
    "changed",
    [
        lambda annotation: (annotation, replace(FAST, preset="balanced")),
        lambda annotation: (annotation, replace(FAST, registration="network")),
        lambda annotation: (replace(annotation, image=annotation.image + 1), FAST),
        lambda annotation: (replace(annotation, spacing=(2.0, 1.0, 1.0)), FAST),
    ],
)
def test_another_scan_or_way_is_not_the_same(volume, changed):
    annotation = drawn(volume, [0, 8, 16])
    assert fingerprint(*changed(annotation)) != fingerprint(annotation, FAST)


def test_labels_that_leave_the_crop_begin_anew(volume, memory, registered):
    image, labels = volume
    grown = keep(labels, [0, 8, 16])
    grown[8, 0, 0] = 3
    again = propagate(annotate_from_label_volume(image, grown, SPACING, 0), FAST, memory=memory)
    assert registered == [16, 16, 16]
    assert again.report["registration"] == "instance"
    assert "reused" not in " ".join(again.report["messages"])


def test_cancelled_run_leaves_the_memory_as_it_was(volume, memory, first_run):
    with pytest.raises(Cancelled):
        propagate(drawn(volume, [0, 4, 8, 16]), FAST, is_cancelled=lambda: True, memory=memory)
    assert memory._remembered is first_run[0]._remembered
