"""Carries outlines drawn on a few slices of a scan through the volume. Everything that computes is here.

`pipeline.propagate` tells the story; what knows Slicer's scene is in `scene`.
"""

import os

# Read by OpenMP when PyTorch is loaded, GNU's and LLVM's: how long threads that wait spin before they sleep. By default
# long enough that every parallel loop stalls where other programs keep the cores busy (Slicer's rendering, a second
# job), at tens of times the time; without any spinning, idle cores take nearly twice as long.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("KMP_BLOCKTIME", "1")
