"""Carries outlines drawn on a few slices of a scan through the volume. Everything that computes is here.

`pipeline.propagate` tells the story; `scene` is the only module that knows Slicer.
"""

import os

# Read by OpenMP when PyTorch is loaded. Threads that wait must sleep: by default they spin, and where other programs
# keep the cores busy (Slicer's rendering, a second job) every parallel loop then stalls, at up to ten times the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
