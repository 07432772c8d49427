"""propagate(): the whole story, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import atlases, checkpoint, confidence, planner, report, scribbles, suggestion
from .annotation import SparseAnnotation
from .candidates import Chains
from .clock import Clock, Progress
from .errors import InputError
from .filters import noise
from .fusion import deep
from .gap_fusion import DEEP, REGISTRATION_SHARE, Fusion, Scan, fuse_gaps
from .label_planes import LabelPlanes, far_ends
from .labelmaps import LabelMaps
from .machine import is_out_of_memory, peak_memory_gb, thread_count
from .memory import Memory, Update
from .parallel import threads
from .planner import EFFORTS, Effort, Plan
from .preprocessing import Stack, prepare
from .propagation import Propagation
from .registration import instance, training
from .registration.consistency import FarEnds, within
from .registration.fields import resize
from .registration.network import RegistrationNetwork
from .registration_weights import load_network
from .settings import Settings
from .uncertainty import uncertainty_map


def propagate(
    annotation: SparseAnnotation,
    settings: Settings = Settings(),
    progress: Progress | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    memory: Memory | None = None,
) -> Propagation:
    """Carry the annotated labels through the volume.

    progress: called with the fraction done and the name of the stage. is_cancelled: called often; True ends the work.
    memory: of earlier runs on the same scan; what has not changed since the last one is not registered again. It is
    updated here, so pass the same one each time.
    The same annotation, settings and seed give the same voxels on the same kind of CPU. With a memory this holds for
    its first run; the voxels of later ones are as good, but depend on the runs before.
    Raises InputError if the device is not there or the checkpoint cannot be used, and Cancelled.
    """
    clock = Clock(progress, is_cancelled)
    *plans, last = planner.plans(planner.choose_device(settings.device))
    for plan in plans:
        try:
            return compute(annotation, settings, clock, memory, plan)
        except (MemoryError, RuntimeError, TypeError) as error:
            unsupported = planner.is_unsupported(error, plan.device)
            if not (unsupported or is_out_of_memory(error)):
                raise
        planner.release_memory(plan.device)
        if unsupported:
            last = planner.UNSUPPORTED
            break
    return compute(annotation, settings, clock, memory, last)


def compute(
    annotation: SparseAnnotation, settings: Settings, clock: Clock, memory: Memory | None, plan: Plan
) -> Propagation:
    """`propagate` by a plan. If memory runs out, raises an error that `is_out_of_memory` recognises."""
    device = plan.device
    kind = checkpoint.check_kind(settings.checkpoint, settings.networks)
    network = load_network(settings.checkpoint)
    networks = deep.load(settings.checkpoint, settings.fusion == DEEP, device)
    effort = EFFORTS[settings.preset]
    with threads(thread_count()):
        with clock.stage("Preparing"):
            remembered = None if memory is None else memory.recall(annotation, settings)
            box = None if remembered is None else remembered.box_around(annotation)
            free = planner.memory_to_use(device, settings.memory_gb)
            pixels = planner.fitting_pixels(effort.pixels, annotation, free)
            stack = prepare(annotation, pixels, settings.extrapolate, device, box)
            planes = LabelPlanes(annotation, stack)
        with clock.stage("Registering"):
            update = None if remembered is None else remembered.update(annotation, stack)
            if memory is not None and not plan.why:
                memory.taken_over = update
            velocity = register(
                stack,
                drawn_ends(annotation, stack, planes, settings, update),  # given up when all is registered
                settings,
                plan,
                effort,
                network,
                lambda done: clock.tell(REGISTRATION_SHARE * done),
                update,
            )
            if memory is not None:
                memory.keep(annotation, stack, velocity)
        with torch.no_grad():
            fusion = None if memory is None else memory.recall_fusion(annotation, settings, stack, update)
            if fusion is None:
                core = slice(stack.core.start, stack.core.stop)
                scan = Scan(annotation, stack, planes, Chains(velocity, stack.images, core))
                fusion = fuse_gaps(scan, networks, settings, clock, bool(annotation.scribbles) or memory is not None)
                if memory is not None:
                    memory.keep_fusion(annotation, settings, stack, fusion)
            with clock.stage("Scribbling"):
                maps, sides = corrected(annotation, stack, fusion, settings.graph_cut, in_place=memory is None)
                label_maps = maps.volumes()
            with clock.stage("Assessing"):
                expected = confidence.assess(annotation, stack, fusion.evidence, label_maps, fusion.factors)
                suggestions = suggestion.suggest(expected, settings.suggestions)
    clock.tell(1.0)
    if memory is not None:
        update = memory.taken_over
    return Propagation(
        label_maps=label_maps,
        directions={name: side.volumes() for name, side in sides.items()},
        uncertainty=uncertainty_map(expected) if settings.uncertainty else None,
        report={
            **report.of_input(annotation, settings, device),
            "volume_ml": report.volume_ml(annotation, label_maps),
            "registration": ("instance" if settings.registration == "auto" else settings.registration)
            + (", reused" if update else ""),
            **report.of_fusion(fusion),
            "seconds": clock.seconds,
            "peak_memory_gb": peak_memory_gb(),
            "messages": planner.messages(plan, stack.size, pixels, effort)
            + report.messages(annotation, settings, fusion.image_weights, kind, update)
            + atlases.messages(annotation, fusion.priors)
            + scribbles.contradictions(annotation, maps),
            **expected.report(),
            **suggestion.report(suggestions),
        },
    )


def corrected(
    annotation: SparseAnnotation, stack: Stack, fusion: Fusion, follow_edges: bool, in_place: bool
) -> tuple[LabelMaps, dict[str, LabelMaps]]:
    """The fused label maps, and those of the sides, with the scribbles' corrections and what was given.

    in_place: whether the fusion's own maps may be changed; one that a memory keeps may not.
    """
    maps, sides = fusion.maps, dict(fusion.sides)
    if not in_place:
        maps, sides = maps.copy(), {name: side.copy() for name, side in sides.items()}
    scribbles.spread(annotation, stack, fusion.scores, maps, follow_edges)
    for result in (maps, *sides.values()):
        result.keep_given(annotation)
    return maps, sides


def drawn_ends(
    annotation: SparseAnnotation, stack: Stack, planes: LabelPlanes, settings: Settings, update: Update | None
) -> FarEnds | None:
    """The labels at the ends of the gaps, on the grid on which registration compares them; None if it compares none."""
    compares_labels = update.pairs if update is not None else settings.registration != "pretrained"
    if not compares_labels:
        return None
    size = stack.size if settings.registration == "network" else instance.field_size(stack.images)
    return far_ends(annotation, stack, planes, size)


def register(
    stack: Stack,
    ends: FarEnds | None,
    settings: Settings,
    plan: Plan,
    effort: Effort,
    network: RegistrationNetwork | None,
    on_step: Callable[[float], None],
    update: Update | None = None,
) -> torch.Tensor:
    """Velocity fields of all neighbouring planes. The registration 'auto' is 'instance', which measured better.

    network: pretrained, None for none; 'network' trains it on the scan, 'pretrained' takes it as it is.
    update: the fields that are known from the run before, and what is left to do.
    Planes that only lead to a scribble are registered on their own, so that a scribble does not change other fields.
    """
    if update is not None and not update.pairs:
        return update.velocity
    free = planner.memory_to_use(plan.device, settings.memory_gb)
    schedule = instance.Schedule(levels=effort.levels_for(stack.size), batch_pixels=planner.batch_pixels(plan, free))
    schedule = schedule.for_noise(noise(stack.images[stack.core.start : stack.core.stop, 0]))
    if update is not None:
        return update.register(stack, ends, schedule, on_step)
    velocity = register_core(stack, ends, settings, network, schedule, on_step)
    parts = [velocity]
    before, after = stack.images[: stack.core.start + 1], stack.images[stack.core.stop - 1 :]
    if len(before) > 1:
        parts.insert(0, instance.register(before, None, schedule))
    if len(after) > 1:
        parts.append(instance.register(after, None, schedule))
    return torch.cat([resize(part, velocity.shape[-2:]) for part in parts])


def register_core(
    stack: Stack,
    ends: FarEnds | None,
    settings: Settings,
    network: RegistrationNetwork | None,
    schedule: instance.Schedule,
    on_step: Callable[[float], None],
) -> torch.Tensor:
    """Velocity fields of the core's neighbouring planes."""
    images = stack.images[stack.core.start : stack.core.stop]
    if len(images) == 1:
        return images.new_zeros(0, 2, *instance.field_size(images))
    if ends is not None:
        ends = within(ends, stack.core, stack.core.start)
    if images.shape[1] > 1:
        network = None  # the weights are of networks that look at one image
    if settings.registration == "network":
        course = training.course_for(network)
        return training.register(images, ends, settings.seed, course, network, on_step)
    if settings.registration == "pretrained":
        if network is None:
            mend = "leave out the second image" if images.shape[1] > 1 else "give a checkpoint"
            raise InputError(
                "No weights for the registration 'pretrained', which takes those of a network that looks at one image:"
                f" {mend}, or choose another registration."
            )
        return training.predict(network.to(images.device), images, training.PREDICTION_REDUCTIONS)
    return instance.register(images, ends, schedule, on_step=on_step)
