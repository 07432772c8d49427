"""Fields: what warping, composing, integrating and resizing must do, on fields whose answer is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from LabelPropLib.registration.fields import (
    compose,
    identity,
    integrate,
    resize,
    sample,
    warp,
    warp_along,
)

sizes = st.tuples(st.integers(8, 40), st.integers(8, 40))
shifts = st.tuples(st.floats(-2, 2), st.floats(-2, 2))


def smooth_velocity(seed: int, size: tuple[int, int], amplitude: float = 2.0) -> torch.Tensor:
    """(1, 2, H, W) random velocity of few low frequencies, at rest on the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.zeros(1, 2, 6, 6)
    coarse[..., 1:-1, 1:-1] = torch.randn(1, 2, 4, 4, generator=generator)
    field = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    return amplitude * field / field.abs().max()


def shift_field(shift: tuple[float, float], size: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(shift, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, *size).clone()


def ramp(size: tuple[int, int], by_row: float, by_column: float) -> torch.Tensor:
    """(1, 1, H, W) plane that is linear in its coordinates, so that bilinear sampling is exact."""
    rows, columns = identity(*size)[0]
    return (by_row * rows + by_column * columns)[None, None]


def interior(field: torch.Tensor, margin: int) -> torch.Tensor:
    return field[..., margin:-margin, margin:-margin]


def test_identity_counts_rows_then_columns():
    grid = identity(3, 5)
    assert grid.shape == (1, 2, 3, 5)
    assert grid[0, :, 2, 4].tolist() == [2, 4]


@settings(max_examples=25)
@given(size=sizes, seed=st.integers(0, 1000))
def test_sampling_at_pixel_centres_returns_the_pixels(size, seed):
    planes = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sample(planes, identity(*size).expand(2, -1, -1, -1)), planes, atol=1e-4, rtol=0)


def test_samples_beyond_the_border_take_the_value_of_the_border():
    plane = ramp((8, 9), 1.0, 10.0)
    points = torch.tensor([[-5.0, 3.0], [20.0, 40.0]]).T.view(1, 2, 1, 2)
    torch.testing.assert_close(sample(plane, points).flatten(), torch.tensor([30.0, 87.0]))


@settings(max_examples=25)
@given(size=sizes, shift=shifts)
def test_warp_looks_up_the_moving_plane_at_x_plus_u(size, shift):
    warped = warp(ramp(size, 1.0, -3.0), shift_field(shift, size))
    expected = ramp(size, 1.0, -3.0) + shift[0] - 3 * shift[1]
    torch.testing.assert_close(interior(warped, 3), interior(expected, 3), atol=1e-3, rtol=0)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), size=st.tuples(st.integers(24, 48), st.integers(24, 48)))
def test_warping_by_a_composition_is_warping_twice(seed, size):
    first, second = smooth_velocity(seed, size, 1.5), smooth_velocity(seed + 1, size, 1.5)
    moving = ramp(size, 2.0, 1.0)
    twice = warp(warp(moving, second), first)
    torch.testing.assert_close(interior(warp(moving, compose(first, second)), 4), interior(twice, 4), atol=5e-3, rtol=0)


def test_composition_runs_the_first_field_first():
    size = (16, 16)
    doubling_rows = torch.zeros(1, 2, *size)
    doubling_rows[:, 0] = identity(*size)[:, 0]  # x -> 2x
    one_up = shift_field((1.0, 0.0), size)
    assert compose(one_up, doubling_rows)[0, 0, 3, 0] + 3 == 8  # (3 + 1) * 2
    assert compose(doubling_rows, one_up)[0, 0, 3, 0] + 3 == 7  # 3 * 2 + 1


@settings(max_examples=25)
@given(size=sizes, shift=shifts, squarings=st.integers(0, 7))
def test_a_constant_velocity_moves_by_itself(size, shift, squarings):
    field = shift_field(shift, size)
    torch.testing.assert_close(integrate(field, squarings), field, atol=1e-4, rtol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_the_exponentials_of_v_and_minus_v_are_inverse(seed):
    velocity = smooth_velocity(seed, (40, 44), 2.0)
    there, back = integrate(velocity, 6), integrate(-velocity, 6)
    assert there.abs().max() > 1
    assert compose(there, back).abs().max() < 0.1
    assert compose(back, there).abs().max() < 0.1


def test_integration_converges_to_the_exponential_of_a_linear_field():
    """v(x) = a (x - c) moves x to c + e^a (x - c)."""
    size, rate = (33, 33), -0.2
    from_centre = identity(*size) - 16
    expected = (math.exp(rate) - 1) * from_centre
    errors = [(integrate(rate * from_centre, n) - expected).abs().max().item() for n in (0, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_the_exponential_does_not_fold_where_the_field_as_a_displacement_would():
    rows = identity(48, 20)[0, 0]
    velocity = torch.stack([-10 * torch.sin(2 * math.pi * rows / 47), torch.zeros_like(rows)])[None]
    assert jacobian_determinant(velocity).min() < 0
    assert jacobian_determinant(integrate(velocity, 7)).min() > 0


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), size=sizes, reduction=st.integers(1, 3), squarings=st.integers(0, 4))
def test_warping_along_a_velocity_is_warping_by_its_exponential(seed, size, reduction, squarings):
    """Planes and gradients, whatever grid the velocity is on; beside the pixels' centres, where gradients jump."""
    moving = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(seed))
    velocity = (0.37 + smooth_velocity(seed, [max(4, n // reduction) for n in size], 1.0)).requires_grad_(True)
    along = warp_along(moving, velocity, squarings)
    by_displacement = warp(moving, resize(integrate(velocity, squarings), size))
    torch.testing.assert_close(along, by_displacement, atol=1e-4, rtol=0)
    weights = torch.rand(along.shape, generator=torch.Generator().manual_seed(seed + 1))
    gradients = [torch.autograd.grad((weights * seen).sum(), velocity)[0] for seen in (along, by_displacement)]
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_the_jacobian_shows_scale_and_folds():
    size = (10, 12)
    grid = identity(*size)
    stretched = torch.stack([0.5 * grid[0, 0], -0.25 * grid[0, 1]])[None]
    torch.testing.assert_close(jacobian_determinant(stretched), torch.full((1, 9, 11), 1.5 * 0.75))
    mirrored = torch.stack([-2 * grid[0, 0], 0 * grid[0, 1]])[None]
    assert (jacobian_determinant(mirrored) < 0).all()


@pytest.mark.parametrize("size", [(16, 20), (31, 9), (8, 8)])
def test_a_resized_field_moves_the_same_points_to_the_same_places(size):
    """On a linear field, exact under bilinear interpolation, in coordinates from corner to corner."""
    old = (9, 13)
    old_extent, new_extent = (torch.tensor([n - 1 for n in s]).view(1, 2, 1, 1) for s in (old, size))
    field = (identity(*old) / old_extent) * torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    expected = identity(*size) / new_extent * torch.tensor([2.0, -1.0]).view(1, 2, 1, 1) * new_extent / old_extent
    torch.testing.assert_close(resize(field, size), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=20)
@given(shift=shifts, size=sizes)
def test_resizing_there_and_back_keeps_a_shift(shift, size):
    field = shift_field(shift, (12, 14))
    torch.testing.assert_close(resize(resize(field, size), (12, 14)), field, atol=1e-5, rtol=1e-5)


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """Determinant (N, H - 1, W - 1) of d(x + u(x))/dx by forward differences; not positive where the field folds."""
    along_rows = (displacement[:, :, 1:, :] - displacement[:, :, :-1, :])[..., :-1]
    along_columns = (displacement[:, :, :, 1:] - displacement[:, :, :, :-1])[:, :, :-1]
    return (1 + along_rows[:, 0]) * (1 + along_columns[:, 1]) - along_rows[:, 1] * along_columns[:, 0]
