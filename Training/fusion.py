"""Train deep label fusion on patches, and write the weights that ship.

    python Training/fusion_patches.py Training/fusion_stacks.csv DATA -o PATCHES --seed 0
    python Training/fusion_patches.py Training/fusion_stacks.csv DATA -o PATCHES --seed 1
    python Training/fusion.py PATCHES -o LabelProp/LabelPropLib/Resources/fusion.pt

`--without brain-colin27-aal fetalbrain-30` leaves volumes out, to measure on anatomy that the networks have not seen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from LabelPropLib import checkpoint
from LabelPropLib.ends import EXPONENT, EXTENT, round_off
from LabelPropLib.fusion.deep import ARCHITECTURE, PREPROCESSING, Features
from LabelPropLib.fusion.subnets import DeepLabelFusion
from LabelPropLib.parallel import choose_kernels

BATCH = 64
RATE = 3e-3
AVERAGED = 2  # last epochs whose weights are averaged
CLOSING = 0.98  # of a superellipse; beyond, its slope is too steep to learn from
VOTING_LOSS = 0.4  # of the consensus, against that of the final score: deep supervision


@dataclass
class Patches:
    """Patches, see `fusion_patches.Patches`."""

    planes: torch.Tensor
    numbers: torch.Tensor
    truth: torch.Tensor
    valid: torch.Tensor

    def __len__(self):
        return len(self.planes)

    def take(self, index: torch.Tensor) -> Patches:
        """Some of the patches, planes in float32."""
        parts = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        return Patches(**{name: part.float() if part.is_floating_point() else part for name, part in parts.items()})


def main():
    """Read patches, train, write the checkpoint."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("patches", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument("--without", nargs="*", default=[], help="volumes to leave out")
    command.add_argument("--epochs", type=int, default=5)
    command.add_argument("--seed", type=int, default=0)
    options = command.parse_args()
    paths = [path for path in sorted(options.patches.glob("*.pt")) if volume_of(path) not in options.without]
    choose_kernels()
    torch.manual_seed(options.seed)
    patches = read(paths)
    networks = train(patches, options.epochs, np.random.default_rng(options.seed))
    metadata = {
        "kind": "fusion",
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "training": {
            "data": sorted({volume_of(path) for path in paths}),
            "patches": len(patches),
            "epochs": options.epochs,
        },
        "licence": "Apache-2.0; trained on volumes under BSD-3-Clause, MIT and Apache-2.0",
    }
    tensors = {name: tensor.half() for name, tensor in networks.state_dict().items()}
    checkpoint.save(options.output, tensors, metadata)


def volume_of(path: Path) -> str:
    """The volume that a file of patches was made of."""
    return path.stem.rsplit("-", 1)[0]


def read(paths: list[Path]) -> Patches:
    """The patches of all files."""
    parts = [torch.load(path, weights_only=True) for path in paths]
    return Patches(**{field.name: torch.cat([part[field.name] for part in parts]) for field in fields(Patches)})


def train(patches: Patches, epochs: int, generator: np.random.Generator) -> DeepLabelFusion:
    """AdamW with one cycle of the learning rate (Smith & Topin, 2019); the mean of the weights of the last epochs.

    See Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018.
    """
    networks = DeepLabelFusion().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(networks.parameters(), lr=RATE, weight_decay=1e-4)
    steps = len(patches) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=epochs * steps)
    averaged = torch.optim.swa_utils.AveragedModel(networks)
    for epoch in range(epochs):
        order = torch.from_numpy(generator.permutation(len(patches)))
        losses = np.zeros((steps, 3))
        for step in tqdm(range(steps), desc=f"epoch {epoch + 1}", mininterval=5):
            batch = augmented(patches.take(order[step * BATCH : (step + 1) * BATCH]), generator)
            with torch.autocast("cpu", torch.bfloat16):
                loss, losses[step] = training_loss(networks, batch)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        prior, voted, final = losses.mean(axis=0)
        print(f"epoch {epoch + 1}: similarity {prior:.4f}, voted {voted:.4f}, corrected {final:.4f}", flush=True)
        if epoch >= epochs - AVERAGED:
            averaged.update_parameters(networks)
    return averaged.module


def training_loss(networks: DeepLabelFusion, batch: Patches) -> tuple[torch.Tensor, tuple[float, float, float]]:
    """The loss to minimise, and the losses of the similarity rule, of the voted consensus and of the corrected one."""
    lower, upper, target, lower_image, upper_image, rivals, odds, similarity, way = batch.planes.unbind(dim=1)
    depth_lower, depth_upper, length = (number[:, None, None] for number in batch.numbers.unbind(dim=1))
    told = Features(1.0, lower, upper, target, lower_image, upper_image, odds, way, length.expand_as(way))
    vote = networks.voting(told.of_upper()) - networks.voting(told.of_lower())
    voted = torch.sigmoid(similarity + vote.float())
    consensus = pooled(lower, upper, depth_lower, depth_upper, voted)
    correction = networks.correction(told.of_label(consensus, voted, rivals))
    prior = pooled(lower, upper, depth_lower, depth_upper, torch.sigmoid(similarity))
    losses = [segmentation_loss(score, batch) for score in (prior, consensus, consensus + correction.float())]
    return losses[2] + VOTING_LOSS * losses[1], tuple(loss.item() for loss in losses)


def pooled(lower, upper, depth_lower, depth_upper, way) -> torch.Tensor:
    """`distance.pool` of patches some of which only one side bears; a depth of 0 says that it does not."""
    both = (1 - way) * lower + way * upper
    one = torch.where(depth_upper == 0, rounded(lower, depth_lower, way), rounded(upper, depth_upper, 1 - way))
    return torch.where((depth_lower > 0) & (depth_upper > 0), both, one)


def rounded(distances: torch.Tensor, depth: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
    """`ends.round_off`, with a slope that stays finite where the shape closes."""
    q = way / EXTENT
    slope = depth * (1 - q.clamp(max=CLOSING) ** EXPONENT) ** (1 / EXPONENT) - 2 * depth * (q - 1).clamp(min=0)
    return round_off(distances, depth, way.detach()) + slope - slope.detach()


def segmentation_loss(score: torch.Tensor, batch: Patches) -> torch.Tensor:
    """Cross-entropy, with a pixel of distance as unit of the log-odds, plus soft Dice, both per patch."""
    truth, valid = batch.truth.float(), batch.valid.float()
    entropy = F.binary_cross_entropy_with_logits(score, truth, reduction="none")
    entropy = (entropy * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))
    found = torch.sigmoid(score) * valid
    overlap = 2 * (found * truth).sum(dim=(1, 2)) + 10
    total = found.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 10
    return (entropy + 1 - overlap / total).mean()


def augmented(batch: Patches, generator: np.random.Generator) -> Patches:
    """Turned, flipped, upside down (lower and upper exchanged), with other contrast and noise, some without odds."""
    planes, numbers = batch.planes.clone(), batch.numbers.clone()
    if generator.random() < 0.5:
        planes[:, [0, 1, 3, 4]] = planes[:, [1, 0, 4, 3]]
        planes[:, 7] = -planes[:, 7]
        planes[:, 8] = 1 - planes[:, 8]
        numbers[:, [0, 1]] = numbers[:, [1, 0]]
    count = len(planes)

    def drawn(values) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).reshape(count, -1, 1, 1)

    gain = generator.uniform(0.6, 1.5, count) * generator.choice([1, 1, 1, -1], count)
    images = planes[:, 2:5] * drawn(gain) + drawn(generator.normal(0, 0.3, count))
    images = images + drawn(generator.normal(0, 0.12, (count, 3)))  # a shift of each image's own
    planes[:, 2:5] = images + torch.randn_like(images) * drawn(generator.uniform(0, 0.25, count))
    planes[:, 6:7] *= drawn(generator.random(count) > 0.15)
    quarter_turns, flip = int(generator.integers(4)), generator.random() < 0.5

    def moved(part: torch.Tensor) -> torch.Tensor:
        part = torch.rot90(part, quarter_turns, (-2, -1))
        return part.flip(-1) if flip else part

    return Patches(moved(planes), numbers, moved(batch.truth), moved(batch.valid))


if __name__ == "__main__":
    main()
