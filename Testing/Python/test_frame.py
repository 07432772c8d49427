"""What Slicer, its extensions index and pip read of the repository agrees with what lies in it."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import matplotlib.image
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_FOLDERS = ("LabelProp", "LabelPropEffect")
ICONS = {
    "LabelProp.png": 128,
    "LabelProp/Resources/Icons/LabelProp.png": 128,
    "LabelPropEffect/SegmentEditorLabelPropLib/SegmentEditorEffect.png": 42,
}

WITHIN_SLICER = {"slicer", "vtk", "qt", "ctk", "SegmentEditorEffects", "numpy", "scipy", "SimpleITK"}
OWN_FOLDERS = {
    "LabelProp": "LabelProp",
    "LabelPropLib": "LabelProp",
    "SegmentEditorLabelProp": "LabelPropEffect",
    "SegmentEditorLabelPropLib": "LabelPropEffect",
}

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])(?:/(?:home|Users|root|tmp|mnt|opt|work|data)/|[A-Z]:\\\\?[A-Za-z])")
TEXT_SUFFIXES = {".py", ".ui", ".md", ".toml", ".txt", ".json", ".cff", ".cmake", ""}


def cmake_value(name):
    """The text of `set(name "...")` in the top CMakeLists.txt."""
    return re.search(rf'set\({name} "([^"]*)"\)', (REPOSITORY / "CMakeLists.txt").read_text())[1]


def cmake_list(folder, name):
    """The entries of `set(name ...)` in the module's CMakeLists.txt, with its variables filled in."""
    text = (REPOSITORY / folder / "CMakeLists.txt").read_text()
    module = re.search(r"set\(MODULE_NAME (\w+)\)", text)[1]
    entries = re.search(rf"set\({name}\s+(.*?)\s*\)", text, re.DOTALL)[1]
    return entries.replace("${MODULE_NAME}", module).split()


def shipped_files(folder):
    """Paths of the module's files, relative to its folder."""
    root = REPOSITORY / folder
    ignored = {"__pycache__", "labelprop.egg-info"}
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return {file.as_posix() for file in files if not ignored & set(file.parts) and file.name != "CMakeLists.txt"}


def pyproject():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.mark.parametrize("folder", MODULE_FOLDERS)
def test_cmake_lists_every_shipped_file_once(folder):
    listed = {kind: cmake_list(folder, f"MODULE_PYTHON_{kind}") for kind in ("SCRIPTS", "RESOURCES")}
    shipped = shipped_files(folder)
    assert set(listed["SCRIPTS"]) == {file for file in shipped if file.endswith(".py")}
    assert set(listed["RESOURCES"]) == {file for file in shipped if not file.endswith(".py")}
    assert len(listed["SCRIPTS"] + listed["RESOURCES"]) == len(shipped)


def test_extension_index_entry_agrees_with_cmake():
    project = re.search(r"project\((\w+)\)", (REPOSITORY / "CMakeLists.txt").read_text())[1]
    entry = json.loads((REPOSITORY / f"{project}.json").read_text())
    assert entry["build_dependencies"] == cmake_value("EXTENSION_DEPENDS").split()
    assert entry["scm_url"] == cmake_value("EXTENSION_HOMEPAGE") + ".git"
    assert Path(entry["scm_url"]).stem == f"Slicer{project}"


@pytest.mark.parametrize("name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_pictures_of_the_extension_are_in_the_repository(name):
    for url in cmake_value(name).split():
        assert (REPOSITORY / url.partition("/main/")[2]).is_file(), url


@pytest.mark.parametrize("path, least_pixels", ICONS.items())
def test_icon_is_square_large_enough_and_stands_free(path, least_pixels):
    icon = matplotlib.image.imread(REPOSITORY / path)
    height, width, channels = icon.shape
    assert height == width >= least_pixels
    assert channels == 4
    assert icon[0, 0, 3] == 0 and (icon[..., 3] == 1).mean() > 0.4


def test_pyproject_names_every_package():
    packages = {
        path.parent.relative_to(REPOSITORY / "LabelProp") for path in (REPOSITORY / "LabelProp").rglob("__init__.py")
    }
    assert sorted(pyproject()["tool"]["setuptools"]["packages"]) == sorted(".".join(p.parts) for p in packages)


def test_constraints_pin_every_dependency():
    project = pyproject()["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.split(r"[<>=]", requirement)[0].lower() for requirement in needed}
    pins = re.findall(r"^([\w-]+)==", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert names <= {pin.lower() for pin in pins}


def test_console_command_is_there():
    module, function = pyproject()["project"]["scripts"]["labelprop"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def file_scope_imports(path):
    """What importing the file imports, as dotted names; of `from a import b` both a and a.b, as b may be a module."""
    names = []
    pending = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(
                path.parent.relative_to(own_root(path)).parts[: None if node.level < 2 else 1 - node.level]
            )
            source = ".".join(filter(None, [package if node.level else "", node.module]))
            names += [source] + [f"{source}.{alias.name}" for alias in node.names]
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not is_type_checking(node):
            pending += ast.iter_child_nodes(node)
    return names


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def own_root(path):
    """The folder of the module path that holds the file."""
    return next(REPOSITORY / folder for folder in MODULE_FOLDERS if path.is_relative_to(REPOSITORY / folder))


def own_files(name):
    """The files of ours that importing `name` runs: the module's, and those of the packages it lies in."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = REPOSITORY.joinpath(OWN_FOLDERS.get(parts[0], ""), *parts[:count])
        yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())


@pytest.mark.parametrize(
    "entrance", ["LabelProp", "SegmentEditorLabelProp", "SegmentEditorLabelPropLib.SegmentEditorEffect"]
)
def test_modules_load_with_what_slicer_bundles(entrance):
    """They and what they import of ours import nothing else at file scope: PyTorch may not be installed yet."""
    reached, pending = set(), list(own_files(entrance))
    assert pending
    while pending:
        file = pending.pop()
        if file not in reached:
            reached.add(file)
            names = file_scope_imports(file)
            packages = {name.partition(".")[0] for name in names}
            assert packages <= WITHIN_SLICER | set(OWN_FOLDERS) | set(sys.stdlib_module_names), file
            pending += [imported for name in names for imported in own_files(name)]


def text_files():
    skipped = {".git", ".venv", "build", "dist"}
    for path in sorted(REPOSITORY.rglob("*")):
        parts = path.relative_to(REPOSITORY).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
        if path.is_file() and path.suffix in TEXT_SUFFIXES and not hidden and not skipped & set(parts):
            yield path


def test_no_absolute_paths():
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in text_files()
        for line in path.read_text(encoding="utf-8").splitlines()
        if ABSOLUTE_PATH.search(line)
    ]
    assert not found


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (REPOSITORY / target).exists()]
    assert targets and not missing
