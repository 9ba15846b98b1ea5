"""Labeled data in archives; tests/test_remote.py has data on servers."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tltools.atomic import atomic_path
from tltools.data.copies import _remove_others, local_data
from tltools.data.dataset import load_dataset
from tltools.errors import DataError, TltoolsError


def pack(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def members_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("suffix", ["tar", "tgz", "zip"])
def test_an_archive_gives_the_same_data_as_its_folder(suffix, images, tmp_path):
    archive = pack(tmp_path / f"photos.{suffix}", members_of(images))
    packed, plain = (load_dataset(data, purpose="inspect") for data in (archive, images))
    assert packed.fingerprint == plain.fingerprint
    assert packed.classes == plain.classes
    assert packed.name == archive.name
    assert packed.reading == f"classes from the folders in {archive}"


def test_messages_name_the_archive_and_not_its_copy(images, tmp_path):
    members = members_of(images)
    bad = next(iter(members))
    archive = pack(tmp_path / "photos.zip", members | {bad: b"no image"})
    with pytest.raises(DataError, match=f"unreadable \\({archive}/{bad}: not an image"):
        load_dataset(archive)
    (finding,) = [
        one for one in load_dataset(archive, skip_bad=True).findings if one.kind == "unreadable"
    ]
    assert f"{archive}/{bad}: not an image" in finding.message


def test_a_webdataset_shard_is_labeled_by_its_cls_members(images, tmp_path):
    members = {}
    for number, (name, data) in enumerate(members_of(images).items()):
        members[f"./{number:04d}.png"] = data
        members[f"./{number:04d}.cls"] = name.partition("/")[0].encode() + b"\n"
    dataset = load_dataset(pack(tmp_path / "shard-0000.tar", members), purpose="inspect")
    plain = load_dataset(images, purpose="inspect")
    assert dataset.classes == plain.classes
    assert sorted(dataset.frame["sha256"]) == sorted(plain.frame["sha256"])
    labels = dict(zip(plain.frame["sha256"], plain.frame["class"], strict=True))
    found = zip(dataset.frame["sha256"], dataset.frame["class"], strict=True)
    assert all(labels[sha256] == name for sha256, name in found)


def test_a_sample_without_a_label_is_named(images, tmp_path):
    data = next(iter(members_of(images).values()))
    archive = pack(tmp_path / "s.tar", {"a.png": data, "a.cls": b"red", "b.png": data})
    with pytest.raises(DataError, match=r"but not for b.png: "):
        local_data(archive)


def test_an_archive_is_unpacked_once_and_again_when_it_changes(images, tmp_path):
    members = members_of(images)
    archive = pack(tmp_path / "photos.tar", members)
    folder = local_data(archive)
    stamp = (folder / "red" / "0.png").stat().st_mtime_ns
    assert local_data(archive) == folder
    assert (folder / "red" / "0.png").stat().st_mtime_ns == stamp
    pack(archive, {**members, "red/new.png": members["red/0.png"]})
    assert (local_data(archive) / "red" / "new.png").is_file()


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_no_name_escapes_the_cache(suffix, images, tmp_path):
    data = next(iter(members_of(images).values()))
    for name in ("../a.png", "a/../../b.png", "a/../c.png"):
        archive = pack(tmp_path / f"evil.{suffix}", dict.fromkeys((name, "ok/a.png"), data))
        for _ in range(2):
            with pytest.raises(DataError, match=r"evil\.\w+ has a file that no folder can hold, '"):
                local_data(archive)
    assert not list(tmp_path.rglob("*a.png"))


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_no_image_is_left_out_for_its_name(suffix, images, tmp_path):
    data = next(iter(members_of(images).values()))
    names = ["/tmp/tltools-a.png", "c\\d.png", "a/./e.png", "./f.png", "t/2024-01-01T10:00:00.png"]  # noqa: S108
    folder = local_data(pack(tmp_path / f"odd.{suffix}", dict.fromkeys(names, data)))
    assert sorted(members_of(folder)) == sorted(
        ["tmp/tltools-a.png", "c\\d.png", "a/e.png", "f.png", "t/2024-01-01T10:00:00.png"]
    )
    assert not Path("/tmp/tltools-a.png").exists()  # noqa: S108


def test_what_another_process_is_downloading_is_not_removed(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "old.png").touch()
    with atomic_path(tmp_path / "red" / "new.png") as temporary:
        _remove_others(tmp_path, ["red/a.png"])
        temporary.write_bytes(b"new")
    assert list(members_of(tmp_path)) == ["red/new.png"]


def test_links_are_not_followed(images, tmp_path):
    archive = pack(tmp_path / "links.tar", {"red/a.png": (images / "red/0.png").read_bytes()})
    with tarfile.open(archive, "a") as file:
        info = tarfile.TarInfo("red/link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    assert list(members_of(local_data(archive))) == ["red/a.png"]


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".tar.xz", ".zip"])
def test_an_archive_whose_start_is_damaged_is_an_error_of_one_line(suffix, images, tmp_path):
    archive = pack(tmp_path / f"photos{suffix}", members_of(images))
    archive.write_bytes(b"\xff" * 600 + archive.read_bytes()[600:-1000])
    with pytest.raises(
        TltoolsError, match="not a tar or zip archive, or starts with damage"
    ) as error:
        local_data(archive)
    assert "\n" not in str(error.value)


def test_a_damaged_archive_leaves_nothing(images, tmp_path):
    archive = pack(tmp_path / "photos.tgz", members_of(images))
    archive.write_bytes(archive.read_bytes()[:-2000])
    for _ in range(2):
        with pytest.raises(TltoolsError, match="cannot unpack"):
            local_data(archive)


def test_an_archive_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="no images in"):
        local_data(pack(tmp_path / "text.tar", {"labels.csv": b"a,b\n"}))
