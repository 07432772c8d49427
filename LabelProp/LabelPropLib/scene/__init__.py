"""MRML <-> arrays: segments become a SparseAnnotation, what was propagated becomes segments again.

The work grid is the segmentation's own: the lattice of its reference geometry, grown to hold all of its segments. The
scan is resampled into it where it differs, segments are read into it whatever layers, extents and lattices they are
kept in, and results are written in it. Coordinates are those of the segmentation node, below its parent transform.
"""

from .geometry import Resample, image_from_array, voxels
from .reading import SceneAnnotation, check_inputs, collect
from .segments import (
    labels_on_volume,
    read_tag,
    segment_on_grid,
    segmentation_state,
    stored_segments,
    visible_segments,
)
from .writing import (
    add_segmentation,
    add_segmentation_of_labels,
    check_target,
    write_masks,
    write_segments,
    write_volume,
)
