"""Training on a data set: samples, steps, resuming, several processes, and the files that are left."""

import copy
import csv
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from LabelPropLib import checkpoint, cli, dataset, files, training_run
from LabelPropLib.errors import InputError
from LabelPropLib.registration.pretraining import Pretraining, PretrainingPlan, Sampling, TrainingVolume, draw
from LabelPropLib.registration.training import new_network
from LabelPropLib.registration_weights import save_network
from LabelPropLib.training_run import RunFiles, pretrain

SCRIPT = Path(cli.__file__)
PACKAGE_FOLDER = SCRIPT.parents[1]
SMALL = Sampling(run=4, crop=32, reductions=(1, 2), longest_gap=5)
SHORT = PretrainingPlan(steps=6, batch=2, interval=2, validation_runs=2)
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])

RUN = f"""
import sys, weakref
sys.path.insert(0, {str(PACKAGE_FOLDER)!r})
from pathlib import Path
import torch
from LabelPropLib import dataset
from LabelPropLib.registration.pretraining import PretrainingPlan, Sampling
from LabelPropLib.training_run import RunFiles, pretrain
table, output, steps, batch = sys.argv[1:]
plan = PretrainingPlan(steps=int(steps), batch=int(batch), interval=2, validation_runs=2)
groups = weakref.WeakSet()
def tell(fraction, message):
    print(message, flush=True)
    if torch.distributed.is_initialized():
        groups.add(torch.distributed.group.WORLD)
pretrain(dataset.read_table(Path(table)), RunFiles(Path(output)), plan, tell, "none", "cpu", sampling={SMALL!r})
assert not groups, "the group lives on, and its threads with it"
"""


def tube(seed: int, planes: int = 10, size: tuple[int, int] = (40, 44)) -> tuple[np.ndarray, np.ndarray]:
    """(Z, rows, columns) image and labels of two tubes that wander through the planes."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    image, labels = np.zeros((planes, *size), np.float32), np.zeros((planes, *size), np.uint8)
    slope = random.uniform(-1, 1, (2, 2))
    for k in range(planes):
        for label, (row, column) in enumerate(((14, 15), (26, 30)), start=1):
            distance = np.hypot(rows - row - k * slope[label - 1, 0], columns - column - k * slope[label - 1, 1])
            image[k] += 400 * label / (1 + np.exp(distance - 6))
            labels[k][distance < 6] = label
    return image + 20 * random.standard_normal(image.shape).astype(np.float32), labels


def volume(seed: int, every: int | None = None) -> TrainingVolume:
    """A tube, annotated on every so manyth plane."""
    image, labels = tube(seed)
    if every is None:
        return dataset.prepare(f"tube {seed}", image, None, (1.0, 1.0))
    labels[np.arange(len(labels)) % every != 0] = 0
    return dataset.prepare(f"tube {seed}", image, labels, (1.0, 1.0))


def write_table(folder: Path, count: int = 3) -> Path:
    """A table of tubes, the second one annotated."""
    lines = ["image,annotations,axis"]
    for seed in range(count):
        image, labels = tube(seed)
        files.write_volume(image, AFFINE, folder / f"image{seed}.nii.gz")
        labels[1::2] = 0
        files.write_volume(labels, AFFINE, folder / f"labels{seed}.nii.gz")
        lines.append(f"image{seed}.nii.gz,{f'labels{seed}.nii.gz' if seed == 1 else ''},")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def run_quickly(
    folder: Path, plan: PretrainingPlan = SHORT, output: str = "weights.pt", start: str = "none"
) -> Pretraining:
    table = folder / "table.csv"
    table = table if table.exists() else write_table(folder)
    return pretrain(
        dataset.read_table(table), RunFiles(folder / output), plan, lambda *told: None, start, "cpu", sampling=SMALL
    )


def read_log(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as stream:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(stream)]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Samples


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), every=st.sampled_from([None, 1, 2, 4]))
def test_a_sample_is_a_small_run_and_its_labels_lie_on_its_grid(seed, every):
    planes, ends = draw(volume(0, every), SMALL, np.random.default_rng(seed))
    assert planes.shape[1] == 2 and planes.dtype == torch.float32 and torch.isfinite(planes).all()
    assert 2 <= len(planes) <= SMALL.longest_gap + 1 and max(planes.shape[-2:]) <= SMALL.crop
    if every is None:
        assert ends is None
    if ends is not None:
        assert ends.moving == (0, len(planes) - 1) and ends.fixed == (len(planes) - 1, 0)
        assert ends.labels_moving.shape[-2:] == planes.shape[-2:]
        assert (ends.labels_moving.sum(dim=(2, 3)) > 0).all()  # only labels that both ends bear
        assert torch.equal(ends.labels_moving, ends.labels_fixed.flip(0))


def test_labels_of_a_sample_lie_where_its_image_shows_them():
    plain = replace(SMALL, gamma=(1, 1), noise=(0, 0), inverted=0, annotated_share=1, reductions=(1,), crop=100)
    for seed in range(8):
        planes, ends = draw(volume(0, 2), plain, np.random.default_rng(seed))
        brightness = planes[[0, -1], 1:]
        masks = ends.labels_moving.amax(dim=1, keepdim=True) > 0.5
        assert brightness[masks].mean() > 4 * brightness[~masks].mean()


def test_gaps_run_between_annotated_planes_with_others_in_between():
    assert volume(0, 4).gaps(longest=5) == [(0, 4), (4, 8)]
    assert volume(0, 4).gaps(longest=8) == [(0, 4), (0, 8), (4, 8)]
    assert volume(0).gaps(longest=8) == []
    assert min(upper - lower for lower, upper in volume(0, 1).gaps(longest=3)) == 2


# Steps


def test_the_network_learns():
    training = Pretraining(
        [volume(0, 3), volume(1)],
        [volume(2)],
        PretrainingPlan(steps=60, batch=2, interval=20, validation_runs=4),
        SMALL,
    )
    while not training.is_done:
        training.advance()
    losses = [row["validation_loss"] for row in training.progress.log]
    assert [row["step"] for row in training.progress.log] == [0, 20, 40, 60]
    assert losses[-1] < 0.97 * losses[0]
    assert training.progress.best_loss == min(losses)


def test_it_ends_early_when_the_validation_does_not_improve_and_keeps_the_best():
    plan = PretrainingPlan(steps=50, batch=1, rate=0.0, interval=1, validation_runs=1, patience=3)
    training = Pretraining([volume(0)], [volume(1)], plan, SMALL)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    while not training.is_done:
        training.advance()
    assert training.progress.step == 3 and training.progress.best_step == 0
    assert same(training.best, before)


def test_weights_that_only_get_worse_are_not_kept():
    plan = PretrainingPlan(steps=4, batch=1, rate=1.0, interval=2, validation_runs=2)
    training = Pretraining([volume(0)], [volume(1)], plan, SMALL)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    training.advance()
    went_on = Pretraining([volume(0)], [volume(1)], plan, SMALL)
    went_on.resume(copy.deepcopy(training.state()))
    for one in (training, went_on):
        one.advance()
        start, *others = one.progress.log
        assert start["step"] == 0 and np.isnan(start["training_loss"])
        assert all(row["validation_loss"] > start["validation_loss"] for row in others)
        assert (one.progress.best_step, one.progress.best_loss) == (0, start["validation_loss"])
        assert same(one.best, before) and not same(one.network.state_dict(), before)
    assert same(went_on.network.state_dict(), training.network.state_dict())


def test_without_volumes_to_validate_with_all_steps_are_made():
    training = Pretraining([volume(0)], [], replace(SHORT, patience=1), SMALL)
    while not training.is_done:
        training.advance()
    assert training.progress.step == SHORT.steps
    assert all(np.isnan(row["validation_loss"]) for row in training.progress.log)


# Resuming


def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path):
    table = write_table(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, script, table, tmp_path / "killed.pt", "12", "2"]
    for wanted in (4, 8):  # killed twice, in the steps after these
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("Step ") and int(line.split(":")[0].split()[1]) >= wanted:
                    break
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "killed.pt").exists()
        assert read_log(tmp_path / "killed.csv")[-1]["step"] < 12
    subprocess.run(command, check=True, capture_output=True)
    whole = run_quickly(tmp_path, PretrainingPlan(steps=12, batch=2, interval=2, validation_runs=2), "whole.pt")
    assert whole.progress.step == 12
    killed, metadata = checkpoint.load(tmp_path / "killed.pt", "registration")
    assert same(killed, checkpoint.load(tmp_path / "whole.pt", "registration")[0])
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "killed.state").exists()


def test_a_state_of_another_training_is_not_gone_on_with(tmp_path):
    write_table(tmp_path)

    class Stop(Exception):
        pass

    def stop(fraction, message):
        if message.startswith("Step 2"):
            raise Stop

    entries = dataset.read_table(tmp_path / "table.csv")
    run = RunFiles(tmp_path / "weights.pt")
    with pytest.raises(Stop):
        pretrain(entries, run, SHORT, stop, "none", "cpu", sampling=SMALL)
    assert run.state.exists()
    with pytest.raises(InputError, match="another table, other files or other options"):
        run_quickly(tmp_path, replace(SHORT, seed=1))
    content = run.state.read_bytes()
    run.state.write_bytes(content[:1000])
    with pytest.raises(InputError, match="damaged"):
        run_quickly(tmp_path)
    run.state.write_bytes(content)
    run_quickly(tmp_path)
    assert run.checkpoint.exists() and not run.state.exists()


# Several processes


def test_two_processes_follow_the_loss_curve_of_one_with_twice_the_batch(tmp_path):
    table = write_table(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, script, table, tmp_path / "two.pt", "8", "2"], check=True)
    run_quickly(tmp_path, PretrainingPlan(steps=8, batch=4, interval=2, validation_runs=2), "one.pt")
    two, one = read_log(tmp_path / "two.csv"), read_log(tmp_path / "one.csv")
    assert len(two) == len(one) == 5
    for here, there in zip(two, one):
        assert here == pytest.approx(there, rel=0.02, nan_ok=True)
    assert checkpoint.load(tmp_path / "two.pt", "registration")[1]["training"]["processes"] == 2


def test_other_files_or_processes_are_another_training(tmp_path, monkeypatch):
    entries = dataset.read_table(write_table(tmp_path))
    start = tmp_path / "start.pt"
    start.write_bytes(b"one")

    def described():
        return repr(training_run.describe(entries, SHORT, SMALL, str(start)))

    seen = {described()}
    for path in (entries[0].image, entries[0].annotations or entries[1].annotations, start):
        path.write_bytes(path.read_bytes() + b"more")
        seen.add(described())
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen.add(described())
    assert len(seen) == 5


def test_only_the_first_process_need_see_the_state(monkeypatch):
    """They may be on several hosts; all go on from what the first one has, or end with what it says."""
    state = {"step": 4}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def broadcast(told, src):
        told[0] = told[0] or state

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assert training_run.from_first(lambda: state, rank=0) == training_run.from_first(lambda: None, rank=1) == state

    def refuse():
        raise InputError("another training")

    with pytest.raises(InputError, match="another training"):
        training_run.from_first(refuse, rank=0)


# Files


@pytest.mark.parametrize("suffix", [".csv", ".png"])
def test_files_of_something_else_are_kept(tmp_path, suffix):
    run = training_run.RunFiles(tmp_path / "anna.pt")
    run.log.with_suffix(suffix).write_bytes(b"name,image\n")
    with pytest.raises(InputError, match=f"anna{suffix} would be replaced"):
        run.check([])
    training_run.write_log([], run.log)  # of a run that was interrupted, its state removed as its message advises
    run.check([])


@pytest.mark.parametrize(
    "suffix, content",
    [(".csv", "step,heart rate\n"), (".csv", "step,training_loss\n"), (".csv", ""), (".png", "x"), (".pt", "x")],
)
def test_weights_of_its_name_do_not_give_away_what_lies_beside_them(tmp_path, suffix, content):
    run = training_run.RunFiles(tmp_path / "anna.pt")
    save_network(run.checkpoint, new_network(0).state_dict(), {"scans": 0}, "MIT")
    run.check([])
    run.log.with_suffix(suffix).write_text(content)
    with pytest.raises(InputError, match=f"anna{suffix} would be replaced"):
        run.check([])
    assert run.log.with_suffix(suffix).read_text() == content


def test_training_goes_on_while_somebody_looks_at_its_log(tmp_path, monkeypatch):
    """As Excel on Windows does, which lets nobody replace the file."""
    run = training_run.RunFiles(tmp_path / "w.pt")
    write_log, refused = training_run.write_log, []

    def write(log, path):
        if not refused:
            refused.append(path)
            raise PermissionError(13, "in use")
        write_log(log, path)

    monkeypatch.setattr(training_run, "write_log", write)
    run_quickly(tmp_path, output="w.pt")
    assert refused == [run.log] and [row["step"] for row in read_log(run.log)] == [0, 2, 4, 6]


def test_what_is_left(tmp_path):
    run_quickly(tmp_path)
    tensors, metadata = checkpoint.load(tmp_path / "weights.pt", "registration")
    assert sum(tensor.numel() for tensor in tensors.values()) > 50_000
    summary = metadata["training"]
    assert summary["scans"] == 2 and len(summary["validation_names"]) == 1
    assert summary["steps"] == SHORT.steps
    log = read_log(tmp_path / "weights.csv")
    assert [row["step"] for row in log] == [0, 2, 4, 6]
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "weights.state").exists()


def test_metadata_count_scans_and_name_them_apart_but_not_where_they_lie(tmp_path):
    image, labels = tube(0)
    (tmp_path / "set" / "deep" / "a").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for folder in (tmp_path / "set" / "deep" / "a", tmp_path / "b"):
        files.write_volume(image, AFFINE, folder / "image.nii.gz")
        files.write_volume(labels, AFFINE, folder / "labels.nii.gz")
    first, second = "deep/a/image.nii.gz,deep/a/labels.nii.gz", "../b/image.nii.gz,../b/labels.nii.gz"
    rows = [f"{row},{axis}" for row in (first, second) for axis in "kj"]
    (tmp_path / "set" / "table.csv").write_text("\n".join(["image,annotations,axis", *rows]))
    pretrain(
        dataset.read_table(tmp_path / "set" / "table.csv"),
        RunFiles(tmp_path / "w.pt"),
        PretrainingPlan(steps=1, batch=1, validation_runs=1),
        lambda *told: None,
        "none",
        "cpu",
        sampling=SMALL,
    )
    summary = checkpoint.load(tmp_path / "w.pt", "registration")[1]["training"]
    assert summary["scans"] == summary["annotated_scans"] == 1
    names = ["deep/a/image.nii.gz across k", "deep/a/image.nii.gz across j"]
    others = ["b/image.nii.gz across k", "b/image.nii.gz across j"]
    assert sorted([summary["names"], summary["validation_names"]]) == sorted([names, others])
    assert dataset.Entry(Path("/c/image.nii")).name == "c/image.nii"


def test_a_plot_of_a_single_row_shows_it(tmp_path, monkeypatch):
    figures = []

    def save(figure, path, **options):
        figures.append(figure)
        Path(path).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
    rows = [{"step": step, "training_loss": 1.0, "validation_loss": np.nan} for step in (1, 2)]
    for log in (rows[:1], rows):
        training_run.plot_log(log, tmp_path / "plot.png")
    markers = [[line.get_marker() for line in figure.axes[0].get_lines()] for figure in figures]
    assert markers == [["o"], [""]]


def test_command_line(tmp_path, capsys):
    table = write_table(tmp_path)
    command = ["pretrain", str(table), "-o", str(tmp_path / "w.pt"), "--checkpoint", "none", "--steps", "2"]
    assert cli.main([*command, "--batch", "1", "--half", "--licence", "MIT", "--device", "cpu"]) == 0
    assert checkpoint.load(tmp_path / "w.pt", "registration")[1]["licence"] == "MIT"
    assert (tmp_path / "w.pt").stat().st_size < 250_000
    assert cli.main([*command, "--steps", "0"]) == 2
    assert cli.main([*command[:3], str(tmp_path / "w.zip")]) == 2
    assert cli.main([*command, "--checkpoint", str(table)]) == 2
    assert "not a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_speaks(tmp_path, capsys, monkeypatch, rank):
    def pretrain(entries, run, plan, progress, **options):
        progress(0.5, "Training")

    monkeypatch.setattr(training_run, "pretrain", pretrain)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    table = write_table(tmp_path, count=1)
    table.write_text(table.read_text().replace("annotations", "anotations"))
    assert cli.main(["pretrain", str(table), "-o", str(tmp_path / "w.pt")]) == 0
    said = capsys.readouterr().err
    for sentence in ("not used: anotations.", "none to validate with", "Training", "Written: "):
        assert said.count(sentence) == (rank == "0")


def test_one_image_leaves_none_to_validate_with(tmp_path, capsys):
    command = ["pretrain", str(write_table(tmp_path, count=1)), "-o", str(tmp_path / "w.pt"), "--checkpoint", "none"]
    assert cli.main([*command, "--steps", "2", "--batch", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert said.count("none to validate with") == 1 and "nan" not in said
    assert f"Written: {tmp_path / 'w.pt'}, log w.csv, plot w.png." in said
    assert cli.main([*command, "--checkpoint", str(checkpoint.SHIPPED_FOLDER / "fusion.pt")]) == 2
    assert "weights for fusion" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [True, False])
def test_who_cancels_is_told_whether_it_can_go_on(tmp_path, capsys, monkeypatch, begun):
    table = write_table(tmp_path)

    def interrupted(entries, run, *arguments, **options):
        if begun:
            run.state.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "pretrain", interrupted)
    assert cli.main(["pretrain", str(table), "-o", str(tmp_path / "w.pt")]) == 130
    assert ("goes on from" if begun else "nothing was written") in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no column image"),
        ("scan\na.nii.gz\n", "no column image"),
        ("image\n", "no rows"),
        ("image\nmissing.nii.gz\n", "missing.nii.gz: no such file"),
        ("image,annotations\nimage0.nii.gz,missing.nii.gz\n", "missing.nii.gz: no such file"),
        ("image,axis\nimage0.nii.gz,x\n", "unknown axis 'x'"),
        ("image,annotations\n,labels0.nii.gz\n", "line 2: no image"),
        ("\x89PNG\x00", "no column image"),
        (f"image\n{'a' * 200_000}\n", "after line 1: not a CSV table"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, content, message):
    write_table(tmp_path, count=1)
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(InputError) as refusal:
        dataset.read_table(tmp_path / "bad.csv")
    assert message in str(refusal.value)


def test_volumes_that_cannot_be_used(tmp_path):
    image, labels = tube(0)
    files.write_volume(image, AFFINE, tmp_path / "image.nii.gz")
    files.write_volume(np.zeros_like(labels), AFFINE, tmp_path / "empty.nii.gz")
    files.write_volume(labels[:5], AFFINE, tmp_path / "short.nii.gz")
    files.write_volume(np.ones_like(image), AFFINE, tmp_path / "constant.nii.gz")
    for entry, message in (
        (dataset.Entry(tmp_path / "image.nii.gz", tmp_path / "empty.nii.gz"), "empty.nii.gz: no labels"),
        (dataset.Entry(tmp_path / "image.nii.gz", tmp_path / "short.nii.gz"), "short.nii.gz has"),
        (dataset.Entry(tmp_path / "constant.nii.gz"), "constant.nii.gz: The image is constant"),
    ):
        with pytest.raises(InputError, match=message):
            dataset.load(entry)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_is_that_of_the_annotations_else_of_the_thick_slices(axis):
    labels = np.zeros((20, 22, 24), np.uint8)
    np.moveaxis(labels, axis, 0)[4::5, 5:15, 5:15] = 3
    assert dataset.choose_axis(labels, (1.0, 1.0, 1.0)) == axis
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    assert dataset.choose_axis(None, tuple(spacing)) == axis
    full = np.zeros((20, 22, 24), np.uint8)
    full[4:16, 4:16, 4:16] = 3
    assert dataset.choose_axis(full, tuple(spacing)) == axis


def test_volumes_are_cropped_to_what_is_more_than_air_and_have_square_pixels():
    image, labels = np.zeros((6, 60, 50), np.float32), np.zeros((6, 60, 50), np.int64)
    image[:, 10:40, 5:45] = 100 + np.arange(40)
    labels[::2, 15:30, 10:20] = 70000
    found = dataset.prepare("name", image, labels, (2.0, 1.0))
    assert found.images.shape == (6, 1, 60, 40)
    assert found.annotated == (0, 2, 4)
    assert set(found.labels.unique().tolist()) == {0, 1}
    assert (found.labels[0] != 0).float().mean() == pytest.approx(15 * 10 / (30 * 40))


@settings(max_examples=30)
@given(images=st.integers(1, 20), rows=st.integers(1, 3), seed=st.integers(0, 5))
def test_an_image_is_either_trained_on_or_held_back(images, rows, seed):
    entries = [dataset.Entry(Path(f"{n}.nii"), axis=axis) for n in range(images) for axis in range(rows)]
    training, held_back = dataset.hold_back(entries, 0.2, seed)
    assert sorted(training + held_back, key=entries.index) == entries
    assert not {e.image for e in training} & {e.image for e in held_back}
    assert training and bool(held_back) == (images > 1)
    assert dataset.hold_back(entries, 0.2, seed) == (training, held_back)


def test_what_is_held_back_does_not_depend_on_where_the_images_lie():
    def held_back(*folders):
        entries = [dataset.Entry(Path(folder, f"{n}.nii")) for folder in folders for n in range(6)]
        return [entries.index(entry) for entry in dataset.hold_back(entries, 0.2, 0)[1]]

    assert held_back("a", "b") == held_back("b", "a")


def test_pretrain_does_as_it_is_told_to(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training_run, "pretrain", lambda *arguments, **choices: seen.append((arguments, choices)))
    command = ["pretrain", str(write_table(tmp_path, 2)), "-o", str(tmp_path / "w.pt"), "--checkpoint", "none"]
    options = ["--steps", "7", "--batch", "2", "--seed", "3", "--device", "cpu", "--licence", "MIT", "--half"]
    assert cli.main([*command, *options]) == 0
    (((entries, run, plan, _), choices),) = seen
    assert len(entries) == 2 and run.checkpoint == tmp_path / "w.pt"
    assert plan == PretrainingPlan(steps=7, batch=2, seed=3)
    assert choices == {"start": "none", "device": "cpu", "licence": "MIT", "half": True}


def test_weights_do_not_replace_those_they_begin_with(tmp_path, capsys):
    start = tmp_path / "start.pt"
    save_network(start, new_network(0).state_dict(), {"scans": 0}, "MIT")
    before = start.read_bytes()
    command = ["pretrain", str(write_table(tmp_path, 2)), "-o", str(start), "--checkpoint", str(start), "--steps", "1"]
    assert cli.main(command) == 2
    assert "start.pt is in use as another file" in capsys.readouterr().err
    assert start.read_bytes() == before


def test_a_log_does_not_replace_the_table(tmp_path, capsys):
    """Not even where there are weights of its name."""
    table = write_table(tmp_path, 2)
    before = table.read_bytes()
    (tmp_path / "table.pt").touch()
    options = ["--checkpoint", "none", "--steps", "1", "--device", "cpu"]
    assert cli.main(["pretrain", str(table), "-o", str(tmp_path / "table.pt"), *options]) == 2
    assert "table.csv is in use as another file" in capsys.readouterr().err
    assert table.read_bytes() == before
