"""Images in tar and zip archives: the same rows as in a folder, and no harm from bad archives."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import COLORS, Recorder, run_tltools

from tltools.card import Preprocessing
from tltools.classify import Job, Shard, list_images, merge_shards, run_job
from tltools.classify.inputs import list_portions
from tltools.data import archives, tar
from tltools.data.archives import list_archive
from tltools.data.dataset import load_dataset
from tltools.data.images import load_image
from tltools.errors import DataError, UnreachableError

KINDS = ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip")
COMPRESSORS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def image(color: str = "red", seed: int = 0) -> bytes:
    path = io.BytesIO()
    save_image_to(path, color, seed)
    return path.getvalue()


def save_image_to(file: io.BytesIO, color: str, seed: int) -> None:
    from PIL import Image

    noise = np.random.default_rng(seed).integers(-20, 21, size=(32, 32, 3))
    pixels = np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")


RED = image()


def tar_of(*members: "tuple[str, bytes] | tarfile.TarInfo", **options) -> bytes:
    """Return a tar of files, or of headers alone."""
    file = io.BytesIO()
    options = {"errors": "surrogateescape"} | options
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def zip_of(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as content:
        for name, data in members:
            content.writestr(name, data)
    return file.getvalue()


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]


def pack(folder: Path, kind: str, target: Path) -> Path:
    """Pack a folder in the order in which folders are listed."""
    path = target / f"photos.{kind}"
    members = files_of(folder)
    path.write_bytes(zip_of(*members) if kind == "zip" else COMPRESSORS[kind](tar_of(*members)))
    return path


def listed(data: bytes, path: Path) -> tuple[dict[str, bytes | str], list[str]]:
    """Members that are images, with their bytes or their errors, and what the archive has."""
    path.write_bytes(data)
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()  # what it takes to read the file, not to write it
    errors: list[DataError] = []
    found: dict[str, bytes | str] = {}
    for group in list_archive(path, on_error=errors.append):
        assert group
        for source in group:
            try:
                found[source.name] = source.place.read()
            except OSError as error:
                found[source.name] = str(error)
    return found, [str(error) for error in errors]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------- the rows of a folder


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_has_the_rows_of_its_folder(kind, images, onnx_path, tmp_path):
    (images / "green" / "broken.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("no image either")
    archive = pack(images, kind, tmp_path)
    run_job(Job(onnx_path, [images], tmp_path / "folder.csv", device="cpu"))
    before = set(tmp_path.rglob("*"))
    run_job(Job(onnx_path, [archive], tmp_path / "archive.csv", device="cpu"))
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "archive.csv"}
    assert (tmp_path / "archive.csv").read_bytes() == (tmp_path / "folder.csv").read_bytes()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_zip_compression_can_be_read(compression, tmp_path):
    members = [(f"{number}.png", image(seed=number)) for number in range(3)]
    data = zip_of(*members, compression=compression)
    assert listed(data, tmp_path / "a.zip") == (dict(members), [])


@pytest.mark.parametrize("plan", [{"threads": 1}, {"threads": 2}, {"workers": 3}])
@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_archives_give_the_same_rows_under_every_plan(kind, plan, images, onnx_path, tmp_path):
    archive = pack(images, kind, tmp_path)
    run_job(Job(onnx_path, [archive], tmp_path / "out.csv", device="cpu", **plan))
    assert [row["path"] for row in rows_of(tmp_path / "out.csv")] == [
        name for name, _ in files_of(images)
    ]
    assert all(row["label"] == row["path"].split("/")[0] for row in rows_of(tmp_path / "out.csv"))


def test_with_several_inputs_the_archives_name_precedes_its_members(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tar = pack(images, "tar", tmp_path).relative_to(tmp_path)
    (tmp_path / "two.zip").write_bytes(zip_of(("b/c.png", RED)))
    alone = [one.name for one in list_images([tar])]
    both = [one.name for one in list_images([tar, Path("two.zip"), Path("images/red/0.png")])]
    assert both == [*(f"photos.tar/{name}" for name in alone), "two.zip/b/c.png",
                    "images/red/0.png"]  # fmt: skip


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "A.TGZ"])
def test_the_kind_of_an_archive_depends_on_its_content_not_its_suffix(name, tmp_path):
    tar = tar_of(("a.png", RED))
    for data in (tar, gzip.compress(tar), bz2.compress(tar), zip_of(("a.png", RED))):
        assert listed(data, tmp_path / name) == ({"a.png": RED}, [])


def test_a_webdataset_shard_keeps_its_order(tmp_path):
    members = [("b.cls", b"1"), ("b.jpg", RED), ("b.json", b"{}"), ("a.cls", b"0"), ("a.jpg", RED)]
    found, errors = listed(tar_of(*members), tmp_path / "train-0000.tar")
    assert (list(found), errors) == (["b.jpg", "a.jpg"], [])


def test_member_names_are_kept_unchanged(tmp_path):
    names = {
        "./a.png": "a.png",
        "./b/./c.png": "b/c.png",
        "/etc/d.png": "etc/d.png",
        "../../e.png": "../../e.png",
        "f/../g.png": "f/../g.png",
        "new\nline.png": "new\nline.png",
        "not-utf8-\udcff.png": "not-utf8-\udcff.png",
        "é/ü.PNG": "é/ü.PNG",
    }
    hidden = [".h.png", "x/.y/i.png", "__MACOSX/._a.png", "j.txt", "png"]
    tar = tar_of(*((name, RED) for name in (*names, *hidden)))
    assert listed(tar, tmp_path / "a.tar") == (dict.fromkeys(names.values(), RED), [])
    del names["not-utf8-\udcff.png"]
    data = zip_of(*((name, RED) for name in (*names, *hidden)))
    assert listed(data, tmp_path / "a.zip") == (dict.fromkeys(names.values(), RED), [])


def test_duplicate_names_get_one_row_each(onnx_path, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(("a.png", image("red")), ("a.png", image("blue"))))
    run_job(Job(onnx_path, [path], tmp_path / "out.csv", device="cpu"))
    rows = rows_of(tmp_path / "out.csv")
    assert [(row["path"], row["label"]) for row in rows] == [("a.png", "red"), ("a.png", "blue")]


# --------------------------------------------------------------------- headers, against `tarfile`

LONG = ["x" * 94 + ".png", "y" * 150 + "/" + "z" * 90 + ".png", "d/" * 200 + "w" * 200 + ".png"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_reader_finds_the_same_members_as_tarfile(kind, tmp_path):
    path = tmp_path / "a.tar"
    usual = ["a.png", "b/c.png", "bytes-\udcff.png", "e\nf.png", *LONG[:2]]
    with tarfile.open(path, "w", format=kind, errors="surrogateescape") as tar:
        for number, name in enumerate(usual + LONG[2:] * (kind != tarfile.USTAR_FORMAT)):
            info = tarfile.TarInfo(name)
            info.mtime = 1.5 if number % 2 else 1  # pax writes an extended header for the first
            info.size = len(RED) + number
            info.uname = "somebody"
            if kind == tarfile.PAX_FORMAT and number % 3 == 2:
                info.pax_headers = {"comment": "path=elsewhere.png"}
            tar.addfile(info, io.BytesIO(RED + b"\0" * number))
            tar.addfile(tarfile.TarInfo(f"folder-{number}"))
    with tarfile.open(path, errors="surrogateescape") as tar:
        expected = {
            info.name: tar.extractfile(info).read()
            for info in tar.getmembers()
            if info.name.endswith(".png")
        }
    assert len(expected) >= 6
    assert listed(path.read_bytes(), path) == (expected, [])


def test_a_global_header_applies_to_all_members(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", pax_headers={"comment": "git"}) as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(RED)
            tar.addfile(info, io.BytesIO(RED))
    assert listed(file.getvalue(), tmp_path / "a.tar") == ({"a.png": RED, "b.png": RED}, [])


def test_the_size_in_an_extended_header_takes_precedence(tmp_path):
    """Write the header of a member of more than 8 GB, with a small member."""
    record = b"%d size=%d\n" % (len("13 size=....\n"), 1000 + len(RED) % 9000)
    size = 1000 + len(RED) % 9000
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    member = tarfile.TarInfo("a.png")
    content = RED.ljust(size, b"\0")
    data += member.tobuf(tarfile.USTAR_FORMAT) + content.ljust(-(-size // 512) * 512, b"\0")
    data += tar_of(("b.png", RED))
    assert listed(data, tmp_path / "a.tar") == ({"a.png": content, "b.png": RED}, [])


def test_headers_written_by_real_tools_are_read(images, tmp_path):
    """GNU tar writes them, in each of its formats."""
    expected = dict(files_of(images))
    for kind in ("gnu", "oldgnu", "pax", "posix", "ustar", "v7"):
        path = tmp_path / f"{kind}.tar"
        command = ["tar", f"--format={kind}", "-cf", path, "-C", images, "."]
        subprocess.run(command, check=True)
        assert listed(path.read_bytes(), path) == (expected, [])


# ----------------------------------------------------------------------------------- hostile tars


def header(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_members_that_are_not_files_get_error_rows(compress, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(RED)
    tar = tar_of(
        ("good.png", RED),
        header("link.png", tarfile.SYMTYPE, linkname=str(secret)),
        header("up.png", tarfile.SYMTYPE, linkname="../secret.png"),
        header("hard.png", tarfile.LNKTYPE, linkname="good.png"),
        header("device.png", tarfile.CHRTYPE, devmajor=1, devminor=5),
        header("block.png", tarfile.BLKTYPE),
        header("fifo.png", tarfile.FIFOTYPE),
        header("folder.png", tarfile.DIRTYPE),
        ("last.png", RED),
    )
    found, errors = listed(compress(tar), tmp_path / "a.tar")
    link = "it is a link in the archive; pack with `tar --dereference --hard-dereference`"
    assert found == {
        "good.png": RED, "link.png": link, "up.png": link, "hard.png": link,
        "device.png": "it is not a file", "block.png": "it is not a file",
        "fifo.png": "it is not a file", "last.png": RED,
    }  # fmt: skip
    assert errors == []


def test_sparse_members_get_error_rows(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(10**9)
        file.write(RED)
    (tmp_path / "good.png").write_bytes(RED)
    for kind in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={kind}", "-cf", tmp_path / "a.tar"]
        subprocess.run([*command, "sparse.png", "good.png"], check=True, cwd=tmp_path)
        data = (tmp_path / "a.tar").read_bytes()
        assert len(data) < 10**6
        assert listed(data, tmp_path / "a.tar") == (
            {
                "sparse.png": "it is a sparse file in the archive; pack it without holes",
                "good.png": RED,
            },
            [],
        )


def test_a_size_far_larger_than_the_archive_is_an_error(tmp_path):
    info = tarfile.TarInfo("large.png")
    data = tar_of(("good.png", RED)).rstrip(b"\0")
    data += b"\0" * (-len(data) % 512)
    for size in (10**6, 8**11 - 1, 2**60, 2**87):
        info.size = size
        found, errors = listed(data + info.tobuf(tarfile.GNU_FORMAT) + RED, tmp_path / "a.tar")
        assert found["good.png"] == RED
        assert found.get("large.png", "the archive ends before the image does") == (
            "the archive ends before the image does"
        )
        assert len(errors) == 1
        assert errors[0].startswith(f"cannot read all of the archive {tmp_path / 'a.tar'}: ")


def negative_size(size: int) -> bytes:
    """A header with a negative size, in base 256, which points back before itself."""
    info = bytearray(tarfile.TarInfo("back.png").tobuf(tarfile.GNU_FORMAT))
    info[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("size", [-512, -1024, -10_000, -1])
def test_a_negative_size_does_not_loop_forever(size, compress, tmp_path):
    data = tar_of(("good.png", RED)).rstrip(b"\0")
    data += b"\0" * (-len(data) % 512)
    found, errors = listed(compress(data + negative_size(size) * 2), tmp_path / "a.tar")
    assert found["good.png"] == RED
    assert len(errors) == 1


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_oversized_or_endless_extended_headers_are_refused(kind, compress, tmp_path):
    good = tar_of(("good.png", RED)).rstrip(b"\0")
    good += b"\0" * (-len(good) % 512)
    large = header("x", kind, size=64 * 2**20).tobuf(tarfile.GNU_FORMAT) + b"a" * (64 * 2**20)
    many = (header("x", kind, size=1).tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 3000
    for data in (large, many):
        tracemalloc.start()
        found, errors = listed(compress(good + data), tmp_path / "a.tar")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == {"good.png": RED}
        (error,) = errors
        if data is large:
            assert "the headers at byte 3,072 claim to have more than 1,048,576 bytes" in error
        if data is large and compress is bytes:
            assert peak < 2 * len(large)  # the test's own bytes


def test_a_damaged_header_ends_the_archive_with_an_error(tmp_path):
    tar = bytearray(tar_of(("a.png", RED), ("b.png", RED), ("c.png", RED)))
    start = tar.index(b"b.png")
    tar[start] = ord("x")  # its checksum does not hold any more
    found, (error,) = listed(bytes(tar), tmp_path / "a.tar")
    assert found == {"a.png": RED}
    assert error == (
        f"cannot read all of the archive {tmp_path / 'a.tar'}: it is corrupt at byte {start:,}; "
        "recreate it, or unpack what is readable"
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zip"])
def test_a_truncated_tar_keeps_the_members_before_the_cut(kind, tmp_path):
    members = [(f"{number}.png", image(seed=number)) for number in range(4)]
    data = COMPRESSORS[kind](tar_of(*members))
    counts = set()
    for length in np.linspace(1, len(data) - 1, 25, dtype=int):
        found, errors = listed(data[:length], tmp_path / "a.tar")
        good = [name for name, content in found.items() if isinstance(content, bytes)]
        assert good == [name for name, _ in members][: len(good)]
        assert all(found[name] == dict(members)[name] for name in good)
        assert len(found) <= len(good) + 1
        whole = kind == "tar" and length >= len(tar_of(*members).rstrip(b"\0")) + 1024
        assert len(errors) == (0 if whole else 1), length
        counts.add(len(good))
    assert {0, 4} <= counts or kind == "tar.bz2"  # of which little can be read if not all


def test_a_tar_without_its_end_mark_is_read_with_a_warning(tmp_path):
    tar = tar_of(("a.png", RED)).rstrip(b"\0")
    tar += b"\0" * (-len(tar) % 512)
    found, (error,) = listed(tar, tmp_path / "a.tar")
    assert found == {"a.png": RED}
    assert f"it is truncated at byte {len(tar):,};" in error


def test_nested_archives_are_reported_and_not_opened(tmp_path):
    inner = tar_of(("b.png", RED))
    for data in (
        tar_of(("a.png", RED), ("x.tar", inner), ("y.ZIP", zip_of(("c.png", RED)))),
        zip_of(("a.png", RED), ("x.tar", inner), ("y.ZIP", zip_of(("c.png", RED)))),
    ):
        found, errors = listed(data, tmp_path / "a.tar")
        assert found == {"a.png": RED}
        assert errors == [
            f"{tmp_path / 'a.tar'} contains nested archives (x.tar and 1 more), which are not "
            "opened; unpack it and name them as inputs"
        ]


# ---------------------------------------------------------------------------------- compression


def test_large_pending_data_of_a_compressed_tar_is_recompressed(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_HELD", 2**20)
    zeros = bytes(2**20)
    members = [(f"{number}.png", RED + zeros) for number in range(50)]
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(tar_of(*members)))
    tracemalloc.start()
    sources = [source for group in list_archive(path) for source in group]
    held = tracemalloc.get_traced_memory()[0]
    assert len(sources) == 50
    assert held < 5 * 2**20
    assert all(source.place.read() == RED + zeros for source in sources)
    tracemalloc.stop()


def test_finished_members_do_not_count_toward_the_memory_limit(tmp_path, monkeypatch):
    """Only pending data counts, not what has already been read."""
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(tar_of(*((f"{number}.png", RED) for number in range(50)))))
    monkeypatch.setattr(archives, "MAX_HELD", 3 * len(RED))
    monkeypatch.setattr(archives.zlib, "compress", lambda *args, **options: pytest.fail("packed"))
    assert sum(len(group) for group in list_archive(path)) == 50


def test_members_that_unpack_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 2**20)
    members = [("a.png", RED), ("bomb.png", bytes(2**20 + 1)), ("c.png", RED)]
    reason = (
        "it has 1,048,577 bytes, more than the limit of 1,048,576 for unpacking in memory; "
        "unpack the archive"
    )
    for data in (gzip.compress(tar_of(*members)), zip_of(*members)):
        found, errors = listed(data, tmp_path / "a.zip")
        assert found == {"a.png": RED, "bomb.png": reason, "c.png": RED}
        assert errors == []


def test_a_decompression_bomb_is_abandoned(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_RATIO", 5)
    unlimited = tar.TarReader

    def limited(file, max_bytes=None):
        return unlimited(file, None if max_bytes is None else max_bytes - 2**30)

    monkeypatch.setattr(archives, "TarReader", limited)
    data = gzip.compress(tar_of(("a.png", RED), ("zeros.bin", bytes(10**7)), ("b.png", RED)))
    found, (error,) = listed(data, tmp_path / "a.tgz")
    assert found == {"a.png": RED}
    assert "bytes (an archive bomb?)" in error


# ------------------------------------------------------------------------------------ names in zips


def zip_without_flag(
    *members: tuple[str, bytes], encoding: str = "utf-8", extra: bytes = b""
) -> bytes:
    """Return a zip whose names have an encoding that no flag tells, as Linux and macOS write it."""
    fill = "x{:03d}"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for index, (name, data) in enumerate(members):
            info = zipfile.ZipInfo(fill.format(index).ljust(len(name.encode(encoding)), "x"))
            info.extra = extra
            file.writestr(info, data)
    packed = content.getvalue()
    for index, (name, _) in enumerate(members):
        raw = name.encode(encoding)
        packed = packed.replace(fill.format(index).encode().ljust(len(raw), b"x"), raw)
    assert not any(info.flag_bits & 0x800 for info in zipfile.ZipFile(io.BytesIO(packed)).filelist)
    return packed


def unicode_path(name: str, *, replaces: bytes) -> bytes:
    field = struct.pack("<BL", 1, zlib.crc32(replaces)) + name.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", "Überwild/ärgerlich.png"),
        ("cp437", "Überwild/ärgerlich.png"),
        ("cp437", "é/a.png"),
    ],
)
def test_names_without_the_flag_are_utf_8_where_they_are_valid(encoding, name, tmp_path):
    data = zip_without_flag((name, RED), ("plain/a.png", RED), encoding=encoding)
    found, errors = listed(data, tmp_path / "a.zip")
    assert found == {name: RED, "plain/a.png": RED}
    assert errors == []
    members = archives.read_members(tmp_path / "a.zip", lambda one: one.startswith(name[0]))
    assert list(members) == [(name, RED)]


def test_the_unicode_path_of_a_zip_member_takes_precedence(tmp_path):
    raw = "Überwild.png".encode()
    for replaces, name in ((raw, "Ünder.png"), (b"another", "Überwild.png")):
        extra = unicode_path("Ünder.png", replaces=replaces)
        data = zip_without_flag((raw.decode(), RED), extra=extra)
        assert listed(data, tmp_path / "a.zip") == ({name: RED}, [])


def test_a_class_of_a_zip_without_the_flag_has_its_name(images, onnx_path, tmp_path):
    members = [(f"good/Überwild/ä{name[-5:]}", data) for name, data in files_of(images)[:4]]
    members += [(f"good/Bees/{name[-5:]}", data) for name, data in files_of(images)[-4:]]
    path = tmp_path / "good.zip"
    path.write_bytes(zip_without_flag(*members))
    dataset = load_dataset(path, purpose="inspect")
    assert dataset.classes == ("Bees", "Überwild")
    output = tmp_path / "rows.csv"
    run_job(Job(onnx_path, [path], output, device="cpu"))
    assert {row["path"] for row in rows_of(output)} == {name for name, _ in members}
    shards = [tmp_path / f"{number}.csv" for number in (1, 2)]
    for number, shard in enumerate(shards, 1):
        run_job(Job(onnx_path, [path], shard, device="cpu", shard=Shard(number, 2)))
    merge_shards(shards, tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == output.read_bytes()


# ----------------------------------------------------------------------------------- hostile zips


def test_encrypted_members_and_links_in_a_zip_get_error_rows(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        content.writestr(link, "/etc/passwd")
        content.writestr("good.png", RED)
        content.writestr("secret.png", RED)
    data = bytearray(file.getvalue())
    central = data.index(b"PK\1\2", data.index(b"secret.png", data.index(b"PK\1\2")) - 46)
    data[central + 8] |= 1
    found, errors = listed(bytes(data), tmp_path / "a.zip")
    assert found == {
        "link.png": "it is a link in the archive",
        "good.png": RED,
        "secret.png": "it is encrypted; unpack the archive with its password",
    }
    assert errors == []


def change_zip(data: bytes, offset: int, kind: str, value: int) -> bytes:
    """Change a field of the first member's entry in the directory."""
    changed = bytearray(data)
    struct.pack_into(kind, changed, data.index(b"PK\1\2") + offset, value)
    return bytes(changed)


SIZE, PACKED, CRC, METHOD, PLACE = (24, "<I"), (20, "<I"), (16, "<I"), (10, "<H"), (42, "<I")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (SIZE, 10, "corrupt in the archive"),
        (SIZE, 10**6, "corrupt in the archive"),
        (SIZE, 2**31, "more than the limit of 268,435,456 for unpacking in memory"),
        (PACKED, 10, "corrupt in the archive"),
        (PACKED, 2**31 - 1, "the archive ends before the image does"),
        (CRC, 1, "corrupt in the archive: Bad CRC-32"),
        (METHOD, 99, "corrupt in the archive: "),
        (PLACE, 7, "the archive is corrupt where the image starts"),
        (PLACE, 2**30, "the archive ends before the image does"),
    ],
)
def test_a_wrong_zip_entry_costs_only_its_own_row(field, value, reason, tmp_path):
    offset, kind = field
    content = b"\0" * 1000 + RED
    data = zip_of(("a.png", content), ("b.png", RED))
    found, errors = listed(change_zip(data, offset, kind, value), tmp_path / "a.zip")
    assert errors == []
    assert found["b.png"] == RED
    assert isinstance(found["a.png"], str)
    assert reason in found["a.png"]


def test_an_unlistable_zip_is_skipped_with_one_error(tmp_path):
    good = zip_of(("aaaa.png", RED), ("b.png", RED))
    not_utf8 = bytearray(good)
    place = good.index(b"PK\1\2")
    not_utf8[place + 9] |= 8  # says that the name is UTF-8
    not_utf8[place + 46 : place + 50] = b"\xff\xfe\xff\xfe"
    for data in (good[:100], good[:-30], good[: good.index(b"PK\1\2")], bytes(not_utf8)):
        found, errors = listed(data, tmp_path / "a.zip")
        assert found == {}
        assert len(errors) == 1
        assert errors[0].startswith(f"cannot read all of the archive {tmp_path / 'a.zip'}: ")
        with pytest.raises(DataError, match="cannot read all of the archive"):
            list(list_archive(tmp_path / "a.zip"))


# -------------------------------------------------------------------------------- anything at all

SMALL = (("a.png", b"a" * 700), ("b/c.png", b"b" * 3), ("x" * 120 + ".png", b"c"))
SEEDS = (
    tar_of(*SMALL, format=tarfile.GNU_FORMAT),
    tar_of(*SMALL, format=tarfile.PAX_FORMAT),
    gzip.compress(tar_of(*SMALL)),
    zip_of(*SMALL),
    zip_of(*SMALL, compression=zipfile.ZIP_LZMA),
)


@hypothesis.given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 6000)),
)
def test_a_damaged_archive_gives_rows_and_known_errors_only(seed, changes, cut, tmp_path_factory):
    data = bytearray(seed)
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    found, errors = listed(bytes(data[:cut]), path)  # other exceptions fail the test
    assert len(errors) <= 2
    assert all("\n" not in error for error in errors)
    assert len(found) <= 100


# --------------------------------------------------------------------- files that are no archives


def test_files_that_are_not_archives_are_errors(tmp_path, onnx_path):
    (tmp_path / "text.tar").write_text("This is no archive.\n" * 100)
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "nothing.tar").write_bytes(tar_of())
    os.mkfifo(tmp_path / "fifo.tar")
    for name in ("text.tar", "empty.zip", "nothing.tar", "fifo.tar"):
        with pytest.raises(DataError, match=r"no images in|cannot read all") as caught:
            run_job(Job(onnx_path, [tmp_path / name], tmp_path / "out.csv", device="cpu"))
        assert "\n" not in str(caught.value)


def test_a_folder_with_an_archives_name_is_a_folder(images, tmp_path):
    folder = images.rename(tmp_path / "photos.tar")
    assert len(list(list_images([folder]))) == 30


# ------------------------------------------------------------------------------- reading, opening


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_open_only_while_they_are_read(kind, tmp_path):
    before = num_open_files()
    paths = [tmp_path / f"{number}.{kind}" for number in range(20)]
    for number, path in enumerate(paths):
        members = (("a.png", image(seed=number)), ("b.png", RED))
        path.write_bytes(zip_of(*members) if kind == "zip" else COMPRESSORS[kind](tar_of(*members)))
    portions = list_portions(paths)
    if kind in ("tar", "zip"):  # listed ahead, as for the progress bar
        ahead = list(portions)
        assert num_open_files() == before
        portions = (ahead.pop(0) for _ in paths)
    most = 0
    for portion in portions:
        for one in portion.images:
            load_image(one, Preprocessing(size=32, resize="squash"))
            most = max(most, num_open_files())
    del portion, one
    assert most <= before + 2
    assert num_open_files() == before


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_changes_after_listing_stops_its_reader(kind, images, tmp_path):
    path = pack(images, kind, tmp_path)
    for change in (lambda: os.utime(path, (1, 1)), path.unlink):
        sources = [source for group in list_archive(path) for source in group]
        change()
        with pytest.raises(UnreachableError, match=r"photos\.\w+ (was repl|.*no such).*after"):
            load_image(sources[0], Preprocessing(size=32, resize="squash"))


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_memory_does_not_grow_with_the_size_of_the_archive(kind, tmp_path):
    def peak(num_members: int) -> int:
        members = ((f"{number:06}.png", RED) for number in range(num_members))
        path = tmp_path / f"{num_members}.{kind}"
        path.write_bytes(COMPRESSORS[kind](tar_of(*members)))
        tracemalloc.start()
        for one in list_images([path]):
            assert one.place.read() == RED
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(12_000) < 1.2 * peak(3000)


def test_listing_yields_members_before_the_archive_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(tar_of(*((f"{number}.png", RED) for number in range(100)))))
    next(list_archive(path))
    reads: list[int] = []
    read = tar.TarReader._read

    def counted(self, size):
        reads.append(size)
        return read(self, size)

    monkeypatch.setattr(tar.TarReader, "_read", counted)
    assert [source.name for source in next(list_archive(path))] == ["0.png"]
    assert len(reads) == 2


# ------------------------------------------------------------------------------ the rest of the job


class Stopping(Recorder):
    """Stops the job after so many rows."""

    def __init__(self, after: int):
        super().__init__()
        self._left = after

    @contextmanager
    def bar(self, description, total, unit="images"):
        yield self

    def advance(self, amount=1, note=""):
        self._left -= amount
        if self._left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 17, 29])
@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_a_job_over_an_archive_resumes(kind, after, images, onnx_path, tmp_path):
    archive = pack(images, kind, tmp_path)
    run_job(
        Job(onnx_path, [archive], tmp_path / "whole.csv", device="cpu", threads=2, batch_size=4)
    )
    options = {"device": "cpu", "threads": 2, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        run_job(Job(onnx_path, [archive], tmp_path / "o.csv", **options), progress=Stopping(after))
    summary = run_job(Job(onnx_path, [archive], tmp_path / "o.csv", **options))
    assert summary.num_kept == min(30, -(-after // 4) * 4)  # rows are written batch by batch
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


DANGEROUS = """
import os, signal, sys, time
pread = os.pread
def dangerous(handle, size, start):
    data = pread(handle, size, start)
    if b"CRASHES" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"HANGS" in data:
        time.sleep(1000)
    return data
os.pread = dangerous
from tltools.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_crash_or_hang_their_decoder_cost_only_their_own_rows(
    kind, images, onnx_path, tmp_path
):
    members = files_of(images)
    members[5:5] = [("c.png", b"CRASHES"), ("green/h.png", b"HANGS")]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(tar_of(*members) if kind == "tar" else zip_of(*members, compression=0))
    args = ["classify", path, "--model", onnx_path, "--device", "cpu", "-o", tmp_path / "o.csv"]
    command = [sys.executable, "-c", DANGEROUS, *map(str, args), "--image-timeout", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "o.csv")
    assert [row["path"] for row in rows] == [name for name, _ in members]
    assert {row["path"]: row["error"] for row in rows if row["error"]} == {
        "c.png": "cannot read image c.png: the decoder crashed (SIGSEGV)",
        "green/h.png": "cannot read image h.png: the decoder took longer than 1 s for an image",
    }


def test_the_ledger_knows_an_archives_images_from_their_folder(images, onnx_path, tmp_path):
    run_job(
        Job(onnx_path, [images], tmp_path / "a.csv", device="cpu", ledger_dir=tmp_path / "known")
    )
    for kind in ("tar", "tgz", "zip"):
        summary = run_job(
            Job(
                onnx_path,
                [pack(images, kind, tmp_path)],
                tmp_path / f"{kind}.csv",
                device="cpu",
                ledger_dir=tmp_path / "known",
            )
        )
        assert summary.num_known == 30
        assert (tmp_path / f"{kind}.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_a_report_does_not_mistake_other_files_for_members(images, tmp_path, monkeypatch):
    from tltools.report.jobs import locate_inputs

    monkeypatch.chdir(images)
    for name in ("a.tar", "b.zip"):
        Path(name).write_bytes(tar_of(("red/0.png", RED)))
    assert Path("red/0.png").exists()
    assert locate_inputs([Path("a.tar")])("red/0.png") is None
    assert locate_inputs([Path("a.tar"), Path("b.zip")])("a.tar/../red/0.png") is None


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_shards_of_an_archive_merge_into_the_rows_of_one_job(kind, onnx_path, tmp_path):
    members = [(f"{number}.png", image(list(COLORS)[number % 3], number)) for number in range(70)]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(zip_of(*members) if kind == "zip" else COMPRESSORS[kind](tar_of(*members)))
    run_job(Job(onnx_path, [path], tmp_path / "whole.csv", device="cpu"))
    outputs = [tmp_path / f"{index}.csv" for index in (1, 2)]
    for index, output in enumerate(outputs, 1):
        run_job(Job(onnx_path, [path], output, device="cpu", shard=Shard(index, 2)))
    merge_shards(outputs, tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_command_reports_what_is_wrong_with_an_archive(images, onnx_path, tmp_path):
    members = files_of(images)
    members[3] = ("odd\x1b.png", b"no image")
    good = tar_of(*members)
    (tmp_path / "photos.tar").write_bytes(good[:5000])
    args = ("classify", "photos.tar", "--model", onnx_path, "--device", "cpu", "-o", "out.csv",
            "--errors-to", "errors.csv")  # fmt: skip
    result = run_tltools(*args, "--strict", cwd=tmp_path)
    assert result.code == 1
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: skipped")]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "warning: skipped: cannot read all of the archive photos.tar: it is truncated at byte"
    )
    (tmp_path / "photos.tar").write_bytes(good)
    result = run_tltools(*args, "--overwrite", "--json", cwd=tmp_path)
    assert result.code == 0
    document = json.loads(result.out)
    assert (document["num_images"], document["num_failed"], document["unlisted"]) == (30, 1, [])
    assert document["errors"] == {"not an image of a known format": 1}
    assert rows_of(tmp_path / "errors.csv") == [
        {"path": "odd\x1b.png", "error": "cannot read image 'odd\\x1b.png': not an image of "
         "a known format"}
    ]  # fmt: skip
