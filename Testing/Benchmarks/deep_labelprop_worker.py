"""Runs inside the environment of deep-labelprop: `python deep_labelprop_worker.py REGION.npz EPOCHS THREADS`.

Writes fused.npy (label indices) and cost.json (CPU seconds, those of its data loading processes included) to the
working folder.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # PyPI's is built for CUDA: beside a PyTorch for the CPU its operators do not load, and the import fails for want of
    # these two, which deep-labelprop never calls.
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]

from labelprop.DataLoading import LabelPropDataModule
from labelprop.lightning_model import LabelProp
from labelprop.train import inference, train


def cpu_seconds() -> float:
    """Spent so far by this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main():
    """As its `train_and_infer` does, at its defaults, with the clock read in between."""
    region, epochs, threads = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    image, labels = region["image"], region["labels"]
    losses = {
        "compo-reg-up": True,
        "compo-reg-down": True,
        "compo-dice-up": True,
        "compo-dice-down": True,
        "bidir-cons-reg": False,
        "bidir-cons-dice": False,
    }
    parameters = {
        "n_classes": len(np.unique(labels)),
        "way": "both",
        "shape": image.shape[1:],
        "selected_slices": None,
        "losses": losses,
        "by_composition": False,
        "unsupervised": False,
    }
    data = LabelPropDataModule(image, labels, lab="all", shape=image.shape[1:], selected_slices=None, z_axis=0)
    clock = []
    LabelProp.on_train_epoch_start = lambda _: clock.append(cpu_seconds())
    LabelProp.on_train_end = lambda _: clock.append(cpu_seconds())
    start = cpu_seconds()
    _, checkpoint = train(data, parameters, max_epochs=epochs, device="cpu")
    trained = cpu_seconds()
    _, _, fused = inference(data, parameters, str(checkpoint), device="cpu")
    np.save("fused.npy", fused.numpy().astype(np.uint8))
    cost = {
        "epoch": (clock[-1] - clock[0]) / epochs,
        "training": trained - start,
        "inference": cpu_seconds() - trained,
    }
    Path("cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main()
