"""What the Slicer application has and PyPI's slicer-core lacks, so that the same LabelProp.py runs in plain Python.

slicer-core has Slicer's C++ libraries and `slicer.util`, but nothing is started: there is no scene, there are no module
logics, and none of the Python base classes of scripted modules. `bootstrap()` makes a scene with the logics that
LabelProp and `slicer.util` ask for; the classes below stand in for Slicer's own of the same name, with what a module
needs when there is no window. Nothing here is used inside the Slicer application.
"""

from __future__ import annotations

import types
import unittest

import slicer
import slicer.util

__all__ = [
    "Choice",
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
    "bootstrap",
    "parameterNodeWrapper",
    "tr",
    "translate",
]


def bootstrap():
    """Make `slicer.mrmlScene` and `slicer.modules`, unless there is a scene already."""
    if getattr(slicer, "mrmlScene", None) is not None:
        return
    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    application_logic.SetMRMLScene(scene)

    def module(name: str, logic):
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(scene)
        application_logic.SetModuleLogic(name, logic)
        return types.SimpleNamespace(logic=lambda: logic)

    slicer.mrmlScene = scene
    slicer.applicationLogic = application_logic  # the module logics do not keep it alive
    slicer.modules = types.SimpleNamespace(
        colors=module("Colors", slicer.vtkMRMLColorLogic()),
        volumes=module("Volumes", slicer.vtkSlicerVolumesLogic()),
        segmentations=module("Segmentations", slicer.vtkSlicerSegmentationsModuleLogic()),
    )


def tr(text: str) -> str:
    """The text itself: the translations are the application's."""
    return text


def translate(context: str, text: str) -> str:
    """The text itself: the translations are the application's."""
    return text


class Choice:
    """Annotation of a parameter that takes one of `choices`."""

    def __init__(self, choices):
        self.choices = choices


def parameterNodeWrapper(parameters):
    """The class of parameters itself: only a panel reads and writes them."""
    return parameters


class ScriptedLoadableModule:
    """Base class of the module's description."""

    def __init__(self, parent):
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """Base class of the module's panel, which only the application can show."""

    def __init__(self, parent=None):
        raise RuntimeError("The panel of a module needs the Slicer application.")


class ScriptedLoadableModuleLogic:
    """Base class of the module's logic."""


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base class of the module's self test."""
