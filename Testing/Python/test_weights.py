"""What checkpoints do: in the pipeline, on the command line, and those that come with LabelProp."""

import hashlib
import sys

import numpy as np
import pytest
import torch

from LabelPropLib import checkpoint, cli, files, pipeline, training_run
from LabelPropLib.annotation import annotate_from_label_volume
from LabelPropLib.errors import InputError
from LabelPropLib.pipeline import propagate
from LabelPropLib.registration import training
from LabelPropLib.registration.training import Course, Phase, new_network
from LabelPropLib.registration_weights import ARCHITECTURE, PREPROCESSING, load_network, save_network
from LabelPropLib.settings import Settings

SUMMARY = {"scans": 0}


def disc_volume(planes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) image and labels of a disc that wanders."""
    rows, columns = np.indices((48, 48))
    distance = np.stack([np.hypot(rows - 18 - k, columns - 20 - k) for k in range(planes)])
    noise = np.random.default_rng(0).standard_normal(distance.shape)
    return (300 / (1 + np.exp(distance - 8)) + 5 * noise).astype(np.float32), (distance < 8).astype(np.uint8)


@pytest.fixture
def annotation():
    image, labels = disc_volume()
    labels[1:8] = 0
    return annotate_from_label_volume(image, labels, (3.0, 1.0, 1.0))


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of random weights that move things."""
    tensors = new_network(3).state_dict()
    tensors["flow.weight"] = 200 * tensors["flow.weight"]
    save_network(tmp_path / "weights.pt", tensors, SUMMARY, "MIT")
    return tmp_path / "weights.pt"


@pytest.fixture
def quick(monkeypatch):
    """Training on a scan in a few steps."""
    monkeypatch.setattr(training, "PRETRAINED", Course(phases=(Phase(2, 3, 2e-3),)))
    monkeypatch.setattr(training, "FROM_SCRATCH", Course(phases=(Phase(2, 3, 2e-3),)))


def test_networks_come_back_from_checkpoints(weights):
    network = load_network(str(weights))
    expected = new_network(3).state_dict()
    assert torch.equal(network.state_dict()["refine.weight"], expected["refine.weight"])
    assert load_network("none") is None


@pytest.mark.parametrize("name", ["architecture", "preprocessing", "tensors"])
def test_weights_of_another_network_are_refused(tmp_path, name):
    metadata = {"kind": "registration", "architecture": ARCHITECTURE, "preprocessing": PREPROCESSING}
    metadata |= {"training": SUMMARY, "licence": "MIT"}
    tensors = new_network(0).state_dict()
    if name == "tensors":
        tensors["flow.bias"] = torch.zeros(3)
    else:
        metadata[name] = {"name": "another"}
    checkpoint.save(tmp_path / "w.pt", tensors, metadata)
    with pytest.raises(InputError, match="another checkpoint"):
        load_network(str(tmp_path / "w.pt"))


def test_pretrained_registration_takes_the_network_as_it_is(annotation, weights, monkeypatch):
    monkeypatch.setattr(pipeline, "far_ends", None)  # nothing is compared with what is drawn
    settings = Settings(registration="pretrained", checkpoint=str(weights), device="cpu")
    found = propagate(annotation, settings)
    assert found.report["registration"] == "pretrained"
    still = new_network(0).state_dict()
    still["flow.weight"].zero_()
    save_network(weights, still, SUMMARY, "MIT")
    assert not np.array_equal(found.label_maps[0], propagate(annotation, settings).label_maps[0])


def test_pretrained_registration_needs_weights(annotation):
    with pytest.raises(InputError, match="No weights"):
        propagate(annotation, Settings(registration="pretrained", checkpoint="none"))


def test_training_on_the_scan_starts_from_the_checkpoint(annotation, weights, quick):
    from_file, from_scratch = (
        propagate(annotation, Settings(registration="network", checkpoint=choice, device="cpu")).label_maps[0]
        for choice in (str(weights), "none")
    )
    assert not np.array_equal(from_file, from_scratch)


@pytest.mark.parametrize("registration", ["network", "pretrained"])
def test_weights_of_the_other_kind_are_refused(annotation, weights, registration):
    fusion = str(checkpoint.SHIPPED_FOLDER / "fusion.pt")
    with pytest.raises(InputError, match="weights for fusion, where those for registration"):
        propagate(annotation, Settings(registration=registration, checkpoint=fusion))
    with pytest.raises(InputError, match="weights for registration, where those for fusion"):
        propagate(annotation, Settings(fusion="deep", checkpoint=str(weights)))


def test_who_gives_weights_that_are_not_used_is_told(annotation, weights):
    def told(**choices):
        said = propagate(annotation, Settings(preset="fast", device="cpu", checkpoint=str(weights), **choices)).report
        return [message for message in said["messages"] if "weights" in message]

    assert told() == [
        f"The weights of {weights} are not used by the registration 'instance': choose network or pretrained."
    ]
    assert told(registration="pretrained") == []


@pytest.mark.parametrize("registration", ["auto", "network", "pretrained"])
def test_a_wrong_checkpoint_is_said_in_one_line_and_nothing_is_written(tmp_path, capsys, registration):
    image, labels = disc_volume()
    labels[1:8] = 0
    files.write_volume(image, np.diag([1.0, 1, 3, 1]), tmp_path / "image.nii.gz")
    files.write_volume(labels, np.diag([1.0, 1, 3, 1]), tmp_path / "labels.nii.gz")
    (tmp_path / "wrong.pt").write_text("no weights")
    names = sorted(path.name for path in tmp_path.iterdir())
    command = ["propagate", *(str(tmp_path / name) for name in ("image.nii.gz", "labels.nii.gz"))]
    command += ["-o", str(tmp_path / "out.nii.gz"), "--registration", registration, "--preset", "fast"]
    for wrong in ("wrong.pt", "missing.pt"):
        capsys.readouterr()
        assert cli.main([*command, "--checkpoint", str(tmp_path / wrong)]) == 2
        complaints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labelprop: ")]
        assert len(complaints) == 1 and wrong in complaints[0]
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_train_keeps_the_network_of_one_scan(tmp_path, quick, capsys):
    image, labels = disc_volume()
    labels[1:8] = 0
    files.write_volume(image, np.diag([1.0, 1, 3, 1]), tmp_path / "image.nii.gz")
    files.write_volume(labels, np.diag([1.0, 1, 3, 1]), tmp_path / "labels.nii.gz")
    command = ["train", *(str(tmp_path / name) for name in ("image.nii.gz", "labels.nii.gz"))]
    assert cli.main([*command, "-o", str(tmp_path / "own.pt"), "--checkpoint", "none", "--licence", "MIT"]) == 0
    _, metadata = checkpoint.load(tmp_path / "own.pt", "registration")
    assert metadata["training"]["annotated_slices"] == 2 and metadata["licence"] == "MIT"
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 1 + 3
    assert f"Written: {tmp_path / 'own.pt'}, log own.csv, plot own.png." in capsys.readouterr().err
    assert load_network(str(tmp_path / "own.pt")) is not None
    assert cli.main([*command, "-o", str(tmp_path / "image.nii.gz")]) == 2
    assert cli.main([*command, "-o", str(tmp_path / "other.pt"), "--checkpoint", str(tmp_path / "own.csv")]) == 2
    assert not (tmp_path / "other.pt").exists()


def test_train_does_as_it_is_told_to(tmp_path, monkeypatch):
    image, labels = disc_volume()
    labels[1:8] = 0
    files.write_volume(image, np.diag([1.0, 1, 3, 1]), tmp_path / "image.nii.gz")
    files.write_volume(labels, np.diag([1.0, 1, 3, 1]), tmp_path / "labels.nii.gz")
    seen = []
    monkeypatch.setattr(training_run, "train", lambda *arguments: seen.append(arguments))
    command = ["train", *(str(tmp_path / name) for name in ("image.nii.gz", "labels.nii.gz")), "-o"]
    options = ["--axis", "j", "--missing", "unknown", "--preset", "fast", "--device", "cpu", "--seed", "3"]
    assert cli.main([*command, str(tmp_path / "own.pt"), *options, "--licence", "MIT"]) == 0
    ((annotation, run, settings, licence, _),) = seen
    assert (annotation.axis, annotation.missing) == (1, "unknown")
    assert settings == Settings(preset="fast", device="cpu", seed=3)
    assert (run.checkpoint, licence) == (tmp_path / "own.pt", "MIT")


def write_scan(folder, drawn):
    """Image and annotations of a disc drawn on some slices; returns their paths."""
    image, labels = disc_volume()
    files.write_volume(image, np.diag([1.0, 1, 3, 1]), folder / "image.nii.gz")
    kept = np.isin(np.arange(len(labels)), drawn)[:, None, None]
    files.write_volume(labels * kept, np.diag([1.0, 1, 3, 1]), folder / "labels.nii.gz")
    return [str(folder / name) for name in ("image.nii.gz", "labels.nii.gz")]


def test_one_drawn_slice_trains_nothing(tmp_path, quick, capsys):
    inputs = write_scan(tmp_path, [4])
    before = sorted(tmp_path.iterdir())
    assert cli.main(["train", *inputs, "-o", str(tmp_path / "own.pt"), "--checkpoint", "none"]) == 2
    assert "Only slice 4 is annotated" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_training_that_is_interrupted_at_its_plot_leaves_nothing(tmp_path, quick, capsys, monkeypatch):
    def interrupted(log, path):
        raise KeyboardInterrupt

    inputs = write_scan(tmp_path, [0, 8])
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(training_run, "plot_log", interrupted)
    assert cli.main(["train", *inputs, "-o", str(tmp_path / "own.pt"), "--checkpoint", "none"]) == 130
    assert "cancelled, nothing was written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_matplotlib_that_cannot_be_loaded_costs_the_plot_alone(tmp_path, quick, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["train", *write_scan(tmp_path, [0, 8]), "-o", str(tmp_path / "own.pt")]) == 0
    assert capsys.readouterr().err.endswith(f"Written: {tmp_path / 'own.pt'}, log own.csv.\n")
    assert (tmp_path / "own.csv").exists() and not (tmp_path / "own.png").exists()


def test_trained_weights_tell_what_they_began_with_but_not_where_it_lay(tmp_path, weights, quick, capsys):
    command = ["train", *write_scan(tmp_path, [0, 8]), "-o", str(tmp_path / "own.pt"), "--checkpoint"]
    assert cli.main([*command, str(weights)]) == 0
    _, metadata = checkpoint.load(tmp_path / "own.pt", "registration")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert metadata["training"]["start"] == {"file": "weights.pt", "sha256": digest}
    assert str(tmp_path) not in repr(metadata)
    assert cli.main([*command, str(checkpoint.SHIPPED_FOLDER / "fusion.pt")]) == 2
    assert "weights for fusion" in capsys.readouterr().err
    before = (tmp_path / "own.pt").read_bytes()
    assert cli.main([*command, str(tmp_path / "own.pt")]) == 2
    assert "own.pt is in use as another file" in capsys.readouterr().err
    assert (tmp_path / "own.pt").read_bytes() == before
