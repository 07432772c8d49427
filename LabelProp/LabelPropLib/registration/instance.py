"""Batched per-scan registration: the velocity fields of all neighbouring pairs at once, without a network.

Symmetric stationary velocity fields, optimised coarse to fine by Adam on a robust difference of local contrast
normalised and raw intensities; the fields of consecutive pairs are coupled. A pair that has stopped improving leaves
the batch. Related: Vercauteren et al. 2009 (symmetric log-demons), Siebert et al. 2021 (ConvexAdam), Jena et al. 2024
(FireANTs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..preprocessing import local_contrast_normalise, smooth
from .fields import integrate, resize, warp
from .regularisation import diffusion
from .similarity import robust_difference


@dataclass(frozen=True)
class Schedule:
    """Levels, coarse to fine, and the weights of the terms.

    levels: (reduction of the planes, most steps) per level; velocities live on every second pixel of a level.
    patience: share of its loss that a pair must still gain in `interval` steps to stay in the batch.
    """

    levels: tuple[tuple[int, int], ...] = ((4, 60), (2, 30), (1, 20))
    learning_rate: float = 0.15  # pixels of the level's velocity grid
    smoothness: float = 0.1
    coupling: float = 0.2
    squarings: int = 4
    interval: int = 10
    patience: float = 0.002


def register(
    images: torch.Tensor,
    schedule: Schedule = Schedule(),
    start: torch.Tensor | None = None,
    on_step: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """Velocity fields of all neighbouring planes.

    images: (Z, 1, H, W), about 0 to 1. start: fields to begin with, of any size, for instance the network's.
    on_step: told the fraction done; may raise to end the optimisation.
    Returns (Z - 1, 2, h, w) in pixels of its own grid.
    """
    velocity = start
    total = sum(steps * (images.shape[-1] // reduction) ** 2 for reduction, steps in schedule.levels)
    done = 0.0
    for reduction, steps in schedule.levels:
        planes = appearance(images, reduction)
        height, width = planes.shape[-2:]
        size = (max(4, (height + 1) // 2), max(4, (width + 1) // 2))
        if velocity is None:
            velocity = images.new_zeros(len(images) - 1, 2, *size)
        share = (images.shape[-1] // reduction) ** 2 / total
        velocity = optimise(
            planes, resize(velocity, size), steps, schedule, lambda step: on_step(done + step * share)  # noqa: B023
        )
        done += steps * share
    return velocity


def appearance(images: torch.Tensor, reduction: int) -> torch.Tensor:
    """What is compared: (Z, 2, h, w), local contrast and raw intensity, on a grid `reduction` times coarser.

    Local contrast finds edges under any bias; raw intensity tells tissues apart where there are no edges.
    """
    if reduction > 1:
        size = [max(8, n // reduction) for n in images.shape[-2:]]
        images = F.interpolate(smooth(images, 0.4 * reduction), size=size, mode="bilinear", align_corners=True)
    return torch.cat([local_contrast_normalise(images), 4 * images], dim=1)


def optimise(
    planes: torch.Tensor,
    velocity: torch.Tensor,
    steps: int,
    schedule: Schedule,
    on_step: Callable[[int], None],
) -> torch.Tensor:
    """Adam on one level; `planes` (Z, C, H, W), `velocity` (Z - 1, 2, h, w) is the start, a new one is returned."""
    velocity = velocity.clone()
    momentum, power = torch.zeros_like(velocity), torch.zeros_like(velocity)
    active = torch.arange(len(velocity), device=velocity.device)
    reference = torch.full((len(velocity),), torch.inf, device=velocity.device)
    for step in range(1, steps + 1):
        loss, gradient = loss_and_gradient(planes, velocity, active, schedule)
        momentum[active] = 0.9 * momentum[active] + 0.1 * gradient
        power[active] = 0.99 * power[active] + 0.01 * gradient**2
        direction = (momentum[active] / (1 - 0.9**step)) / ((power[active] / (1 - 0.99**step)).sqrt() + 1e-8)
        velocity[active] -= schedule.learning_rate * direction
        on_step(step)
        if step % schedule.interval == 0:
            improving = loss < (1 - schedule.patience) * reference[active]
            reference[active] = torch.minimum(loss, reference[active])
            active = active[improving]
            if len(active) == 0:
                break
    return velocity


def loss_and_gradient(
    planes: torch.Tensor, velocity: torch.Tensor, active: torch.Tensor, schedule: Schedule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss per active pair and its gradient with respect to their fields; the other pairs' fields stand still."""
    size = planes.shape[-2:]
    field = velocity[active].requires_grad_(True)
    lower, upper = planes[active], planes[active + 1]
    to_lower = resize(integrate(field, schedule.squarings), size)
    to_upper = resize(integrate(-field, schedule.squarings), size)
    loss = (robust_difference(warp(lower, to_lower), upper) + robust_difference(warp(upper, to_upper), lower)) / 2
    loss = loss + schedule.smoothness * diffusion(field)
    neighbours = _mean_of_neighbours(velocity)[active]
    loss = loss + schedule.coupling * ((field - neighbours) ** 2).mean(dim=(1, 2, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), field)
    return loss.detach(), gradient


def _mean_of_neighbours(velocity: torch.Tensor) -> torch.Tensor:
    """Mean of the fields of the pairs before and after, the outermost ones repeated."""
    before = torch.cat([velocity[:1], velocity[:-1]])
    after = torch.cat([velocity[1:], velocity[-1:]])
    return (before + after) / 2
