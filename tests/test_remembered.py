"""A report finds the images of a predictions file where `classify` read them."""

import os
import shutil

import pytest
from conftest import run_tltools

from tltools.classify.remembered import remember_inputs, remembered_inputs


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("path,label\n")
    return path


def test_the_inputs_of_this_very_file_are_remembered(output, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert remembered_inputs(output) is None
    assert remember_inputs(output, [images.relative_to(tmp_path)])
    assert remembered_inputs(output) == [images]
    assert {one.name for one in tmp_path.iterdir()} == {"predictions.csv", "images"}
    copy = shutil.copy2(output, tmp_path / "copy.csv")
    assert remembered_inputs(copy) is None
    output.write_text("path,label\nsomeone,else's\n")
    assert remembered_inputs(output) is None


def test_archives_and_names_that_json_cannot_hold_are_not_remembered(output, tmp_path):
    assert not remember_inputs(output, [tmp_path / "photos.tar"])
    assert not remember_inputs(output, [tmp_path / os.fsdecode(b"caf\xe9")])
    assert remembered_inputs(output) is None


def test_without_a_cache_nothing_is_remembered(output, images, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert not remember_inputs(output, [images])
    assert remembered_inputs(output) is None


def test_an_empty_home_stays_empty(onnx_path, images, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    words = ("classify", "images", "--model", onnx_path, "--device", "cpu")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    ran = run_tltools(*words, cwd=tmp_path)
    assert ran.code == 0
    assert "Next: tltools report predictions.csv --images images\n" in ran.err
    assert list(home.iterdir()) == []


def test_a_bare_report_shows_the_images_and_no_path_of_this_machine(onnx_path, images, tmp_path):
    words = ("classify", "images", "--model", onnx_path, "--device", "cpu")
    ran = run_tltools(*words, cwd=tmp_path)
    assert "Next: tltools report predictions.csv\n" in ran.err
    assert run_tltools("report", cwd=tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") >= 30
    assert "--images FOLDER" not in page
    assert str(tmp_path) not in page
    assert str(tmp_path) not in (tmp_path / "predictions.csv").read_text()
