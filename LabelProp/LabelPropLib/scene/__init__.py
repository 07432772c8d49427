"""MRML <-> arrays: segments become a SparseAnnotation, what was propagated becomes segments again.

The work grid is the segmentation's own: the lattice of its reference geometry, grown to hold all of its segments. The
scan is resampled into it where it differs, segments are read into it whatever layers, extents and lattices they are
kept in, and results are written in it. Coordinates are those of the segmentation node, below its parent transform.
"""

from .geometry import (
    REFERENCE_GEOMETRY,
    Resample,
    grid_start,
    ijk_to_ras,
    image_from_array,
    volume_image,
    voxels,
    work_grid,
)
from .reading import SceneAnnotation, check_inputs, choose_segments, collect
from .segments import (
    BINARY_LABELMAP,
    labels_on_volume,
    read_roles,
    read_tag,
    segment_on_grid,
    segmentation_state,
    stored_segments,
    visible_segments,
    write_roles,
)
from .storage import load_segmentation, save_segmentation
from .writing import (
    add_segmentation,
    add_segmentation_of_labels,
    add_segmentation_of_scribbles,
    check_target,
    write_masks,
    write_segments,
    write_volume,
)
