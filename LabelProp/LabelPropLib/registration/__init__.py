"""Slice-to-slice deformable registration.

Both registrations share one interface: planes in, the velocity fields of all neighbouring pairs out. exp(v_k) carries
points of plane k + 1 to plane k, exp(-v_k) those of plane k to plane k + 1; `velocity` is (Z - 1, 2, h, w) in pixels of
its own, coarser grid.
"""
