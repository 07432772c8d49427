"""Batched per-scan registration: the velocity fields of all neighbouring pairs at once, without a network.

Symmetric stationary velocity fields, optimised coarse to fine by Adam on a robust difference of local contrast
normalised and raw intensities; the fields of consecutive pairs are coupled. A pair that has stopped improving leaves
the batch of a coarse level. On the finest level labels carried across a gap are pulled onto those drawn at its far end.
Related: Vercauteren et al. 2008 (symmetric log-demons), Siebert et al. 2021 (ConvexAdam), Jena et al. 2024 (FireANTs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from ..clock import portion
from ..filters import channel_weights, local_contrast_normalise, smooth
from ..parallel import processors, side_by_side
from .consistency import FarEnds, far_displacements, label_consistency, on_grid
from .fields import resize, warp_along
from .regularisation import diffusion
from .similarity import robust_difference

PLANES_AT_ONCE = 16  # that are filtered, which bounds the memory
LABEL_INTERVAL = 2  # steps from one look at the labels to the next; looking in every step gained nothing
FEWEST_STEPS = 4  # on a level: with fewer, what the finest one adds is lost
INTENSITY_WEIGHT = 4.0  # of raw intensity against local contrast
ADAM = (0.9, 0.99)  # decay of the first and the second moment
LEAST_NOISE = 0.05  # standard deviation, of normalised intensities; with less, fields need not be stiffer
SQUARINGS = 2  # of scaling and squaring; neighbouring slices are near each other
ANTIALIASING = 0.4  # standard deviation of the Gaussian before a reduction, in pixels of the coarser grid
LEAST_SHARE = 2**16  # fewest pixels of planes that are worth a processor of their own


@dataclass(frozen=True)
class Level:
    """A level, coarse to fine: planes `reduction` times coarser, at most `steps` steps of about `rate` pixels."""

    reduction: int
    steps: int
    rate: float = 0.15

    def rate_at(self, step: int) -> float:
        """`rate` up to the middle of the steps, counted from 1, then falling evenly towards 0.

        Where the images show nothing, Adam still takes full steps, along noise as small as that of rounding. With a
        falling rate fewer steps are as good, and the Dice depends less on how the processor rounds.
        """
        return self.rate * min(1.0, 2 * (1 - (step - 1) / self.steps))

    def shortened(self, share: float) -> Level:
        """The level with a share of its steps, but no fewer than FEWEST_STEPS if it has them."""
        return replace(self, steps=min(self.steps, max(FEWEST_STEPS, round(share * self.steps))))


@dataclass(frozen=True)
class Schedule:
    """Levels, coarse to fine, and the weights of the terms against the image term, per pair.

    A velocity field has half the resolution of its level's planes. patience: the share of its loss that a pair must
    gain in `interval` steps, an even number, to stay in the batch. batch_pixels: of all pairs computed at once, which
    bounds the memory.
    """

    levels: tuple[Level, ...] = (Level(4, 60), Level(2, 30), Level(1, 20, rate=0.1))
    smoothness: float = 0.1
    coupling: float = 0.2
    consistency: float = 0.01
    interval: int = 10
    patience: float = 0.002
    batch_pixels: int = 2**22

    def for_noise(self, noise: float) -> Schedule:
        """The schedule for images with noise of this standard deviation.

        The more of a difference is noise, the more the fields follow it. Of a robust difference it is in proportion to
        the noise, so the terms that hold the fields back are given as much more weight; none up to LEAST_NOISE.
        """
        stiffness = max(1.0, noise / LEAST_NOISE)
        return replace(self, smoothness=stiffness * self.smoothness, coupling=stiffness * self.coupling)


def register(
    images: torch.Tensor,
    ends: FarEnds | None = None,
    schedule: Schedule = Schedule(),
    start: torch.Tensor | None = None,
    on_step: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """Velocity fields of all neighbouring planes.

    images: (Z, C, H, W), about 0 to 1. ends: labels on annotated planes, for the finest level. start: fields to begin
    with, of any size, for instance the network's. on_step: called with the fraction done; may raise to end the work.
    Returns (Z - 1, 2, h, w) in pixels of its own grid.
    """
    velocity = start
    costs = [level.steps / level.reduction**2 for level in schedule.levels]
    for number, level in enumerate(schedule.levels):
        planes = appearance(images, level.reduction)
        size = field_size(planes)
        velocity = images.new_zeros(len(images) - 1, 2, *size) if velocity is None else resize(velocity, size)
        finest = number == len(schedule.levels) - 1
        report = portion(on_step, sum(costs[:number]), costs[number], sum(costs))
        velocity = optimise(planes, velocity, level, schedule, ends if finest else None, report)
    return velocity


def refine(
    images: torch.Tensor,
    velocity: torch.Tensor,
    pairs: Sequence[int],
    ends: FarEnds | None = None,
    schedule: Schedule = Schedule(),
    on_step: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """`velocity` with the fields of `pairs` optimised further on the finest level; those of the other pairs stay.

    images, ends, on_step: see `register`; ends: of the gaps that share a pair with `pairs`, all others are left out.
    velocity: (Z - 1, 2, h, w), of any size. pairs: indices of fields, ascending.
    """
    level = schedule.levels[-1]
    runs = consecutive(pairs)
    refined, done = None, 0
    for run in runs:
        gaps = set() if ends is None else ends.gaps
        bounds = {(lower, upper) for lower, upper in gaps if lower < run.stop and run.start < upper}
        around = range(  # with the fields that they are coupled to, and all that the labels are carried along
            min([max(0, run.start - 1), *(lower for lower, _ in bounds)]),
            max([min(len(velocity), run.stop + 1), *(upper for _, upper in bounds)]),
        )
        planes = appearance(images[around.start : around.stop + 1], level.reduction)
        if refined is None:
            refined = resize(velocity, field_size(planes)).clone()
        report = portion(on_step, done, len(run), len(pairs))
        active = torch.arange(run.start - around.start, run.stop - around.start, device=images.device)
        here = ends.of(bounds, around.start) if bounds else None
        fields = optimise(planes, refined[around.start : around.stop], level, schedule, here, report, active)
        refined[run.start : run.stop] = fields[active]
        done += len(run)
    return velocity if refined is None else refined


def consecutive(indices: Sequence[int]) -> list[range]:
    """Runs of consecutive numbers in `indices`, ascending."""
    runs: list[range] = []
    for index in indices:
        if runs and runs[-1].stop == index:
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


def field_size(planes: torch.Tensor) -> tuple[int, int]:
    """(h, w) of the velocity fields for planes (Z, C, H, W): half their resolution."""
    height, width = (max(4, (n + 1) // 2) for n in planes.shape[-2:])
    return height, width


def appearance(images: torch.Tensor, reduction: int) -> torch.Tensor:
    """What is compared: (Z, 2 C, h, w), local contrast and raw intensity, on a grid `reduction` times coarser.

    images: (Z, C, H, W). Local contrast finds edges under any bias; raw intensity tells tissues apart where there are
    no edges. Several channels are scaled by how far each can be trusted.
    """
    weights = channel_weights(images)[:, None, None]
    size = [max(8, n // reduction) for n in images.shape[-2:]] if reduction > 1 else images.shape[-2:]
    compared = images.new_empty(len(images), 2 * images.shape[1], *size)

    def fill(part: slice):
        planes = images[part]
        if reduction > 1:
            planes = F.interpolate(
                smooth(planes, ANTIALIASING * reduction), size=size, mode="bilinear", align_corners=True
            )
        compared[part] = torch.cat(
            [weights * local_contrast_normalise(planes), INTENSITY_WEIGHT * weights * planes], dim=1
        )

    share = max(1, PLANES_AT_ONCE // processors(images.device))
    side_by_side(fill, [slice(first, first + share) for first in range(0, len(images), share)], images.device)
    return compared


def optimise(
    planes: torch.Tensor,
    velocity: torch.Tensor,
    level: Level,
    schedule: Schedule,
    ends: FarEnds | None,
    on_step: Callable[[float], None],
    pairs: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adam (Kingma & Ba, 2015) on one level: a new velocity (Z - 1, 2, h, w) from `velocity`, for planes (Z, C, H, W).

    pairs: indices of those to optimise, all by default; the others are held, and still pull on those coupled to them.
    Without `ends`, pairs leave the batch as they converge, which torch.optim.Adam does not provide for; with them, the
    pairs of a gap depend on each other and stay.
    Labels are compared on the fields' own grid: at a quarter of the planes' cost, and measured no worse.
    """
    velocity = velocity.clone()
    ends = on_grid(ends, velocity.shape[-2:])
    pixels = planes[0, 0].numel()
    batch = max(1, schedule.batch_pixels // pixels // processors(planes.device))
    first_decay, second_decay = ADAM
    momentum, power = torch.zeros_like(velocity), torch.zeros_like(velocity)
    active = torch.arange(len(velocity), device=velocity.device) if pairs is None else pairs
    best = torch.full((len(velocity),), torch.inf, device=velocity.device)
    for step in range(1, level.steps + 1):
        look = partial(pair_loss, planes, velocity, schedule=schedule, upwards=step % 2 == 1)
        parts = side_by_side(look, active.split(share_of(len(active), pixels, batch, planes.device)), planes.device)
        loss, gradient = (torch.cat(part) for part in zip(*parts, strict=True))
        if ends is not None and step % LABEL_INTERVAL == 0:
            gradient = gradient + consistency_gradient(velocity, ends, schedule, batch)[active]
        first_moment = momentum[active].lerp_(gradient, 1 - first_decay)
        second_moment = power[active].lerp_(gradient.square(), 1 - second_decay)
        momentum[active], power[active] = first_moment, second_moment
        scale = (second_moment / (1 - second_decay**step)).sqrt_().add_(1e-8)
        velocity[active] -= level.rate_at(step) / (1 - first_decay**step) * first_moment / scale
        on_step(step / level.steps)
        if ends is None and step % schedule.interval == 0:
            improving = loss < (1 - schedule.patience) * best[active]
            best[active] = torch.minimum(loss, best[active])
            active = active[improving]
            if len(active) == 0:
                break
    return velocity


def share_of(pairs: int, pixels: int, batch: int, device: torch.device) -> int:
    """How many of the pairs, of planes of so many pixels, a processor works on at once; at most `batch`."""
    return min(batch, max(math.ceil(pairs / processors(device)), math.ceil(LEAST_SHARE / pixels)))


def pair_loss(
    planes: torch.Tensor, velocity: torch.Tensor, pairs: torch.Tensor, schedule: Schedule, upwards: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image difference, smoothness and coupling per pair (N,), and the gradient (N, 2, h, w).

    upwards: whether the lower plane is warped to the upper one, else the upper to the lower. Steps look one way and the
    other in turn: two of them together see both ways, at half the cost.
    """
    field = velocity[pairs].requires_grad_(True)
    lower, upper = planes[pairs], planes[pairs + 1]
    moving, fixed, towards = (lower, upper, field) if upwards else (upper, lower, -field)
    warped = warp_along(moving, towards, SQUARINGS)
    loss = robust_difference(warped, fixed) + schedule.smoothness * diffusion(field)
    neighbours = mean_of_neighbours(velocity, pairs)
    loss = loss + schedule.coupling * ((field - neighbours) ** 2).mean(dim=(1, 2, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), field)
    return loss.detach(), gradient


def mean_of_neighbours(velocity: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Mean of the fields before and after each of `pairs`, the outermost ones repeated: -> (N, 2, h, w)."""
    return (velocity[(pairs - 1).clamp(min=0)] + velocity[(pairs + 1).clamp(max=len(velocity) - 1)]) / 2


def consistency_gradient(velocity: torch.Tensor, ends: FarEnds, schedule: Schedule, batch: int) -> torch.Tensor:
    """Gradient (Z - 1, 2, h, w) of the label term of all gaps, each weighted by its number of pairs.

    batch: the most pairs to compute at once, but never less than a gap.
    """
    pairs = sum(upper - lower for lower, upper in ends.gaps)
    share = share_of(pairs, ends.labels_moving[0, 0].numel(), batch, velocity.device)
    parts = spans(ends.gaps, share)

    def of_span(part: tuple[range, list[tuple[int, int]]]) -> torch.Tensor:
        planes, gaps = part
        return gradient_within(velocity[planes.start : planes.stop - 1], ends.of(gaps, planes.start), schedule)

    gradient = torch.zeros_like(velocity)
    for (planes, _), found in zip(parts, side_by_side(of_span, parts, velocity.device), strict=True):
        gradient[planes.start : planes.stop - 1] += found  # gaps of labels drawn on different planes overlap
    return gradient


def spans(gaps: Iterable[tuple[int, int]], batch: int) -> list[tuple[range, list[tuple[int, int]]]]:
    """Runs of gaps, their planes and the gaps: few, each of at most `batch` pairs unless a single gap has more."""
    found: list[tuple[range, list[tuple[int, int]]]] = []
    for lower, upper in sorted(gaps):
        planes, together = found[-1] if found else (range(0), [])
        if together and upper - planes.start <= batch:
            found[-1] = range(planes.start, max(planes.stop, upper + 1)), [*together, (lower, upper)]
        else:
            found.append((range(lower, upper + 1), [(lower, upper)]))
    return found


def gradient_within(velocity: torch.Tensor, ends: FarEnds, schedule: Schedule) -> torch.Tensor:
    """The gradient of `consistency_gradient` for gaps that are computed at once."""
    field = velocity.detach().requires_grad_(True)
    loss = label_consistency(far_displacements(field, ends, SQUARINGS), ends)
    (gradient,) = torch.autograd.grad(schedule.consistency * (ends.hops * loss).sum(), field)
    return gradient
