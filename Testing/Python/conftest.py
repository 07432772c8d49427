"""A real MRML scene in plain Python for all tests."""

import pytest
from hypothesis import settings

from LabelPropLib.plain_slicer import bootstrap

settings.register_profile("untimed", deadline=None)  # no test fails for being slow
settings.load_profile("untimed")
bootstrap()

import slicer  # noqa: E402


@pytest.fixture(autouse=True)
def empty_scene():
    """The scene is empty at the beginning of each test, and what a test leaves in it is gone at its end."""
    slicer.mrmlScene.Clear()
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear()


@pytest.fixture
def nearest_slice_engine(monkeypatch):
    """In place of the pipeline one that takes no time, see `samples.propagate_nearest`.

    For tests of what goes into the pipeline and what becomes of its results.
    """
    from samples import propagate_nearest

    from LabelPropLib import pipeline

    monkeypatch.setattr(pipeline, "propagate", propagate_nearest)
