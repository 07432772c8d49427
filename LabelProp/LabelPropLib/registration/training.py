"""Training of the registration network on the scan itself, as LabelProp does (Decaux et al., Pattern Recognition 2023).

All neighbouring pairs are one batch, and every step serves both directions and all labels. The loss has the terms of
the paper: image similarity and smoothness of every pair and, where two annotated planes bound a gap, the labels and the
image carried across it against those at its far end, both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..clock import portion
from .consistency import FarEnds, far_displacements, image_consistency, label_consistency, on_grid
from .fields import resize, warp_along
from .instance import appearance, field_size
from .network import RegistrationNetwork
from .regularisation import diffusion, through_plane
from .similarity import robust_difference

SQUARINGS = 4
PREDICTION_REDUCTIONS = (4, 2, 1)  # of a network that has seen other scans


@dataclass(frozen=True)
class Phase:
    """A part of the training: `steps` steps of Adam at `rate` on planes `reduction` times coarser."""

    reduction: int
    steps: int
    rate: float


@dataclass(frozen=True)
class Course:
    """Phases, coarse to fine, and the weights of the terms against the image term, per pair."""

    phases: tuple[Phase, ...] = (Phase(4, 150, 5e-3), Phase(2, 120, 4e-3))
    smoothness: float = 0.1
    coupling: float = 0.1
    label_consistency: float = 0.03
    image_consistency: float = 0.02


FROM_SCRATCH = Course()
PRETRAINED = Course(phases=(Phase(2, 60, 2e-3),))


def course_for(start: RegistrationNetwork | None) -> Course:
    """The course on a scan: a network that has seen others needs fewer steps, and no coarse ones."""
    return FROM_SCRATCH if start is None else PRETRAINED


def register(
    images: torch.Tensor,
    ends: FarEnds | None = None,
    seed: int = 0,
    course: Course = Course(),
    start: RegistrationNetwork | None = None,
    on_step: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """Velocity fields of all neighbouring planes by a network trained on them, see `fit` and `predict`.

    One that has seen other scans predicts from coarse to fine; one from random weights where it was trained last.
    """
    network = fit(images, ends, seed, course, start, on_step)
    return predict(network, images, [course.phases[-1].reduction] if start is None else PREDICTION_REDUCTIONS)


def fit(
    images: torch.Tensor,
    ends: FarEnds | None = None,
    seed: int = 0,
    course: Course = Course(),
    start: RegistrationNetwork | None = None,
    on_step: Callable[[float], None] = lambda fraction: None,
    on_loss: Callable[[float], None] = lambda loss: None,
) -> RegistrationNetwork:
    """A network trained on neighbouring planes.

    images: (Z, C, H, W), about 0 to 1. ends: labels on annotated planes. start: the network to begin with, for as many
    images, which is not changed. seed: of the first weights without `start`; the same seed gives the same weights on
    the CPU. PyTorch's own random state is left as it was. on_step: called with the fraction done; may raise to end the
    training. on_loss: called with the loss before every step.
    """
    network = copy.deepcopy(start) if start is not None else new_network(seed, images.shape[1])
    network = network.to(images.device)
    costs = [phase.steps / phase.reduction**2 for phase in course.phases]
    for number, phase in enumerate(course.phases):
        report = portion(on_step, sum(costs[:number]), costs[number], sum(costs))
        planes = appearance(images, phase.reduction)
        train(network, planes, on_grid(ends, planes.shape[-2:]), course, phase, report, on_loss)
    return network


@torch.no_grad()
def predict(
    network: RegistrationNetwork, images: torch.Tensor, reductions: Sequence[int], batch_pixels: int = 2**22
) -> torch.Tensor:
    """Velocity fields (Z - 1, 2, h, w), in pixels of their own grid, of planes (Z, C, H, W), without training.

    reductions: how much coarser the planes are made, one after the other. From the second time on the network sees each
    pair carried halfway to meet by what was found so far, and what it finds is added (to first order the composition,
    as in symmetric log-demons; Vercauteren et al., 2008). batch_pixels: computed at once, which bounds the memory.
    """
    velocity = None
    for number, reduction in enumerate(reductions):
        planes = appearance(images, reduction)
        grid = field_size(planes)
        velocity = images.new_zeros(len(images) - 1, 2, *grid) if velocity is None else resize(velocity, grid)
        for pairs in torch.arange(len(velocity)).split(max(1, batch_pixels // planes[0, 0].numel())):
            half = velocity[pairs] / 2
            lower, upper = planes[pairs], planes[pairs + 1]
            if number > 0:
                lower, upper = warp_along(lower, half, SQUARINGS), warp_along(upper, -half, SQUARINGS)
            velocity[pairs] += network(lower, upper)
    return velocity


def new_network(seed: int, images: int = 1) -> RegistrationNetwork:
    """A network of random weights for scans of one image or several, the same for the same seed.

    PyTorch's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RegistrationNetwork(channels=2 * images)


def train(
    network: RegistrationNetwork,
    planes: torch.Tensor,
    ends: FarEnds | None,
    course: Course,
    phase: Phase,
    on_step: Callable[[float], None] = lambda fraction: None,
    on_loss: Callable[[float], None] = lambda loss: None,
):
    """Adam (Kingma & Ba, 2015) with a cosine-annealed rate, in place; planes: (Z, C, H, W)."""
    optimiser = torch.optim.Adam(network.parameters(), lr=phase.rate)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, phase.steps)
    for step in range(1, phase.steps + 1):
        loss = training_loss(network(planes[:-1], planes[1:]), planes, ends, course)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        annealing.step()
        on_loss(loss.item())
        on_step(step / phase.steps)


def training_loss(velocity: torch.Tensor, planes: torch.Tensor, ends: FarEnds | None, course: Course) -> torch.Tensor:
    """Weighted sum of all terms, a scalar, averaged over the pairs.

    velocity: (Z - 1, 2, h, w); planes: (Z, C, H, W). A gap counts as often as it has pairs.
    """
    lower, upper = planes[:-1], planes[1:]
    upwards = robust_difference(warp_along(lower, velocity, SQUARINGS), upper)
    downwards = robust_difference(warp_along(upper, -velocity, SQUARINGS), lower)
    loss = (upwards + downwards).sum() / 2
    loss = loss + course.smoothness * diffusion(velocity).sum() + course.coupling * through_plane(velocity).sum()
    if ends is not None:
        far = far_displacements(velocity, ends, SQUARINGS)
        loss = loss + course.label_consistency * (ends.hops * label_consistency(far, ends)).sum()
        loss = loss + course.image_consistency * (ends.hops * image_consistency(far, ends, planes)).sum()
    return loss / len(velocity)
