"""Checkpoints: what comes back, and what is refused, in one line."""

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from LabelPropLib import checkpoint
from LabelPropLib.errors import InputError

METADATA = {
    "kind": "registration",
    "architecture": {"name": "net", "widths": [16, 32]},
    "preprocessing": {"pixels": 200},
    "training": {"volumes": 3, "steps": 10},
    "licence": "Apache-2.0",
}


def weights():
    return {"a.weight": torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), "a.count": torch.tensor(3)}


@pytest.fixture
def path(tmp_path):
    """A good checkpoint."""
    checkpoint.save(tmp_path / "weights.pt", weights(), METADATA)
    return tmp_path / "weights.pt"


def assert_refused(path, *words, kind="registration"):
    with pytest.raises(InputError) as refusal:
        checkpoint.load(path, kind)
    line = str(refusal.value)
    assert str(path) in line and "\n" not in line
    for word in words:
        assert word in line


class Malicious:
    """Leaves a file behind when unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_what_was_saved_comes_back(path):
    tensors, metadata = checkpoint.load(path, "registration")
    assert tensors.keys() == weights().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights().items())
    assert metadata == {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, **METADATA}


def test_half_precision_takes_half_the_space_and_comes_back_single(path, tmp_path):
    halves = {"w": torch.linspace(-1, 1, 20000).half()}
    checkpoint.save(tmp_path / "half.pt", halves, METADATA)
    checkpoint.save(tmp_path / "single.pt", {"w": halves["w"].float()}, METADATA)
    assert (tmp_path / "half.pt").stat().st_size < 0.6 * (tmp_path / "single.pt").stat().st_size
    tensors, _ = checkpoint.load(tmp_path / "half.pt", "registration")
    assert tensors["w"].dtype == torch.float32
    assert torch.equal(tensors["w"], halves["w"].float())


def test_gradients_are_not_saved(tmp_path):
    checkpoint.save(tmp_path / "w.pt", {"w": torch.nn.Parameter(torch.ones(2))}, METADATA)
    assert not checkpoint.load(tmp_path / "w.pt", "registration")[0]["w"].requires_grad


@pytest.mark.parametrize("archived", [True, False])
def test_code_is_refused_and_not_run(tmp_path, archived):
    trace, path = tmp_path / "trace", tmp_path / "weights.pt"
    content = {"metadata": METADATA, "tensors": {"w": Malicious(trace)}}
    if archived:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert_refused(path, "could run code" if archived else "not a checkpoint")
    assert not trace.exists()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, "damaged", "copy it again")


def test_a_changed_byte_is_found(path):
    content = bytearray(path.read_bytes())
    place = content.find(weights()["a.weight"].numpy().tobytes()[:16])
    assert place > 0
    content[place + 5] ^= 0x10
    path.write_bytes(content)
    assert_refused(path, "damaged")


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign.pt"
    random.seed(0)
    path.write_bytes(random.randbytes(3000))
    assert_refused(path, "not a checkpoint")
    path.write_text("weights")
    assert_refused(path, "not a checkpoint")
    for content in ({"w": torch.ones(2)}, [1, 2], torch.ones(3), {"metadata": METADATA, "tensors": {}}):
        torch.save(content, path)
        assert_refused(path, "not a checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    assert_refused(path, "not a checkpoint")


def test_tensors_have_to_be_tensors_and_metadata_complete(tmp_path):
    path = tmp_path / "weights.pt"
    signed = {"format": checkpoint.FORMAT, "version": 1}
    for content in (
        {"metadata": {**signed, **METADATA}, "tensors": {"w": 3.0}},
        {"metadata": {**signed, **METADATA}},
        {"metadata": signed, "tensors": {}},
        {"metadata": {**signed, **METADATA, "kind": "weather"}, "tensors": {}},
        {"metadata": {**METADATA, "format": checkpoint.FORMAT, "version": "new"}, "tensors": {}},
    ):
        torch.save(content, path)
        assert_refused(path, "not a checkpoint")


def test_a_newer_version_is_refused(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    checkpoint.save(path, weights(), METADATA)
    monkeypatch.undo()
    assert_refused(path, "version 7", "update LabelProp")


def test_weights_for_something_else_are_refused(path):
    assert_refused(path, "registration", "fusion", kind="fusion")


def test_a_file_for_none_of_the_networks_asked_for_is_refused(path):
    for needed in ([], ["registration"], ["registration", "fusion"]):
        checkpoint.check_kind(str(path), needed)
        checkpoint.check_kind("auto", needed)
    with pytest.raises(InputError, match="weights for registration, where those for fusion are needed"):
        checkpoint.check_kind(str(path), ["fusion"])


def test_weights_that_are_not_finite_are_refused(path):
    checkpoint.save(path, {"w": torch.tensor([1.0, float("nan")])}, METADATA)
    assert_refused(path, "NaN")


def test_no_file_or_a_folder(tmp_path):
    assert_refused(tmp_path / "none.pt", "no such file")
    assert_refused(tmp_path, "folder")


def test_a_checkpoint_is_written_whole_or_not_at_all(path):
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save(path, weights(), {**METADATA, "training": lambda: None})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_told_as_what_it_is():
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_plain({"tensors": weights()}, Path("/dev/full"))


def test_incomplete_metadata_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="licence"):
        checkpoint.save(tmp_path / "w.pt", {}, {name: METADATA[name] for name in METADATA if name != "licence"})
    with pytest.raises(ValueError, match="weather"):
        checkpoint.save(tmp_path / "w.pt", {}, {**METADATA, "kind": "weather"})


def test_choice_of_none_a_file_or_what_is_shipped(path, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED_FOLDER", tmp_path / "shipped")
    assert checkpoint.choose("none", "registration") is None
    assert checkpoint.choose("auto", "registration") is None
    (tmp_path / "shipped").mkdir()
    for kind in checkpoint.KINDS:
        checkpoint.save(tmp_path / "shipped" / f"{kind}.pt", {kind: torch.ones(1)}, {**METADATA, "kind": kind})
    assert checkpoint.choose("none", "registration") is None
    assert checkpoint.choose("auto", "fusion")[0].keys() == {"fusion"}
    assert checkpoint.choose(str(path), "registration")[0].keys() == weights().keys()
    assert checkpoint.choose(str(path), "fusion")[0].keys() == {"fusion"}  # a file replaces only those of its kind
    with pytest.raises(InputError, match="no such file"):
        checkpoint.choose(str(tmp_path / "missing.pt"), "registration")
