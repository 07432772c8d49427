"""The registration network and its training on one scan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from LabelPropLib.registration.consistency import FarEnds, far_displacements, label_consistency
from LabelPropLib.registration.fields import integrate, resize, warp
from LabelPropLib.registration.network import RegistrationNetwork, demons_force
from LabelPropLib.registration.training import Course, Phase, fit, new_network, predict, register

SHORT = Course(phases=(Phase(reduction=2, steps=3, rate=2e-3), Phase(reduction=1, steps=2, rate=1e-3)))


def moving_ellipse(planes: int, size: tuple[int, int] = (48, 56), shift: float = 1.0) -> torch.Tensor:
    """(Z, 1, H, W) soft masks of an ellipse that moves `shift` pixels per plane along the columns."""
    rows, columns = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    centre = torch.arange(planes).view(-1, 1, 1) * shift + 20
    radius = (((rows - 24) / 12) ** 2 + ((columns - centre) / 9) ** 2).sqrt()
    return torch.sigmoid(10 * (1 - radius))[:, None]


def ends_of(labels: torch.Tensor) -> FarEnds:
    """The first and the last plane, both ways."""
    last = len(labels) - 1
    return FarEnds((0, last), (last, 0), labels[[0, last]], labels[[last, 0]])


def test_network_is_small():
    assert 50_000 < sum(p.numel() for p in RegistrationNetwork().parameters()) < 110_000


@settings(max_examples=15)
@given(height=st.integers(8, 61), width=st.integers(8, 61), pairs=st.integers(1, 3))
def test_planes_of_any_size_give_a_field_of_half_the_resolution_nearly_at_rest(height, width, pairs):
    planes = torch.rand(pairs + 1, 2, height, width, generator=torch.Generator().manual_seed(0))
    velocity = RegistrationNetwork()(planes[:-1], planes[1:])
    assert velocity.shape == (pairs, 2, (height + 1) // 2, (width + 1) // 2)
    assert velocity.abs().max() < 0.1


def test_pairs_of_a_batch_do_not_influence_each_other():
    planes = torch.rand(4, 2, 30, 21, generator=torch.Generator().manual_seed(0))
    network = RegistrationNetwork()
    together = network(planes[:-1], planes[1:])
    torch.testing.assert_close(network(planes[1:2], planes[2:3]), together[1:2])


def test_demons_force_is_the_small_motion_that_explains_the_difference():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    lower = (0.5 * rows - 2 * columns)[None, None]
    upper = lower + 0.01 * 0.5 - 0.02 * -2  # lower(x + u), u = (0.01, -0.02)
    force = demons_force((lower + upper) / 2, upper - lower)
    assert force.shape == (1, 2, 20, 30)
    explained = lower + 0.5 * force[:, :1] - 2 * force[:, 1:]
    torch.testing.assert_close(explained, upper, atol=1e-3, rtol=0)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), contrast=st.floats(0, 100))
def test_demons_force_is_at_most_half_a_pixel(seed, contrast):
    generator = torch.Generator().manual_seed(seed)
    mean, difference = (contrast * torch.randn(1, 1, 12, 12, generator=generator) for _ in range(2))
    assert demons_force(mean, difference).norm(dim=1).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("channels", [1, 2])
def test_training_finds_the_motion_of_a_scan(channels):
    """Also where a first channel of noise does not show it."""
    images = moving_ellipse(6)
    noise = torch.rand(6, channels - 1, 48, 56, generator=torch.Generator().manual_seed(0))
    course = Course(phases=(Phase(reduction=1, steps=40, rate=4e-3),))
    velocity = register(torch.cat([noise, images], dim=1), course=course)
    to_lower = resize(integrate(velocity, 4), images.shape[-2:])
    to_upper = resize(integrate(-velocity, 4), images.shape[-2:])
    still = ((images[:-1] - images[1:]) ** 2).mean()
    assert ((warp(images[:-1], to_lower) - images[1:]) ** 2).mean() < still / 4
    assert ((warp(images[1:], to_upper) - images[:-1]) ** 2).mean() < still / 4


def test_labels_at_the_far_end_teach_what_the_images_do_not_show():
    labels = moving_ellipse(6)
    images = torch.rand(1, 1, 48, 56, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1, 1)
    ends = ends_of(labels)
    course = Course(phases=(Phase(reduction=1, steps=40, rate=4e-3),), image_consistency=0, label_consistency=1)

    def loss(velocity):
        return label_consistency(far_displacements(velocity, ends, 4), ends).mean()

    assert loss(register(images, ends, course=course)) < 0.85 * loss(register(images, None, course=course))


def test_the_same_seed_gives_the_same_fields_and_leaves_the_random_state_alone():
    images = moving_ellipse(4)
    before = torch.get_rng_state()
    first = register(images, ends_of(images), seed=3, course=SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(register(images, ends_of(images), seed=3, course=SHORT), first)
    assert not torch.equal(register(images, ends_of(images), seed=4, course=SHORT), first)
    assert not first.requires_grad


def test_progress_runs_from_above_nothing_to_all():
    told = []
    register(moving_ellipse(3), course=SHORT, on_step=told.append)
    assert len(told) == 5
    assert told == sorted(told) and told[0] > 0 and told[-1] == pytest.approx(1)


def test_training_ends_when_told_to():
    class Enough(Exception):
        pass

    told = []

    def stop(fraction):
        told.append(fraction)
        raise Enough

    with pytest.raises(Enough):
        register(moving_ellipse(3), course=SHORT, on_step=stop)
    assert len(told) == 1


def test_training_starts_from_a_network_and_leaves_it_as_it_was():
    images = moving_ellipse(5)
    start = new_network(0)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    losses = []
    trained = fit(images, seed=9, course=SHORT, start=start, on_loss=losses.append)
    assert len(losses) == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    again = fit(images, seed=4, course=SHORT, start=start)  # the seed is that of first weights, which there are
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_each_level_of_a_prediction_sees_what_the_one_before_left():
    images = moving_ellipse(5, shift=2.0)
    network = fit(images, course=Course(phases=(Phase(reduction=2, steps=40, rate=5e-3),)))
    seen = []

    def watched(lower, upper):
        seen.append(((upper - lower) ** 2).mean())
        return network(lower, upper)

    velocity = predict(watched, images, (2, 2))
    assert not velocity.requires_grad
    assert seen[1] < seen[0] / 3


def test_prediction_in_small_batches_is_the_same():
    images = moving_ellipse(5)
    network = fit(images, course=SHORT)
    whole, parts = (predict(network, images, (2, 1), batch_pixels=pixels) for pixels in (2**22, 1))
    assert whole.shape == (4, 2, 24, 28)
    torch.testing.assert_close(whole, parts)
