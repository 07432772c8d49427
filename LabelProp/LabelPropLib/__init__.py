"""Carries outlines drawn on a few slices of a scan through the volume. Everything that computes is here.

`pipeline.propagate` tells the story; what knows Slicer's scene is in `scene`.
"""

import os

# How long waiting threads spin before they sleep; GNU's and LLVM's OpenMP read this when PyTorch is loaded. By default
# they spin so long that every parallel loop stalls where other programs keep the cores busy (Slicer's rendering, a
# second job), and takes tens of times as long; without any spinning, work on idle cores takes nearly twice as long.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("KMP_BLOCKTIME", "1")
