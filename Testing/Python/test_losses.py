"""Loss terms: their values where they can be worked out by hand, and that they fall where they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from LabelPropLib.filters import noise
from LabelPropLib.registration import instance
from LabelPropLib.registration.consistency import (
    FarEnds,
    far_displacements,
    image_consistency,
    label_consistency,
)
from LabelPropLib.registration.fields import integrate, resize, warp
from LabelPropLib.registration.regularisation import diffusion, through_plane
from LabelPropLib.registration.similarity import robust_difference, soft_dice_loss

SIZE = (40, 44)
SQUARINGS = 4


def discs(centres: list[tuple[float, float]], radius: float = 7.0) -> torch.Tensor:
    """(Z, 1, H, W) soft discs, one per plane."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    planes = [torch.sigmoid(radius - ((rows - r) ** 2 + (columns - c) ** 2).sqrt()) for r, c in centres]
    return torch.stack(planes)[:, None]


def drifting_discs(count: int, shift: tuple[float, float]) -> torch.Tensor:
    """(Z, 1, H, W) discs that move by `shift` from plane to plane."""
    return discs([(18 + k * shift[0], 20 + k * shift[1]) for k in range(count)])


def drift(count: int, shift: tuple[float, float]) -> torch.Tensor:
    """The velocity (Z - 1, 2, h, w), on half the grid, that carries points of plane k + 1 back to plane k."""
    field = -torch.tensor(shift).view(1, 2, 1, 1).expand(count - 1, 2, *SIZE).clone()
    return resize(field, (SIZE[0] // 2, SIZE[1] // 2))


def far_ends(labels: torch.Tensor, bounds: list[tuple[int, int]]) -> FarEnds:
    """Every gap (lower, upper) both ways."""
    moving = tuple(m for lower, upper in bounds for m in (lower, upper))
    fixed = tuple(f for lower, upper in bounds for f in (upper, lower))
    return FarEnds(moving, fixed, labels[list(moving)], labels[list(fixed)])


@settings(max_examples=25)
@given(difference=st.floats(-3, 3), width=st.floats(0.05, 0.5))
def test_robust_difference_of_planes_a_constant_apart(difference, width):
    planes = torch.rand(3, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.full((3,), (difference**2 + width**2) ** 0.5)
    torch.testing.assert_close(robust_difference(planes + difference, planes, width), expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_the_robust_difference_is_that_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    warped, fixed = (torch.randn(3, 2, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    warped.requires_grad_(True), fixed.requires_grad_(True)
    assert torch.autograd.gradcheck(robust_difference, (warped, fixed, 0.3))
    formula = ((warped - fixed) ** 2 + 0.3**2).sqrt().mean(dim=(1, 2, 3))
    torch.testing.assert_close(robust_difference(warped, fixed, 0.3), formula)


def test_robust_difference_is_each_planes_own():
    planes = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    spoilt = planes.clone()
    spoilt[1] += 1
    loss = robust_difference(spoilt, planes)
    assert loss[0] == loss[2] < loss[1]


def test_robust_difference_grows_linearly_with_an_outlier():
    plane = torch.zeros(1, 1, 8, 8)
    outlier = plane.clone()
    outlier[..., 3, 3] = 10
    ratio = (robust_difference(2 * outlier, plane) - 0.1) / (robust_difference(outlier, plane) - 0.1)
    assert ratio.item() == pytest.approx(2, abs=0.02)  # a squared difference would grow fourfold


@settings(max_examples=25)
@given(rows=st.integers(1, 10), columns=st.integers(1, 10), shift=st.integers(0, 10))
def test_soft_dice_loss_of_two_boxes(rows, columns, shift):
    carried, drawn = torch.zeros(1, 1, 24, 12), torch.zeros(1, 1, 24, 12)
    carried[..., 2 : 2 + rows, 1 : 1 + columns] = 1
    drawn[..., 2 + shift : 2 + shift + rows, 1 : 1 + columns] = 1
    overlap = max(rows - shift, 0) * columns
    expected = 1 - (2 * overlap + 1) / (2 * rows * columns + 1)
    assert soft_dice_loss(carried, drawn).item() == pytest.approx(expected, abs=1e-5)


def test_soft_dice_loss_averages_over_labels_and_ignores_absent_ones():
    drawn = torch.zeros(1, 3, 10, 10)
    drawn[:, 0, 2:6, 2:6] = 1
    drawn[:, 1, 6:9, 2:6] = 1
    missed = drawn.clone()
    missed[:, 1] = 0
    assert soft_dice_loss(drawn, drawn).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(missed, drawn).item() == pytest.approx((1 - 1 / 13) / 3, abs=1e-6)


@settings(max_examples=25)
@given(by_row=st.floats(-2, 2), by_column=st.floats(-2, 2), offset=st.floats(-5, 5))
def test_diffusion_of_a_linear_field_is_its_squared_slope(by_row, by_column, offset):
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    component = by_row * rows + by_column * columns + offset
    field = torch.stack([component, torch.zeros_like(component)])[None]
    expected = (by_row**2 + by_column**2) / 2  # one of the two components is constant
    assert diffusion(field).item() == pytest.approx(expected, abs=1e-3)


def test_diffusion_is_each_fields_own():
    fields = torch.zeros(3, 2, 6, 6)
    fields[1, 0, 3, 3] = 1
    loss = diffusion(fields)
    assert loss[0] == loss[2] == 0 < loss[1]


def test_through_plane_sees_only_what_changes_between_pairs():
    field = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)
    assert through_plane(field).tolist() == [0, 0, 0]
    field[2:, 0] += 2
    torch.testing.assert_close(through_plane(field), torch.tensor([0.0, 2.0, 0.0]))


@settings(max_examples=15)
@given(by_row=st.floats(-1, 1), by_column=st.floats(-1, 1))
def test_displacements_add_up_across_gaps_of_different_lengths(by_row, by_column):
    labels = drifting_discs(6, (by_row, by_column))
    ends = far_ends(labels, [(0, 4), (4, 5)])
    displacement = resize(far_displacements(drift(6, (by_row, by_column)), ends, SQUARINGS), SIZE)
    shift = torch.tensor([by_row, by_column])
    for hops, field in zip((-4, 4, -1, 1), displacement):
        torch.testing.assert_close(field[:, 20, 22], hops * shift, atol=1e-3, rtol=1e-3)


def test_far_displacements_compose_the_pairs_in_their_order():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(3, 2, 5, 5, generator=generator)
    velocity = torch.nn.functional.interpolate(coarse, size=(20, 22), mode="bicubic", align_corners=True)
    ends = far_ends(drifting_discs(4, (0, 0)), [(0, 3)])
    from_upper, from_lower = far_displacements(velocity, ends, SQUARINGS)
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(22.0), indexing="ij")

    def follow(hops: list[torch.Tensor]) -> torch.Tensor:
        """Where the points of the plane end up: each hop read where the last one led."""
        coordinates = torch.stack([rows, columns])[None]
        plane = coordinates
        for hop in hops:
            coordinates = coordinates + warp(hop[None], coordinates - plane)
        return (coordinates - plane)[0]

    down, up = integrate(velocity, SQUARINGS), integrate(-velocity, SQUARINGS)
    torch.testing.assert_close(from_upper, follow([down[2], down[1], down[0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(from_lower, follow([up[0], up[1], up[2]]), atol=1e-4, rtol=0)
    assert (from_upper - follow([down[0], down[1], down[2]])).abs().max() > 0.1


@pytest.mark.parametrize("label_size", [SIZE, (20, 22)])
def test_labels_carried_by_the_true_motion_meet_those_at_the_far_end(label_size):
    shift = (1.5, -1.0)
    labels = torch.nn.functional.interpolate(
        drifting_discs(5, shift), size=label_size, mode="bilinear", align_corners=True
    )
    ends = far_ends(labels, [(0, 4)])
    still = label_consistency(far_displacements(torch.zeros_like(drift(5, shift)), ends, SQUARINGS), ends)
    moved = label_consistency(far_displacements(drift(5, shift), ends, SQUARINGS), ends)
    wrong_way = label_consistency(far_displacements(-drift(5, shift), ends, SQUARINGS), ends)
    assert moved.shape == (2,)
    assert (moved < still - 0.2).all() and (still < wrong_way).all()


def test_images_carried_by_the_true_motion_meet_those_at_the_far_end():
    shift = (1.5, -1.0)
    planes = drifting_discs(5, shift)
    ends = far_ends(planes, [(0, 4)])
    still = image_consistency(far_displacements(torch.zeros_like(drift(5, shift)), ends, SQUARINGS), ends, planes)
    moved = image_consistency(far_displacements(drift(5, shift), ends, SQUARINGS), ends, planes)
    assert (moved < still).all()
    assert moved.max() == pytest.approx(0.1, abs=1e-3)  # the least a robust difference can be


@settings(max_examples=10)
@given(deviation=st.floats(0.01, 0.4), slope=st.floats(-1, 1), seed=st.integers(0, 100))
def test_noise_is_measured_beside_slopes_and_edges(deviation, slope, seed):
    images = drifting_discs(3, (1, 1))[:, 0] + slope * torch.linspace(0, 1, SIZE[1])
    noisy = images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    assert noise(images) < 0.005
    assert noise(noisy) == pytest.approx(deviation, rel=0.15)


def test_fields_are_stiffer_the_noisier_the_images():
    schedule = instance.Schedule()
    assert schedule.for_noise(0.9 * instance.LEAST_NOISE) == schedule
    stiff = schedule.for_noise(3 * instance.LEAST_NOISE)
    assert (stiff.smoothness, stiff.coupling) == pytest.approx((3 * schedule.smoothness, 3 * schedule.coupling))
    assert stiff.consistency == schedule.consistency


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_gaps_that_overlap_pull_together(batch):
    """Those of labels that are drawn on different planes, however many pairs are computed at once."""
    planes = drifting_discs(9, (1.5, -1.0))
    velocity, schedule = torch.zeros(8, 2, *SIZE), instance.Schedule()
    gaps = [(0, 6), (2, 4), (3, 8)]
    apart = [instance.consistency_gradient(velocity, far_ends(planes, [gap]), schedule, 100) for gap in gaps]
    together = instance.consistency_gradient(velocity, far_ends(planes, gaps), schedule, batch)
    torch.testing.assert_close(together, sum(apart))


@pytest.mark.parametrize("term", ["labels", "images"])
def test_consistency_pulls_every_pair_of_the_gap_towards_the_true_motion(term):
    shift = (1.5, -1.0)
    planes = drifting_discs(5, shift)
    ends = far_ends(planes, [(0, 4)])
    velocity = torch.zeros_like(drift(5, shift)).requires_grad_(True)
    far = far_displacements(velocity, ends, SQUARINGS)
    loss = label_consistency(far, ends) if term == "labels" else image_consistency(far, ends, planes)
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    towards_truth = -(gradient * drift(5, shift)).sum(dim=(1, 2, 3))
    assert (towards_truth > 0).all()
