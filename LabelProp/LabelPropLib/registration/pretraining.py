"""Training of the registration network on a data set, so that it knows slices before it sees a scan.

Every step takes a few runs of consecutive planes from random volumes, crops, zooms and recolours them, and follows the
loss of `training`: without annotations that of neighbouring planes; between two annotated planes also that of the
labels and the image carried from one to the other. Random contrasts make it learn shapes rather than grey values, as
SynthMorph does (Hoffmann et al., IEEE TMI 2022).

What a step sees depends on the seed and the step's number alone. So an interrupted training goes on as if it had not
been, and N processes that share a batch make, to rounding, the steps of one process with N times the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F

from .consistency import FarEnds
from .instance import appearance
from .network import RegistrationNetwork
from .training import FROM_SCRATCH, Course, new_network, training_loss

Interval = tuple[float, float]


@dataclass(frozen=True)
class TrainingVolume:
    """A volume to learn from.

    images: (Z, 1, H, W), about 0 to 1, square pixels, of any floating type. labels: (Z, H, W) integers, of which only
    the planes `annotated`, ascending, count; None without annotations.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor | None = None
    annotated: tuple[int, ...] = ()

    def gaps(self, longest: int) -> list[tuple[int, int]]:
        """Pairs of annotated planes with others in between, at most `longest` planes apart."""
        return [(a, b) for a in self.annotated for b in self.annotated if 2 <= b - a <= longest]


@dataclass(frozen=True)
class Sampling:
    """What a sample is: a run of planes, cropped and coarsened, in a random contrast.

    run: planes of a run without annotations; strides: steps from one plane of it to the next. annotated_share: of the
    samples of an annotated volume that run from one annotated plane to another, at most `longest_gap` planes on.
    crop: pixels along the sides at most, after the planes were made coarser by one of `reductions`. most_labels: that
    a sample follows. gamma, noise: ranges of the exponent and of the noise's standard deviation; inverted: share of the
    samples whose grey values are inverted.
    """

    run: int = 6
    strides: tuple[int, ...] = (1, 2, 3)
    annotated_share: float = 0.5
    longest_gap: int = 16
    crop: int = 96
    reductions: tuple[int, ...] = (1, 2, 2, 4)
    most_labels: int = 12
    gamma: Interval = (0.6, 1.6)
    noise: Interval = (0.0, 0.04)
    inverted: float = 0.3


@dataclass(frozen=True)
class PretrainingPlan:
    """How long and how fast.

    steps: at most; batch: samples a step, of each process; rate: of Adam, annealed to 0 by a cosine. Before the first
    step and every `interval` steps the validation volumes are looked at, `validation_runs` samples each; after
    `patience` times without a better loss the training ends.
    """

    steps: int = 4000
    batch: int = 4
    rate: float = 2e-3
    interval: int = 100
    validation_runs: int = 4
    patience: int = 12
    seed: int = 0


@dataclass
class Progress:
    """Where a training stands: steps done, a row of the log for every look at the validation volumes, the best one."""

    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0


class Pretraining:
    """A training that can be put away after any step, as tensors and plain values, and taken up again.

    training, validation: volumes, on the CPU, from where samples go to `device`; without any of the latter the training
    loss decides which weights are best, and nothing ends the training early. network: to begin with, by default a new
    one of the plan's seed; it is moved to `device`, and trained in place. Where there are volumes to validate with, the
    weights to begin with are the best until others are better. With torch.distributed initialised its processes share
    every step.
    """

    def __init__(
        self,
        training: Sequence[TrainingVolume],
        validation: Sequence[TrainingVolume],
        plan: PretrainingPlan = PretrainingPlan(),
        sampling: Sampling = Sampling(),
        course: Course = FROM_SCRATCH,
        network: RegistrationNetwork | None = None,
        device: torch.device | str = "cpu",
    ):
        self.plan = plan
        self.progress = Progress()
        self._training, self._validation = training, validation
        self._sampling, self._course, self._device = sampling, course, device
        self.network = (network or new_network(plan.seed)).to(device)
        self.best = weights(self.network)
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=plan.rate)
        self._annealing = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, plan.steps)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.processes = torch.distributed.get_world_size() if distributed else 1
        self._rank = torch.distributed.get_rank() if distributed else 0

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, or the validation has not improved for too long."""
        stale = (self.progress.step - self.progress.best_step) // self.plan.interval
        return self.progress.step >= self.plan.steps or (bool(self._validation) and stale >= self.plan.patience)

    def advance(self, on_step: Callable[[int], None] = lambda step: None):
        """Train up to the next look at the validation volumes, and look. on_step: called with the number of steps done.

        The first call also looks before the first step.
        """
        if self._validation and not self.progress.log:
            self._look(training_loss=math.nan)
        losses = []
        while True:
            losses.append(self._step())
            on_step(self.progress.step)
            if self.progress.step % self.plan.interval == 0 or self.progress.step >= self.plan.steps:
                break
        self._look(training_loss=sum(losses) / len(losses))

    def _look(self, training_loss: float):
        """Log how good the network is now, and keep its weights if they are the best so far.

        training_loss: mean of the steps since the last look, NaN before the first step.
        """
        validation_loss = self._validate() if self._validation else math.nan
        loss = validation_loss if self._validation else training_loss
        self.progress.log.append(
            {"step": self.progress.step, "training_loss": training_loss, "validation_loss": validation_loss}
        )
        if loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
            self.best = weights(self.network)

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on beside the volumes and the plan: tensors and plain values."""
        return {
            "network": weights(self.network),
            "best": self.best,
            "optimiser": self._optimiser.state_dict(),
            "annealing": self._annealing.state_dict(),
            "progress": {**vars(self.progress)},
        }

    def resume(self, state: dict[str, Any]):
        """Go on where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.best = state["best"]
        self._optimiser.load_state_dict(state["optimiser"])
        self._annealing.load_state_dict(state["annealing"])
        self.progress = Progress(**state["progress"])

    def _step(self) -> float:
        """One step of Adam on the mean loss of all processes' samples; returns that loss."""
        plan = self.plan
        self._optimiser.zero_grad()
        total = torch.zeros((), device=self._device)
        for number in range(self._rank * plan.batch, (self._rank + 1) * plan.batch):
            random = np.random.default_rng((plan.seed, self.progress.step, number))
            volume = self._training[random.integers(len(self._training))]
            loss = self._loss(*draw(volume, self._sampling, random)) / plan.batch
            loss.backward()
            total += loss.detach()
        if self.processes > 1:
            for tensor in (total, *(parameter.grad for parameter in self.network.parameters())):
                torch.distributed.all_reduce(tensor)
                tensor /= self.processes
        self._optimiser.step()
        self._annealing.step()
        self.progress.step += 1
        return total.item()

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss on samples of the validation volumes in their own contrast, the same every time."""
        plain = plain_sampling(self._sampling)
        jobs = [(index, run) for index in range(len(self._validation)) for run in range(self.plan.validation_runs)]
        total = torch.zeros((), device=self._device)
        for index, run in jobs[self._rank :: self.processes]:
            random = np.random.default_rng((self.plan.seed, index, run))
            total += self._loss(*draw(self._validation[index], plain, random))
        if self.processes > 1:
            torch.distributed.all_reduce(total)
        return total.item() / len(jobs)

    def _loss(self, planes: torch.Tensor, ends: FarEnds | None) -> torch.Tensor:
        planes = planes.to(self._device)
        if ends is not None:
            masks = (ends.labels_moving.to(self._device), ends.labels_fixed.to(self._device))
            ends = FarEnds(ends.moving, ends.fixed, *masks)
        return training_loss(self.network(planes[:-1], planes[1:]), planes, ends, self._course)


def weights(network: RegistrationNetwork) -> dict[str, torch.Tensor]:
    """A copy of the network's tensors."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def plain_sampling(sampling: Sampling) -> Sampling:
    """The same sampling, but of consecutive planes in their own contrast."""
    return Sampling(**{**vars(sampling), "strides": (1,), "gamma": (1.0, 1.0), "noise": (0.0, 0.0), "inverted": 0.0})


def draw(
    volume: TrainingVolume, sampling: Sampling, random: np.random.Generator
) -> tuple[torch.Tensor, FarEnds | None]:
    """A sample: planes (Z, 2, h, w) of `appearance`, and the labels at its ends if both ends are annotated."""
    gaps = volume.gaps(sampling.longest_gap)
    follows_labels = bool(gaps) and random.random() < sampling.annotated_share
    if follows_labels:
        lower, upper = gaps[random.integers(len(gaps))]
        run = slice(lower, upper + 1)
    else:
        run = draw_run(len(volume.images), sampling, random)
    reduction = int(random.choice(sampling.reductions))
    window = tuple(draw_window(size, sampling.crop * reduction, random) for size in volume.images.shape[-2:])
    turn = draw_turn(random)
    images = recolour(turn(volume.images[run][..., window[0], window[1]].float()), sampling, random)
    planes = appearance(images, reduction)
    if not follows_labels:
        return planes, None
    labels = turn(volume.labels[[lower, upper]][:, window[0], window[1]])
    return planes, ends_of_run(labels, len(planes), planes.shape[-2:], sampling.most_labels, random)


def draw_run(planes: int, sampling: Sampling, random: np.random.Generator) -> slice:
    """Consecutive planes, or every second or third one, as far as there are any."""
    strides = [stride for stride in sampling.strides if (sampling.run - 1) * stride < planes]
    stride = int(random.choice(strides)) if strides else 1
    length = min(planes, (sampling.run - 1) * stride + 1)
    first = int(random.integers(planes - length + 1))
    return slice(first, first + length, stride)


def draw_window(size: int, crop: int, random: np.random.Generator) -> slice:
    """A random part of an axis, `crop` pixels long or all there are."""
    first = int(random.integers(max(size - crop, 0) + 1))
    return slice(first, min(first + crop, size))


def draw_turn(random: np.random.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that turns planes by one of the eight flips and quarter turns, drawn at random."""
    axes = [axis for axis in (-1, -2) if random.random() < 0.5]
    transposed = random.random() < 0.5

    def turn(planes: torch.Tensor) -> torch.Tensor:
        planes = planes.flip(axes)
        return planes.transpose(-1, -2) if transposed else planes

    return turn


def recolour(images: torch.Tensor, sampling: Sampling, random: np.random.Generator) -> torch.Tensor:
    """The images in another contrast, drawn at random, the same for all planes."""
    if random.random() < sampling.inverted:
        images = 1 - images
    images = images.sign() * images.abs() ** float(random.uniform(*sampling.gamma))
    noise = random.standard_normal(images.shape, np.float32)
    return images + float(random.uniform(*sampling.noise)) * torch.from_numpy(noise)


def ends_of_run(
    labels: torch.Tensor, planes: int, size: tuple[int, int], most: int, random: np.random.Generator
) -> FarEnds | None:
    """The ends, both ways, of a run of `planes` planes, for labels that both bear; None if there are no such labels.

    labels: (2, H, W) integers on these two. The masks are averaged onto the grid `size`. At most `most` labels, drawn
    at random, are followed.
    """
    values = np.intersect1d(*(np.unique(plane.numpy()) for plane in labels))
    values = values[values != 0]
    if len(values) == 0:
        return None
    values = torch.from_numpy(random.permutation(values)[:most])
    masks = (labels[:, None] == values.view(1, -1, 1, 1)).float()
    first, last = F.interpolate(masks, size=tuple(size), mode="area").split(1)
    return FarEnds((0, planes - 1), (planes - 1, 0), torch.cat([first, last]), torch.cat([last, first]))
