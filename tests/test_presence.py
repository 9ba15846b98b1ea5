"""Images that go away while a job runs: the job stops, keeps what is right, and resumes."""

import errno
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import COLORS, save_image
from test_resume import Stopping, content

from tltools.classify import Job, run_job
from tltools.classify.presence import MANY, Presence
from tltools.data import images as images_module
from tltools.data.folders import find_folders
from tltools.data.image_ref import ImageRef
from tltools.data.labels import read_labels
from tltools.data.reasons import ENVIRONMENT
from tltools.errors import DataError, MissingError, UnreachableError

SUFFIXES = (".csv", ".jsonl", ".parquet")


class Meddling(Stopping):
    """Progress that does something to the images once so many rows are written."""

    def __init__(self, after, deed):
        super().__init__()
        self._after, self._deed = after, deed

    def advance(self, amount=1, note=""):
        super().advance(amount)
        if self._deed is not None and self.advanced >= self._after:
            self._deed, deed = None, self._deed
            deed()


def run(onnx_path, inputs, output, after=0, deed=None, **options):
    """Run a job, and do something once it has written so many rows."""
    job = Job(onnx_path, inputs, output, device="cpu", **options)
    return run_job(job, progress=Meddling(after, deed))


def rows(output: Path) -> list[str]:
    return output.read_text().splitlines()[1:]


def only_labels(text: list[str]) -> bool:
    return not [row for row in text if "cannot read" in row]


@pytest.fixture
def lots(tmp_path):
    """Three folders of forty images."""
    root = tmp_path / "lots"
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        save_image(root / name / "00.png", color, rng)
        for number in range(1, 40):
            os.link(root / name / "00.png", root / name / f"{number:02}.png")
    return root


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("what", ["root", "folder", "next folder"])
def test_a_folder_that_is_renamed_stops_the_job_which_resumes(
    what, suffix, lots, onnx_path, tmp_path
):
    run(onnx_path, [lots], tmp_path / f"whole{suffix}")
    output = tmp_path / f"out{suffix}"
    place = {"root": lots, "folder": lots / "green", "next folder": lots / "red"}[what]
    away = tmp_path / "away"
    with pytest.raises(UnreachableError, match=r"disappeared .*; mount or move it back, then run"):
        run(onnx_path, [lots], output, 50, lambda: place.rename(away))
    kept = (tmp_path / f"out{suffix}.part").read_text()
    assert only_labels(kept.splitlines())
    assert not output.exists()
    away.rename(place)
    assert run(onnx_path, [lots], output).num_kept >= 50
    assert content(output) == content(tmp_path / f"whole{suffix}")


@pytest.fixture
def mounted(tmp_path, lots):
    """A file system with images, mounted in a folder."""
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    shutil.copytree(lots, place / "lots")
    yield place
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)  # noqa: S607


@pytest.mark.parametrize("how", ["itself", "its parent", "a list", "links"])
def test_an_unmounted_disk_stops_the_job(how, mounted, lots, onnx_path, tmp_path):
    (tmp_path / "list.txt").write_text(
        "\n".join(str(path) for path in sorted((mounted / "lots").rglob("*.png")))
    )
    links = tmp_path / "links"
    links.mkdir()
    for path in (mounted / "lots").rglob("*.png"):
        (links / f"{path.parent.name}{path.name}").symlink_to(path)
    source = {
        "itself": mounted,
        "its parent": tmp_path,
        "a list": tmp_path / "list.txt",
        "links": links,
    }[how]
    if how == "its parent":
        shutil.rmtree(lots)
        shutil.rmtree(links)
    output = tmp_path / "out.csv"

    def unmount():
        subprocess.run(["umount", "-l", mounted], check=True)  # noqa: S607

    with pytest.raises(UnreachableError, match="disappeared"):
        run(onnx_path, [source], output, 50, unmount)
    kept = rows(tmp_path / "out.csv.part")
    assert len(kept) >= 50
    assert only_labels(kept)


@pytest.mark.parametrize("number", [1, 3, MANY - 1])
def test_a_few_deleted_images_have_rows_with_their_error(number, lots, onnx_path, tmp_path):
    def delete():
        for path in sorted((lots / "green").iterdir())[-number:]:
            path.unlink()

    summary = run(onnx_path, [lots], tmp_path / "out.csv", 45, delete)
    assert (summary.num_images, summary.num_failed) == (120, number)
    assert list(summary.errors) == ["no such file or directory"]
    assert [row.split(",")[0] for row in rows(tmp_path / "out.csv")] == [
        f"{color}/{n:02}.png" for color in sorted(COLORS) for n in range(40)
    ]


@pytest.mark.parametrize("number", [MANY, 30])
def test_many_images_that_are_deleted_at_once_stop_the_job(number, lots, onnx_path, tmp_path):
    def delete():
        for path in sorted((lots / "green").iterdir())[-number:]:
            path.unlink()

    output = tmp_path / "out.csv"
    with pytest.raises(UnreachableError, match=rf"and {MANY - 1} images next to it disappeared"):
        run(onnx_path, [lots], output, 45, delete)
    assert only_labels(rows(tmp_path / "out.csv.part"))
    summary = run(onnx_path, [lots], output)  # they stay away: the same command leaves them out
    assert (summary.num_images, summary.num_failed) == (120 - number, 0)


def test_a_list_may_name_any_number_of_images_that_never_existed(lots, onnx_path, tmp_path):
    names = [f"green/{number}.jpg" for number in range(100)]
    names[50:50] = [f"nowhere/{number}.jpg" for number in range(100)]
    names[20:20] = [f"blue/{number:02}.png" for number in range(40)]
    (lots / "list.txt").write_text("\n".join(names))
    summary = run(onnx_path, [lots / "list.txt"], tmp_path / "out.csv")
    assert (summary.num_images, summary.num_failed) == (240, 200)


def test_broken_links_and_unreadable_images_are_no_reason_to_stop(lots, onnx_path, tmp_path):
    for number in range(40):
        (lots / "red" / f"link{number}.png").symlink_to("nowhere.png")
    summary = run(onnx_path, [lots], tmp_path / "out.csv")
    assert (summary.num_images, summary.num_failed) == (160, 40)


@pytest.mark.parametrize("deed", ["delete", "replace", "truncate"])
def test_an_archive_that_goes_away_stops_the_job(deed, lots, onnx_path, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted(lots.rglob("*.png")):
            archive.write(image, image.relative_to(lots))
    data = path.read_bytes()
    listed = [image for portion in _portions(path) for image in portion.images]
    assert listed[0].place.read().startswith(b"\x89PNG")
    again = [image for portion in _portions(path) for image in portion.images]
    if deed == "delete":
        path.unlink()
    elif deed == "replace":
        path.unlink()
        path.write_bytes(data)
    else:
        again[0].place.read()
        os.truncate(path, 2000)
    with pytest.raises(UnreachableError, match=r"the archive .*a\.zip .* after it was listed; "):
        again[100].place.read()


def _portions(path):
    from tltools.classify.inputs import list_portions

    return list(list_portions([path]))


@pytest.mark.parametrize("number", sorted(ENVIRONMENT), ids=lambda one: errno.errorcode[one])
def test_a_failing_disk_or_system_stops_the_job_and_it_resumes(
    number, images, onnx_path, tmp_path, monkeypatch
):
    output = tmp_path / "out.csv"
    run(onnx_path, [images], tmp_path / "whole.csv")
    open_file = images_module._open_file

    def fail(path):
        if str(path).endswith("green/5.png"):
            raise OSError(number, os.strerror(number))
        return open_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(images_module, "_open_file", fail)
        with pytest.raises(UnreachableError, match=r"cannot read .*5\.png: .*; .*, then run it ag"):
            run(onnx_path, [images], output)
    assert len(rows(tmp_path / "out.csv.part")) == 15
    assert run(onnx_path, [images], output).num_kept == 15
    assert content(output) == content(tmp_path / "whole.csv")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT])
def test_a_folder_that_cannot_be_listed_any_more_is_not_skipped(number, lots, monkeypatch):
    scandir = os.scandir

    def fail(path):
        if Path(path).name == "green":
            raise OSError(number, os.strerror(number))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    skipped = []
    with pytest.raises(UnreachableError, match="green"):
        list(find_folders(lots, on_error=skipped.append))
    with pytest.raises(UnreachableError, match="green"):
        read_labels(lots)
    assert skipped == []


def test_a_missing_image_is_told_from_an_unreadable_one(tmp_path):
    from tltools.card import Preprocessing

    rules = Preprocessing(size=8)
    with pytest.raises(MissingError, match="no such file"):
        images_module.load_image(tmp_path / "a.png", rules)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        images_module.load_image(tmp_path / "a.png", rules)
    assert not isinstance(caught.value, MissingError)


def test_folders_are_forgotten_before_they_take_much_memory(tmp_path):
    presence = Presence(are_found=True)
    for number in range(10_000):
        list(presence.listed([ImageRef.of_file(f"{tmp_path}/{number}/a.png")]))
    assert len(presence._identities) < 5000
