"""A second run on the same scan: what it takes over from the first, and that its result is as good."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import annotate_from_masks
from test_pipeline import SPACING, dice, keep, tubes

from LabelPropLib import pipeline
from LabelPropLib.annotation import annotate_from_label_volume
from LabelPropLib.errors import Cancelled
from LabelPropLib.memory import Memory, Remembered, fingerprint, fusion_fingerprint, resample
from LabelPropLib.pipeline import propagate
from LabelPropLib.preprocessing import crop_box, prepare
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


def test_more_suggestions_need_no_registration(volume, memory, registered):
    again = propagate(drawn(volume, [0, 8, 16]), replace(FAST, suggestions=3), memory=memory)
    assert registered == [] and len(again.report["suggested_slices"]) == 3


def test_scribbles_and_fusion_need_no_registration(volume, memory, registered):
    strokes = np.zeros(volume[1].shape, np.int32)
    strokes[5, 20:22, 20:22] = 3
    propagate(drawn(volume, [0, 8, 16], strokes), replace(FAST, fusion="distance", graph_cut=False), memory=memory)
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
    told = []
    again = propagate(drawn(volume, [0, 6, 12, 16]), FAST, lambda done, _: told.append(done), memory=memory)
    assert told == sorted(told) and told[-1] == 1.0
    assert registered == [4, 4, 4]  # pairs 12 to 15 on three levels
    cold = propagate(drawn(volume, [0, 6, 12, 16]), FAST)
    for label in (3, 700):
        truth = volume[1] == label
        assert dice(again.mask(label), truth) > dice(cold.mask(label), truth) - 0.003


def test_slice_before_the_first_one_widens_the_stack(volume, registered):
    memory = Memory()
    propagate(drawn(volume, [4, 8, 12]), FAST, memory=memory)
    before = memory._remembered.velocity
    del registered[:]
    propagate(drawn(volume, [0, 4, 8, 12]), FAST, memory=memory)
    assert registered == [4, 4, 4]
    assert torch.equal(memory._remembered.velocity[4:], before)


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
        lambda annotation: (replace(annotation, second_image=annotation.image), FAST),
        lambda annotation: (replace(annotation, spacing=(2.0, 1.0, 1.0)), FAST),
    ],
)
def test_another_scan_or_way_is_not_the_same(volume, changed):
    annotation = drawn(volume, [0, 8, 16])
    assert fingerprint(*changed(annotation)) != fingerprint(annotation, FAST)


def test_labels_that_leave_the_crop_move_it_over_the_fields(volume, registered):
    memory = Memory()
    image, labels = volume
    grown = keep(labels, [0, 8, 16])
    small = np.where(grown == 3, 3, 0)
    small[:, 30:] = small[:, :, 30:] = 0
    propagate(annotate_from_label_volume(image, small, SPACING, 0), FAST, memory=memory)
    old = memory._remembered.box
    del registered[:]
    small[0] = np.where(grown[0] == 3, 3, 0)
    small[0, 30:40, 20] = 3
    again = propagate(annotate_from_label_volume(image, small, SPACING, 0), FAST, memory=memory)
    assert memory._remembered.box != old
    assert registered == [8, 8, 8]  # the gap that the grown slice bounds, on three levels
    assert again.report["registration"] == "instance, reused"


@pytest.mark.parametrize("corner", [None, (0, 20), (-1, 20), (20, 0), (20, -1)])
def test_the_crop_is_made_anew_where_a_label_comes_near_to_any_of_its_sides(corner):
    labels = np.zeros((3, 120, 120), np.int32)
    labels[[0, 2], 50:70, 50:70] = 1
    image = np.random.default_rng(0).random(labels.shape)
    rows, columns = box = crop_box(annotate_from_label_volume(image, labels, SPACING, 0))
    assert min(rows.start, columns.start) > 0 and max(rows.stop, columns.stop) < 120
    if corner is not None:
        labels[2][box][corner] = 1
    remembered = Remembered(0, box, torch.zeros(2, 2, 8, 8), frozenset())
    again = remembered.box_around(annotate_from_label_volume(image, labels, SPACING, 0))
    assert (again == box) == (corner is None)


def test_nothing_worth_keeping_begins_anew(volume, registered):
    """A slice between the only two, that moves the crop as well: every pair would go through all levels."""
    memory = Memory()
    image, labels = volume
    small = np.where(keep(labels, [0, 16]) == 3, 3, 0)
    small[:, 30:] = small[:, :, 30:] = 0
    propagate(annotate_from_label_volume(image, small, SPACING, 0), FAST, memory=memory)
    small[8, 20:40, 20] = 3
    again = propagate(annotate_from_label_volume(image, small, SPACING, 0), FAST, memory=memory)
    assert registered == [16, 16, 16, 16, 16, 16]
    assert again.report["registration"] == "instance"


def test_labels_elsewhere_begin_anew(volume, registered):
    memory = Memory()
    image, _ = volume
    for corner in (0, 44):
        labels = np.zeros(image.shape, np.int32)
        labels[[0, 8, 16], corner : corner + 12, corner : corner + 12] = 3
        again = propagate(annotate_from_label_volume(image, labels, SPACING, 0), FAST, memory=memory)
    assert registered == [16, 16, 16, 16, 16, 16]
    assert again.report["registration"] == "instance"


@given(st.tuples(*[st.integers(0, 8)] * 4), st.integers(6, 20), st.integers(6, 20))
def test_resampled_fields_move_the_same_points(start, rows, columns):
    """A displacement that is linear in space is found again on any other grid within the crop, in its pixels."""
    box = (slice(2, 42), slice(5, 35))
    new_box = (slice(2 + start[0], 42 - start[1]), slice(5 + start[2], 35 - start[3]))

    def linear(box, size):
        pitches = [(s.stop - s.start - 1) / (n - 1) for s, n in zip(box, size, strict=True)]
        points = np.meshgrid(*(s.start + np.arange(n) * p for s, n, p in zip(box, size, pitches, strict=True)))
        displacement = np.stack([0.1 * points[0].T - 2, 0.05 * points[1].T + 1])
        return torch.from_numpy(displacement / np.reshape(pitches, (2, 1, 1)))[None].float()

    found = resample(linear(box, (20, 16)), box, new_box, (rows, columns))
    torch.testing.assert_close(found, linear(new_box, (rows, columns)), atol=1e-4, rtol=1e-4)


def test_run_that_is_cancelled_while_it_registers_leaves_the_memory_as_it_was(volume, memory, first_run):
    stages = []
    with pytest.raises(Cancelled):
        propagate(
            drawn(volume, [0, 4, 8, 16]),
            FAST,
            lambda fraction, stage: stages.append(stage),
            is_cancelled=lambda: "Registering" in stages,
            memory=memory,
        )
    assert memory._remembered is first_run[0]._remembered


def test_an_update_keeps_the_pull_of_gaps_that_share_pairs_with_what_is_refined(volume, monkeypatch):
    """Those of labels that are drawn on other slices than the one that was corrected."""
    image, labels = volume
    masks = {3: keep(labels == 3, [0, 6, 12]), 700: keep(labels == 700, [3, 9, 15])}
    memory, seen = Memory(), []
    consistency_gradient = instance.consistency_gradient

    def watched(velocity, ends, schedule, batch):
        seen.append((len(velocity), ends.gaps))
        return consistency_gradient(velocity, ends, schedule, batch)

    for shift in (0, 2):
        masks[700][9] = np.roll(masks[700][9], shift, axis=0)
        monkeypatch.setattr(instance, "consistency_gradient", watched if shift else consistency_gradient)
        propagate(annotate_from_masks(image, masks, SPACING, axis=0, missing="unknown"), FAST, memory=memory)
    assert seen and all(found == (15, {(0, 6), (3, 9), (6, 12), (9, 15)}) for found in seen)


def test_other_weights_in_the_same_file_are_another_way(volume, tmp_path):
    annotation, settings = drawn(volume, [0, 8]), replace(FAST, checkpoint=str(tmp_path / "weights.pt"))
    stack = prepare(annotation, 80)
    seen = set()
    for content in (b"one", b"other"):
        (tmp_path / "weights.pt").write_bytes(content)
        seen.add((fingerprint(annotation, settings), repr(fusion_fingerprint(annotation, settings, stack))))
    assert len({one for one, _ in seen}) == len({two for _, two in seen}) == 2


def test_what_was_fused_is_not_taken_over_on_another_working_grid(volume):
    annotation = drawn(volume, [0, 8, 16])
    coarse, fine = (prepare(annotation, pixels) for pixels in (24, 80))
    assert coarse.crop == fine.crop and coarse.size != fine.size
    assert fusion_fingerprint(annotation, FAST, coarse) != fusion_fingerprint(annotation, FAST, fine)


def test_marks_of_absence_are_not_taken_for_what_was_fused_without_them(volume):
    annotation = drawn(volume, [0, 8, 16])
    marked = replace(annotation, absent={**annotation.absent, 3: frozenset({4})})
    stack = prepare(annotation, 80)
    assert fusion_fingerprint(marked, FAST, stack) != fusion_fingerprint(annotation, FAST, stack)


def test_a_gap_that_no_label_pulls_any_more_is_refined(volume, registered):
    image, labels = volume
    memory = Memory()
    masks = {3: keep(labels == 3, [0, 8, 16]), 700: keep(labels == 700, [16])}
    propagate(annotate_from_masks(image, masks, SPACING, axis=0), FAST, memory=memory)
    del registered[:]
    masks[3][16] = False
    propagate(annotate_from_masks(image, masks, SPACING, axis=0), FAST, memory=memory)
    assert registered == [8]


def test_strokes_of_a_run_are_not_in_the_directions_of_the_next_one(volume):
    memory, both = Memory(), replace(FAST, directions=True)
    (found,) = propagate(drawn(volume, [0, 8, 16]), both, memory=memory).directions["up"]
    before = found.copy()
    strokes = np.zeros(volume[1].shape, np.int32)
    strokes[tuple(np.argwhere(before[5:6])[0] + (5, 0, 0))] = 255
    for scribbles in (strokes, None):
        (found,) = propagate(drawn(volume, [0, 8, 16], scribbles), both, memory=memory).directions["up"]
        assert np.array_equal(found, before) == (scribbles is None)


def test_a_plan_that_goes_on_where_one_failed_in_the_same_run_reuses_nothing(volume, monkeypatch):
    """The first plan had registered all when memory ran out."""
    fuse, failures = pipeline.fuse_gaps, [MemoryError()]
    monkeypatch.setattr(pipeline, "fuse_gaps", lambda *rest: fuse(*rest) if not failures else raised(failures.pop()))
    report = propagate(drawn(volume, [0, 8, 16]), FAST, memory=Memory()).report
    assert report["registration"] == "instance" and any("smaller batches" in text for text in report["messages"])
    assert not any("reused" in text for text in report["messages"])


def test_what_an_earlier_run_had_registered_is_told_although_a_plan_failed(volume, monkeypatch):
    memory = Memory()
    propagate(drawn(volume, [0, 8, 16]), FAST, memory=memory)
    fuse, failures = pipeline.fuse_gaps, [MemoryError()]
    monkeypatch.setattr(pipeline, "fuse_gaps", lambda *rest: fuse(*rest) if not failures else raised(failures.pop()))
    report = propagate(drawn(volume, [0, 4, 8, 16]), FAST, memory=memory).report
    assert report["registration"] == "instance, reused"
    assert any("8 of 16 pairs" in text for text in report["messages"])


def raised(error):
    raise error
