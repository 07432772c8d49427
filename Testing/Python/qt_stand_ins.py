"""PySide6 in place of Slicer's PythonQt: the modules `qt` and `ctk`, so that panels of Slicer run in plain Python.

What differs between the two, and is made good here: in PythonQt a Qt property is an attribute (`button.text = "Apply"`,
and `label.width` without parentheses), and signals are connected by their signature (`connect("clicked()", f)`), which
also says how many arguments the slot gets, if it takes as many.
"""

import functools
import inspect
import math
import os
import sys
import types

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtWidgets  # noqa: E402


class PythonQtObject:
    """Mixed into every QObject class."""

    def __getattribute__(self, name):
        if name in ("connect", "disconnect"):  # PySide6 finds its own past any override
            return functools.partial(getattr(PythonQtObject, f"_{name}"), self)
        if not name.startswith("_") and is_property(self, name):
            return QtCore.QObject.property(self, name)
        return super().__getattribute__(name)

    def __setattr__(self, name, value):
        if is_property(self, name):
            if not QtCore.QObject.setProperty(self, name, value):
                raise ValueError(f"{type(self).__name__}.{name} cannot be set to {value!r}")
        else:
            super().__setattr__(name, value)

    def _connect(self, signature, slot):
        if signature.startswith("2"):  # PySide6 itself comes this way when a signal is connected
            return QtCore.QObject.connect(self, signature, slot)
        name, _, parameters = signature.rstrip(")").partition("(")
        calls = (lambda: slot(), lambda first: slot(first), lambda first, second: slot(first, second))
        call = calls[min(len(parameters.split(",")) if parameters else 0, accepted_arguments(slot))]
        super().__getattribute__(name).connect(call)
        self.__dict__.setdefault("_connected", []).append((signature, slot, name, call))
        return True

    def _disconnect(self, signature, slot):
        if signature.startswith("2"):
            return QtCore.QObject.disconnect(self, signature, slot)
        for connection in self.__dict__.get("_connected", []):
            if connection[:2] == (signature, slot):
                super().__getattribute__(connection[2]).disconnect(connection[3])
                self._connected.remove(connection)
                return True
        return False


def accepted_arguments(slot):
    """How many positional arguments a function takes; PythonQt leaves out what is too many."""
    parameters = inspect.signature(slot).parameters.values()
    return math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(parameters)


def is_property(instance, name):
    if name in ("sizeHint", "minimumSizeHint") or (name, type(instance).__name__) == ("text", "QProgressBar"):
        return False  # their getters are virtual: it is Qt that asks, for the method
    return QtCore.QObject.metaObject(instance).indexOfProperty(name) >= 0


class QPainter(QtGui.QPainter):
    """Takes Python's own numbers only: PythonQt finds no overload for those of numpy."""

    def __getattribute__(self, name):
        method = super().__getattribute__(name)

        def call(*arguments):
            assert all(type(a) in (int, float) or not hasattr(a, "__index__") for a in arguments), (name, arguments)
            return method(*arguments)

        return call


def python_qt_class(name):
    """The PySide6 class `name`, with PythonQt's ways if it is a QObject; enumerations and values as they are."""
    if name == "QPainter":
        return QPainter
    for module in (QtCore, QtGui, QtWidgets):
        if hasattr(module, name):
            found = getattr(module, name)
            if isinstance(found, type) and issubclass(found, QtCore.QObject):
                return type(name, (PythonQtObject, found), {})
            return found
    raise AttributeError(f"qt has no {name}")


class LazyModule(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = python_qt_class(name)
        setattr(self, name, value)
        return value


class ctkSliderWidget(PythonQtObject, QtWidgets.QWidget):  # noqa: N801
    """A slider of real numbers."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.__dict__.update(minimum=0.0, maximum=1.0, singleStep=0.05, pageStep=0.1, spinBoxVisible=True)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, maximum=1000)
        self._slider.valueChanged.connect(lambda _: self.valueChanged.emit(self.value))
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)

    def _value(self):
        return self.minimum + self._slider.value() / 1000 * (self.maximum - self.minimum)

    def _set_value(self, value):
        self._slider.setValue(round((value - self.minimum) / (self.maximum - self.minimum) * 1000))

    value = QtCore.Property(float, _value, _set_value)


class ctkCollapsibleGroupBox(PythonQtObject, QtWidgets.QGroupBox):  # noqa: N801
    """A group box whose tick folds it."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setCheckable(True)
        self.toggled.connect(self._fold)

    def _fold(self, shown):
        self.setFlat(not shown)
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
            child.setVisible(shown)

    def _collapsed(self):
        return not self.isChecked()

    def _set_collapsed(self, collapsed):
        self.setChecked(not collapsed)
        self._fold(not collapsed)

    collapsed = QtCore.Property(bool, _collapsed, _set_collapsed)


def install():
    """Make `import qt` and `import ctk` give the stand-ins, with a running QApplication. Returns the application."""
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    sys.modules["qt"] = LazyModule("qt")
    sys.modules["ctk"] = types.ModuleType("ctk")
    sys.modules["ctk"].ctkSliderWidget = ctkSliderWidget
    sys.modules["ctk"].ctkCollapsibleGroupBox = ctkCollapsibleGroupBox
    return application
