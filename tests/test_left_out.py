"""Images with odd names: files without an image suffix, lists in UTF-16, zero bytes in names."""

import io
import json
import os
import tarfile
import zipfile

import pytest
from conftest import COLORS, run_tltools
from test_resume import content, stop

from tltools.classify import Job, list_images, run_job
from tltools.classify.inputs import list_portions
from tltools.classify.listing import NamesDigest
from tltools.classify.output_formats import output_format
from tltools.data import left_out
from tltools.data.left_out import LeftOut
from tltools.data.suffixes import is_image_name, suffix_of


@pytest.mark.parametrize(
    "name",
    [
        *("a.heic", "IMG_1.HEIF", "a.hif", "a.mpo", "b.dib", "c.jpx", "c.j2c", "s.jxl", "r.dng"),
        *("t.jpg_large", "t.png:orig", "T.JPG_SMALL", "a.pfm", "a.avifs", "a.jif"),
    ],
)
def test_name_of_an_image_is_one(name):
    assert is_image_name(name)


@pytest.mark.parametrize(
    "name", ["a.txt", "jpg", "a.b/jpg", "a.jpg_original", "a.txt_large", "a.jpg.part", "a."]
)
def test_other_names_are_none(name):
    assert not is_image_name(name)


def test_suffix_is_that_of_the_last_part():
    assert [suffix_of(name) for name in ("a.b/c", "a.B", ".hidden", "c")] == ["", ".b", "", ""]


@pytest.fixture
def odd(images):
    """The folder of images with others beside them, some of which are images."""
    image = (images / "red/0.png").read_bytes()
    (images / "readme").write_text("not an image")
    (images / "tweet").write_bytes(image)
    (images / "red/again").write_bytes(image)
    (images / "scan.weird").write_bytes(image)
    (images / "labels.csv").write_text("a,b\n")
    (images / "notes.TXT").write_text("text")
    (images / ".hidden").write_bytes(image)
    if hasattr(os, "mkfifo"):
        os.mkfifo(images / "pipe")
    return images


COUNTS = {"": 4, ".csv": 1, ".txt": 1, ".weird": 1}


def test_files_without_an_image_suffix_are_counted_and_images_among_them_named(
    odd, onnx_path, tmp_path
):
    summary = run_job(Job(onnx_path, [odd], tmp_path / "out.csv", device="cpu"))
    assert summary.num_images == 30
    assert summary.left_out == COUNTS
    assert len(summary.unlisted) == 2
    said = "\n".join(summary.unlisted)
    assert f"{odd / 'scan.weird'} is an image, but names in .weird are not" in said
    assert "names without a suffix are not searched for; rename" in said


def test_strict_tells_of_images_that_were_left_out(odd, onnx_path, tmp_path):
    args = ["classify", odd, "--model", onnx_path, "--device", "cpu", "--overwrite"]
    args += ["-o", tmp_path / "out.csv", "--strict", "--json"]
    result = run_tltools(*args, cwd=tmp_path)
    assert result.code == 1
    assert json.loads(result.out)["left_out"] == COUNTS
    assert "skipped: " in result.err
    for name in ("tweet", "red/again", "scan.weird"):
        (odd / name).unlink()
    result = run_tltools(*args[:-1], cwd=tmp_path)
    assert result.code == 0
    assert "Left out, without an image suffix:" in result.err


def test_a_listing_reports_them_wherever_it_runs(odd):
    reported = []
    for portion in list_portions([odd], on_error=reported.append):
        list(portion.images)
    assert len(reported) == 2
    assert len(list(list_images([odd]))) == 30  # and without a callback it is no error


def test_only_some_files_of_a_suffix_are_looked_into(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(left_out, "_is_image", lambda path: looked.append(path))
    counted = LeftOut(lambda error: None)
    counted.add(tmp_path, [f"{number}.xml" for number in range(1000)])
    assert (len(looked), counted.counts()) == (left_out.MAX_LOOKED_INTO, {".xml": 1000})


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_of_archives_are_counted(kind, images, onnx_path, tmp_path):
    path = tmp_path / f"a.{kind}"
    names = ["a/1.png", "a/1.txt", "a/tweet", ".hidden/x", "__cache/.y", "b.txt"]
    data = (images / "red/0.png").read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, data)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    summary = run_job(Job(onnx_path, [path], tmp_path / "out.csv", device="cpu"))
    assert (summary.num_images, summary.left_out) == (1, {".txt": 2, "": 1})


# Lists in UTF-16


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8-sig", "utf-8"])
def test_a_list_may_be_in_utf_16(encoding, images):
    names = ["red/0.png", "Größe 日本.png", "red/\u0a0a.png", "blue/1.png"]
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    path = images / "list.txt"
    path.write_bytes((mark + "\r\n".join(names)).encode(encoding))
    assert [image.name for image in list_images([path])] == names


# Zero bytes


ZERO = "blue/1\0.png"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_name_with_a_zero_byte_costs_no_row(suffix, images, onnx_path, tmp_path):
    names = [f"{color}/{number}.png" for color in COLORS for number in range(10)]
    names[3:3] = [ZERO, "\0"]
    path = images / "list.txt"
    path.write_bytes("\n".join(names).encode())
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    summary = run_job(Job(onnx_path, [path], whole, device="cpu"))
    assert (summary.num_images, summary.num_failed) == (32, 2)
    assert "a zero byte (a list in UTF-" in next(iter(summary.examples.values()))
    rows = list(output_format(whole).read(whole)[1])
    assert [row.path for row in rows] == [name.replace("\0", r"\x00") for name in names]
    assert b"\0" not in whole.read_bytes() or suffix == ".parquet"
    stop(onnx_path, [path], output, 20)
    assert run_job(Job(onnx_path, [path], output, device="cpu")).num_kept == 20
    assert content(output) == content(whole)


def test_a_zero_byte_in_the_name_of_a_member_costs_no_row(images, onnx_path, tmp_path):
    path = tmp_path / "a.tar"
    data = (images / "red/0.png").read_bytes()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("1.png", "2.png", "3.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "2.png":
                info.pax_headers = {"path": "2\0.png"}
            archive.addfile(info, io.BytesIO(data))
    output = tmp_path / "out.csv"
    stop(onnx_path, [path], output, 3)
    summary = run_job(Job(onnx_path, [path], output, device="cpu"))
    assert (summary.num_kept, summary.counts["red"]) == (3, 3)
    assert [row.path for row in output_format(output).read(output)[1]] == [
        *("1.png", r"2\x00.png", "3.png"),
    ]


def test_names_with_zero_bytes_are_not_taken_for_two():
    digests = set()
    for names in (["a", "b"], ["a\0b"], ["ab"], ["a\0", "b"]):
        digest = NamesDigest()
        for name in names:
            digest.add(name)
        digests.add(digest.digest())
    assert len(digests) == 4
