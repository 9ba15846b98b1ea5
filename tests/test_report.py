"""Report pages: their contents, that hostile names stay text, and their use in a browser."""

import csv
import itertools
import json
import ntpath
import os
import posixpath
import re
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from conftest import COLORS, Recorder, run_tltools, save_image, set_card
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tltools.artifacts import read_artifact
from tltools.card import Score
from tltools.classify.output_formats.csv_rows import CsvCodec
from tltools.classify.output_formats.json_lines import JsonLinesCodec, JsonRow
from tltools.classify.output_formats.parquet import write_parquet
from tltools.classify.predict import Prediction
from tltools.cli.show import choose_export
from tltools.decisions import Decided
from tltools.errors import ConfigError, DataError
from tltools.metrics import interval
from tltools.report import check_place
from tltools.report.benches import read_bench
from tltools.report.blocks import Gallery, Section, Table, Text, Tile
from tltools.report.jobs import (
    FEW_FAILED,
    MAX_FAILED,
    MAX_REASONS,
    MAX_TILES,
    OTHER_REASONS,
    job_section,
    locate_in,
    locate_inputs,
    read_job,
)
from tltools.report.models import label_tiles, training_section
from tltools.report.page import make_thumbnails, render, write_page
from tltools.report.scored import read_labeled, scored_section
from tltools.report.sources import Sources, find_sources
from tltools.report.summary import compared, summary_section
from tltools.run_folder import (
    FoldPredictions,
    RunPredictions,
    load_card,
    read_predictions,
    write_folds,
    write_predictions,
    write_scored,
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
CLASSES = ("red", "green")


class Reader(HTMLParser):
    """The text, the tags and the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read_page(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def page_of(*sections: Section) -> Reader:
    return read_page(render(sections, title="a report", thumbnails={}))


def prediction(name: str, probability: float | None, error: str = "it is empty") -> Prediction:
    """Two classes; `red` has the given probability."""
    if probability is None:
        return Prediction(name, None, None, None, f"cannot read image {name}: {error}")
    probs = np.array([probability, 1 - probability])
    label = CLASSES[int(probs.argmax())]
    return Prediction(name, label, float(probs.max()), probs, None)


def write_csv(path: Path, rows: Iterator[Prediction] | list[Prediction]) -> Path:
    layout = CsvCodec(CLASSES)
    with path.open("wb") as file:
        file.write(layout.header)
        file.writelines(map(layout.encode, rows))
    return path


# ------------------------------------------------------------------------------------ the page


def test_a_page_is_one_file_that_fetches_nothing(tmp_path, images):
    tile = Tile(name="0.png", path=images / "red" / "0.png", predicted="red", confidence=0.75)
    path = tmp_path / "new" / "report.html"
    size = write_page(path, [Section("One", [Gallery("Images", (tile,))])], title="Title")
    page = read_page(path.read_text(encoding="utf-8"))
    assert size == path.stat().st_size
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert any(one.startswith("data:image/webp;base64,") for one in addresses)
    assert all(one.startswith(("data:", "#")) for one in addresses)
    assert page.tags.count("script") == 1
    (policy,) = (value for name, value in page.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "@import" not in path.read_text()
    assert not re.search(r"url\(\s*['\"]?(?!#)", path.read_text())


def test_names_with_html_show_as_text():
    tile = Tile(name=f"{EVIL}/{EVIL}.jpg", path=None, true=EVIL, predicted=EVIL + "2")
    page = page_of(
        Section(
            EVIL,
            [
                Text((EVIL, EVIL), title=EVIL),
                Table(EVIL, (EVIL, EVIL), ((EVIL, EVIL),)),
                Gallery(EVIL, (tile,), EVIL),
                Section(EVIL, [Text((EVIL,))]),
            ],
        )
    )
    harmless = read_page(
        render(
            [
                Section(
                    "a",
                    [
                        Text(("a", "a"), title="a"),
                        Table("a", ("a", "a"), (("a", "a"),)),
                        Gallery("a", (Tile(name="a", path=None, true="a", predicted="b"),), "a"),
                        Section("a", [Text(("a",))]),
                    ],
                )
            ],
            title="a",
            thumbnails={},
        )
    )
    assert page.tags == harmless.tags
    assert {name for name, _ in page.attributes} == {name for name, _ in harmless.attributes}
    assert page.text.count(EVIL) >= 12


def test_an_option_is_not_broken_at_its_dashes():
    lines = ("use --threshold auto, <b>", "--images x; a--b")
    html = render([Section("One", [Text(lines)])], title="a report", thumbnails={})
    assert 'use <span class="option">--threshold</span> auto, &lt;b&gt;' in html
    assert '<li><span class="option">--images</span> x; a--b</li>' in html


def test_invisible_characters_in_names_are_shown():
    page = page_of(Section("\u202egnp.exe\udcff\x1b", [Text(("a\x00b",))]))
    assert r"\u202egnp.exe\udcff\x1b" in page.text
    assert r"a\x00b" in page.text


def test_an_image_that_cannot_be_shown_says_why(tmp_path):
    (tmp_path / "empty.jpg").touch()
    tiles = (
        Tile(name="empty.jpg", path=tmp_path / "empty.jpg", true="red"),
        Tile(name="gone.jpg", path=tmp_path / "gone.jpg", true="red"),
        Tile(name="unknown.jpg", path=None, true="red"),
    )
    made = make_thumbnails(tiles)
    page = read_page(render([Section("a", [Gallery("b", tiles)])], title="c", thumbnails=made))
    assert "cannot read image empty.jpg: it is empty" in page.text
    assert "cannot read image gone.jpg: no such file" in page.text
    assert "No image: not found" in page.text


def test_an_image_shown_twice_is_decoded_once(images):
    path = images / "red" / "0.png"
    recorder = Recorder()
    made = make_thumbnails([Tile(name=name, path=path) for name in "ab"], progress=recorder)
    assert list(made) == [(path, "squash")]
    assert recorder.bars == ["Making thumbnails"]


@pytest.mark.parametrize(("share", "text"), [(1.0, "100.0%"), (0.99951, ">99.9%"), (0.5, "50.0%")])
def test_a_confidence_below_one_is_not_certainty(share, text):
    tile = Tile(name="a", path=None, predicted="red", confidence=share)
    page = page_of(Section("a", [Gallery("b", (tile,))]))
    assert f"red , {text}" in page.text


@pytest.mark.parametrize("name", ["report", "report.csv", "folder.html"])
def test_a_path_that_is_not_an_html_page_is_refused(tmp_path, name):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match=rf"`report=` .*{name} "):
        check_place(tmp_path / name)
    check_place(tmp_path / "report.HTML")


# ----------------------------------------------------------------------------------- the jobs


ROWS = [
    prediction("a/1.jpg", 0.9),
    prediction("a/2.jpg", 0.6),
    prediction('b, with\n"quotes".jpg', 0.2),
    prediction("bad.jpg", None),
    Prediction("c.jpg", "uncertain", 0.51, np.array([0.51, 0.49]), None),
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson", ".parquet"])
def test_a_job_is_read_from_each_format(tmp_path, suffix):
    path = tmp_path / f"predictions{suffix}"
    lines = [JsonLinesCodec(CLASSES).encode(row) for row in ROWS]
    if suffix == ".csv":
        write_csv(path, ROWS)
    elif suffix == ".parquet":
        rows = (msgspec.json.decode(line, type=JsonRow) for line in lines)
        write_parquet(path, rows, CLASSES)
    else:
        path.write_bytes(b"".join(lines))
    job = read_job(path)
    assert job.counts == {"red": 2, "green": 1, "uncertain": 1}
    assert (job.num_rows, job.num_failed) == (5, 1)
    assert job.failed == [("bad.jpg", "it is empty")]
    assert job.reasons == {"it is empty": 1}
    assert [one.path for one in job.chosen["red"]] == ["a/1.jpg", "a/2.jpg"]
    assert [one.likeliest for one in job.chosen["red"]] == [None, None]
    assert job.chosen["uncertain"][0].likeliest == "red"
    text = page_of(job_section(path, locate=locate_in(tmp_path), job=job)).text
    assert "uncertain (likeliest red, 51.0%)" in text
    assert job.chosen["green"][0].path == 'b, with\n"quotes".jpg'
    assert job.bins["red"].sum() == 2
    assert job.bins["red"][18] == job.bins["red"][12] == 1


def test_the_figures_of_a_job_are_shown_once_and_reasons_have_no_placeholder(tmp_path):
    errors = [f"image file is truncated ({number} bytes not processed)" for number in (3, 25)]
    rows = [prediction("a.png", 0.9), *(prediction("b.png", None, one) for one in errors)]
    path = write_csv(tmp_path / "job.csv", rows)
    job = read_job(path)
    assert job.reasons == {"image file is truncated": 2}
    titles = [getattr(block, "title", "") for block in job_section(path, locate=None).blocks]
    assert "Labels" not in titles


def test_few_failed_files_are_listed_once_and_many_by_reason_too(tmp_path):
    for number, titles in (
        (FEW_FAILED, [f"{FEW_FAILED} files not classified"]),
        (FEW_FAILED + 1, [f"{FEW_FAILED + 1} files not classified, by reason", "All failed files"]),
    ):
        rows = [prediction(f"{index}.png", None) for index in range(number)]
        section = job_section(write_csv(tmp_path / "rows.csv", rows), locate=None)
        assert [one.title for one in section.blocks if isinstance(one, Table)][1:] == titles


def test_a_gallery_of_a_job_begins_with_an_image_of_each_label(tmp_path):
    rows = [prediction(f"{index}.png", 0.9) for index in range(30)] + [prediction("b.png", 0.2)]
    section = job_section(write_csv(tmp_path / "rows.csv", rows), locate=locate_in(tmp_path))
    assert [tile.predicted for tile in section.tiles()][:3] == ["red", "green", "red"]


def test_a_sample_begins_with_an_image_of_each_class_and_split(two_runs):
    section = training_section([read_artifact(two_runs[0])])
    (sample,) = (
        block
        for part in section.blocks
        if isinstance(part, Section)
        for block in part.blocks
        if isinstance(block, Gallery) and block.title.startswith("A sample")
    )
    kinds = [(tile.true, tile.split) for tile in sample.tiles]
    assert len(set(kinds[:4])) == 4 == len(set(kinds))
    page = page_of(section)
    assert "training image" in page.text
    assert "validation image" in page.text
    assert "class training validation all" in page.text


def test_a_long_file_name_keeps_its_end_below_its_image():
    names = [f"bing_policecar_2019_0a17f53b9c_{number}.jpg" for number in (1, 2)]
    tiles = tuple(Tile(name=f"cars/{name}", path=None) for name in names)
    page = page_of(Section("a", [Gallery("b", tiles)]))
    assert "bing_policecar…7f53b9c_1.jpg" in page.text
    assert "bing_policecar…7f53b9c_2.jpg" in page.text
    assert f"cars/{names[0]}" in page.text


def test_a_million_rows_take_little_memory(tmp_path):
    def peak(num_rows: int) -> int:
        rows = (
            prediction(f"{i}.jpg", None if i % 3 == 0 else (i % 1000) / 1000, f"reason {chr(i)}")
            for i in range(num_rows)
        )
        path = write_csv(tmp_path / "rows.csv", rows)
        tracemalloc.start()
        try:
            read_job(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    first = peak(5_000)
    assert peak(50_000) < 1.2 * first + 100_000


def test_the_number_of_images_of_a_job_is_limited(tmp_path):
    kinds = itertools.cycle("abcdefghijklmnopqrstuvwxyz")
    rows = [prediction(f"{i}.jpg", i / 3000) for i in range(3000)]
    rows += [
        prediction(f"bad{i}.jpg", None, next(kinds) * (1 + i // 26)) for i in range(MAX_REASONS + 9)
    ]
    path = write_csv(tmp_path / "rows.csv", rows)
    job = read_job(path)
    assert job.num_failed == MAX_REASONS + 9
    assert job.reasons[OTHER_REASONS] == 9
    assert len(job.failed) == MAX_FAILED
    assert [len(some) <= 36 for some in job.chosen.values()] == [True, True]
    assert job.chosen["red"][0].path == "2999.jpg"
    assert job.chosen["green"][0].path == "0.jpg"
    assert job.chosen["red"][-1].path == "1500.jpg"
    page = page_of(job_section(path, locate=locate_in(tmp_path)))
    assert f"{MAX_REASONS + 9:,} files not classified" in page.text
    assert f"The first {MAX_FAILED} failed files" in page.text
    assert page.tags.count("li") < MAX_TILES


def test_many_classes_share_the_images(tmp_path):
    classes = [f"class {i}" for i in range(500)]
    layout = CsvCodec(classes)
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(layout.header)
        for i in range(2000):
            probs = np.full(500, 0.001)
            probs[i % 500] = 0.501
            file.write(layout.encode(Prediction(f"{i}", classes[i % 500], 0.501, probs, None)))
    section = job_section(path, locate=locate_in(tmp_path))
    assert 0 < len(list(section.tiles())) <= MAX_TILES
    assert "of 500 labels" in page_of(section).text


def test_a_job_without_a_readable_image(tmp_path):
    for name in ("rows.csv", "rows.jsonl"):
        path = tmp_path / name
        write_csv(path, [prediction("bad.jpg", None)])
        if name.endswith("jsonl"):
            path.write_bytes(JsonLinesCodec(CLASSES).encode(prediction("bad.jpg", None)))
        page = page_of(job_section(path, locate=None))
        assert "1 file not classified" in page.text
        assert "bad.jpg it is empty" in page.text
        assert "cannot read image" not in page.text
    assert (
        "0 images"
        in page_of(job_section(write_csv(path.with_suffix(".csv"), []), locate=None)).text
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"is not what tltools classify writes: its columns are a, b"),
        ("", "its columns are none"),
        ("path,label,confidence,prob_a,error\nx\n", "row 1 is damaged"),
        ("path,label,confidence,prob_a,error\nx,a,high,1,\n", "row 1 is damaged"),
        ("path,label,confidence,prob_a,error\nx,b,0.5,1,\n", r"row 1 is not from .* label 'b'"),
        ("path,label,confidence,prob_a,error\nx,a,nan,1,\n", r"row 1 is not from .* label 'a'"),
        ("path,label,confidence,prob_a,error\nx,a,,1,\n", r"row 1 is not from .* label 'a'"),
        ('path,label,confidence,prob_a,error\n"x', "cannot be read as CSV"),
    ],
)
def test_a_file_that_classify_did_not_write_is_refused(tmp_path, text, message):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_job(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_random_bytes_are_refused(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"\xff\xfe\x00garbage\n")
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_job(path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:4] + b"\xff" * 40 + data[44:], id="pages"),
        pytest.param(lambda data: data[:-60] + b"\xff" * 40 + data[-20:], id="footer"),
        pytest.param(lambda data: data.replace(b"label", b"la\xffel"), id="name"),
        pytest.param(lambda data: data[:100] + data[-100:], id="hole"),
    ],
)
def test_a_damaged_parquet_file_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    write_parquet(path, [JsonRow("1.png", "a", 0.75, {"a": 0.75, "b": 0.25}, None)], ("a", "b"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))) as error:
        read_job(path)
    assert "\n" not in str(error.value)


def test_fields_escaped_for_spreadsheets_are_read(tmp_path):
    layout = CsvCodec(("=a", "b"), spreadsheet=True)
    path = tmp_path / "rows.csv"
    row = Prediction("=1.png", "=a", 0.75, np.array([0.75, 0.25]), None)
    path.write_bytes(layout.header + layout.encode(row))
    (tmp_path / "=1.png").touch()
    job = read_job(path)
    assert job.counts == {"=a": 1, "b": 0}
    assert locate_in(tmp_path)(job.chosen["=a"][0].path) == tmp_path / "=1.png"


def test_images_are_found_in_the_folder_and_never_outside(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").touch()
    (tmp_path / "secret.png").touch()
    locate = locate_in(folder)
    assert locate("sub/a.png") == folder / "sub" / "a.png"
    assert locate(str(folder / "sub" / "a.png")) == folder / "sub" / "a.png"
    for name in ("../secret.png", str(tmp_path / "secret.png"), "gone.png", "a\0b"):
        assert locate(name) is None


def test_images_of_a_job_are_found_through_its_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/a.png", "two/b.png", "lists/c.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("lists/list.txt").write_text("c.png\n")
    inputs = [Path("one"), Path("two/b.png"), Path("lists/list.txt")]
    locate = locate_inputs(inputs)
    assert locate("one/a.png") == Path("one/a.png")
    assert locate("two/b.png") == Path("two/b.png")
    assert locate("c.png") == Path("lists/c.png")
    assert locate("gone.png") is None
    assert locate_inputs([Path("one")])("a.png") == tmp_path / "one" / "a.png"


# ----------------------------------------------------------------------------------- the runs


@pytest.fixture
def two_runs(cnn_run, tmp_path) -> list[Path]:
    """Two runs on the same images: the second is wrong on all but one."""
    folders = [tmp_path / "runs" / name for name in ("first", "second")]
    for folder in folders:
        shutil.copytree(cnn_run, folder)
    paths = tuple(f"{i}.png" for i in range(8))
    targets = np.array([0, 1] * 4)
    for folder, right in zip(folders, (np.ones(8, bool), np.arange(8) == 0), strict=True):
        sure = np.linspace(0.6, 0.95, 8)
        probs = np.empty((8, 2))
        probs[np.arange(8), np.where(right, targets, 1 - targets)] = sure
        probs[np.arange(8), np.where(right, 1 - targets, targets)] = 1 - sure
        write_predictions(
            folder, ("bright", "dark"), {"val": RunPredictions(paths, targets, probs)}
        )
    return folders


def test_runs_are_compared_on_the_same_images(two_runs):
    section = training_section([read_artifact(folder) for folder in two_runs])
    page = page_of(section)
    assert (
        "first and second: first is better by more than chance (p = 0.016, McNemar's exact test). "
        "Of the same 8 validation images, first alone is right on 7 and second alone on 0."
    ) in page.text
    score = read_artifact(two_runs[0]).card.metrics["val"]
    assert f"{score.correct}/{score.total}" in page.text
    for words in ("Run first", "Run second", "Confusion matrix of second", "Data drawn"):
        assert words in page.text


def test_confident_mistakes_come_before_unsure_correct_predictions(two_runs):
    section = training_section([read_artifact(two_runs[1])])
    (run,) = (block for block in section.blocks if getattr(block, "title", "") == "Run second")
    (gallery,) = (block for block in run.blocks if isinstance(block, Gallery))
    shown = [(tile.name, tile.is_wrong) for tile in gallery.tiles]
    assert shown == [*((f"{i}.png", True) for i in (7, 6, 5, 4, 3, 2, 1)), ("0.png", False)]
    assert gallery.note.startswith("7 of 7 mistakes, 1 of 1 correct prediction;")
    page = page_of(section)
    values = [value for name, value in page.attributes if name == "data-wrong"]
    assert values == ["1"] * 7 + ["0"]


def test_a_run_without_predictions_is_shown_with_a_warning(two_runs):
    (two_runs[1] / "predictions.csv").unlink()
    page = page_of(training_section([read_artifact(folder) for folder in two_runs]))
    assert "This run has no predictions" in page.text
    assert "first and second cannot be compared image by image: second has no" in page.text
    assert "Loss and accuracy of second" in page.text
    assert "Confusion matrix of first" in page.text
    assert "Confusion matrix of second" not in page.text


def test_a_run_without_history_is_shown_with_a_warning(two_runs):
    (two_runs[0] / "history.csv").unlink()
    page = page_of(training_section([read_artifact(two_runs[0])]))
    assert "history.csv cannot be read" in page.text
    assert "Confusion matrix of first" in page.text


def test_runs_on_different_images_are_not_compared(two_runs):
    found = read_predictions(two_runs[1], ("bright", "dark"))["val"]
    others = tuple(f"other-{path}" for path in found.paths)
    other = RunPredictions(others, found.targets, found.probs)
    write_predictions(two_runs[1], ("bright", "dark"), {"val": other})
    page = page_of(training_section([read_artifact(folder) for folder in two_runs]))
    assert "cannot be compared: they have different validation images" in page.text


def test_labels_that_may_be_wrong_are_shown(two_runs):
    targets = np.array([0, 0, 0, 1, 1, 1] + [0, 1] * 20)
    first = np.array([0.9, 0.9, 0.02, 0.1, 0.1, 0.97] + [0.9, 0.1] * 20)
    folds = FoldPredictions(
        paths=tuple(f"{i}.png" for i in range(46)),
        targets=targets,
        folds=np.arange(46) % 2 + 1,
        probs=np.stack([first, 1 - first], axis=1),
    )
    write_folds(two_runs[0], ("bright", "dark"), folds)
    section = training_section([read_artifact(folder) for folder in two_runs])
    galleries = {
        (block.title, inner.title): inner
        for block in section.blocks
        for inner in getattr(block, "blocks", ())
        if isinstance(inner, Gallery)
    }
    shown = galleries["Run first", "Labels that may be wrong"].tiles
    assert [(tile.name, tile.true, tile.predicted) for tile in shown] == [
        ("2.png", "bright", "dark"),
        ("5.png", "dark", "bright"),
    ]
    assert ("Run second", "Labels that may be wrong") not in galleries
    page = page_of(Section("Doubts", [galleries["Run first", "Labels that may be wrong"]]))
    assert "labeled bright seen as dark , 98.0%" in page.text
    # The label may be a mistake, and the prediction is none.
    assert not [value for _, value in page.attributes if value.startswith("verdict")]
    crossed = "95.7% on 2 folds (standard deviation 0.0 points)"
    assert section.blocks[0].columns[2] == "cross-validation"
    assert [row[2] for row in section.blocks[0].rows] == [crossed, "-"]
    found = summary_section([read_artifact(folder) for folder in two_runs], [], [], [])
    assert f"Cross-validation: {crossed}." in page_of(found).text
    (two_runs[0] / "folds.csv").write_text("path,class\n")
    page = page_of(training_section([read_artifact(two_runs[0])]))
    assert "folds.csv cannot be read" in page.text


def test_classes_with_html_in_a_run_show_as_text(two_runs):
    folder = two_runs[0]
    for name in ("card.json", "split.csv", "predictions.csv"):
        path = folder / name
        if name == "card.json":
            document = json.loads(path.read_text())
            document["classes"] = [EVIL, "dark"]
            path.write_text(json.dumps(document))
        else:
            with path.open(newline="") as file:
                rows = [[one.replace("bright", EVIL) for one in row] for row in csv.reader(file)]
            with path.open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    page = page_of(training_section([read_artifact(folder)]))
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 1  # the viewer's
    assert page.text.count(EVIL) > 5


def test_a_page_opens_with_the_best_run(two_runs):
    first, second = (read_artifact(folder) for folder in two_runs)
    score = msgspec.structs.replace(first.card.metrics["val"], accuracy=0.875)
    card = msgspec.structs.replace(first.card, metrics=first.card.metrics | {"val": score})
    found = summary_section([second, replace(first, card=card)], [], [], [])
    answers = found.blocks[0]
    assert isinstance(answers, Text)
    (line,) = answers.lines
    assert line.startswith("Best model on drawn")
    assert f"first, validation accuracy {100 * score.accuracy:.1f}% (" in line
    assert line.endswith("first alone is right on 7 and second alone on 0.")
    assert summary_section([], [], [], []) is None


def test_a_page_says_if_a_run_that_is_left_out_is_more_accurate(two_runs):
    first, second = (read_artifact(folder) for folder in two_runs)
    score = msgspec.structs.replace(first.card.metrics["val"], accuracy=0.25)
    card = msgspec.structs.replace(first.card, metrics=first.card.metrics | {"val": score})
    worse = replace(first, card=card)

    def line(left_out):
        return summary_section([worse], [], [], [], left_out=left_out).blocks[0].lines[0]

    assert line([]).startswith("Best model on drawn")
    assert line([second]).startswith("Best model on this page on drawn")
    right = second.card.metrics["val"].accuracy
    told = f" Left out, but more accurate on the same images: second, {100 * right:.1f}%"
    assert told in line([second])
    data = msgspec.structs.replace(second.card.data, fingerprint="0" * 64)
    other = replace(second, card=msgspec.structs.replace(second.card, data=data))
    assert line([other]) == line([])


def test_the_page_is_named_after_its_data_and_shows_the_best_run_first(two_runs):
    first, second = (read_artifact(folder) for folder in two_runs)
    worse = msgspec.structs.replace(
        first.card.metrics["val"], accuracy=0.125, low=0.02, high=0.47, correct=1, total=8
    )
    card = msgspec.structs.replace(first.card, metrics=first.card.metrics | {"val": worse})
    runs = [replace(second, card=card), first]
    assert Sources(runs=runs).title() == f"tltools report: {first.card.data.name}"
    assert Sources(jobs=[Path("a.csv"), Path("b.csv")]).title() == "tltools report: a.csv, b.csv"
    told = compared(runs)
    assert told == [(first.path, second.path)]
    section = training_section(runs, told=told)
    assert [row[0] for row in section.blocks[0].rows] == ["first", "second"]
    assert "McNemar" not in page_of(section).text  # the summary says it
    summary = summary_section(runs, [], [], [])
    text = page_of(summary).text
    assert text.count("McNemar") == 1
    assert (
        "second: a validation accuracy of 12.5% (2.0% to 47.0%), 1/8, may be chance: always "
        "choosing the largest class would get 50.0%."
    ) in text


def test_two_of_two_images_do_not_come_before_twelve_of_twelve(two_runs):
    runs = []
    for path, total, name in zip(two_runs, (2, 12), ("few", "many"), strict=True):
        run = read_artifact(path)
        low, high = interval(total, total)
        score = Score(accuracy=1.0, low=low, high=high, correct=total, total=total)
        data = msgspec.structs.replace(run.card.data, name=name, fingerprint=name)
        card = msgspec.structs.replace(run.card, metrics={"val": score}, data=data)
        runs.append(replace(run, card=card))
    assert Sources(runs=runs).title() == "tltools report: many, few"
    lines = summary_section(runs, [], [], []).blocks[0].lines
    assert [line.split(" (")[0] for line in lines] == ["Best model on many", "Best model on few"]
    section = training_section(runs)
    assert [block.title for block in section.blocks if isinstance(block, Section)] == [
        "Run second", "Run first", "Data many", "Data few",
    ]  # fmt: skip


def test_the_summary_names_a_better_run_that_the_bench_did_not_measure(place):
    (path,) = (place / "exports").glob("bench-*.json")
    bench = read_bench(path.read_bytes(), where=path)
    run = read_artifact(place / "runs" / "cnn")
    runs = []
    for name, right in (("cnn", 3), ("vgg16", 6)):
        low, high = interval(right, 6)
        score = Score(accuracy=right / 6, low=low, high=high, correct=right, total=6)
        card = msgspec.structs.replace(run.card, run=name, metrics={"val": score})
        runs.append(replace(run, path=run.path.with_name(name), card=card))
    shaky = replace(
        bench.recommendation, choice=replace(bench.recommendation.choice, doubtful=True)
    )
    bench = replace(bench, recommendation=shaky)
    (line,) = summary_section(runs[:1], [], [(path, bench)], []).blocks[0].lines[1:]
    assert "were unstable: run again" in line
    assert "Only" not in line
    (line,) = summary_section(runs, [], [(path, bench)], []).blocks[0].lines[1:]
    assert "Only cnn was measured, not vgg16, whose validation accuracy is higher (100.0%" in line


def test_training_accuracy_has_no_interval(two_runs):
    table = training_section([read_artifact(two_runs[0])]).blocks[0]
    assert table.columns[2:4] == ("training accuracy", "validation accuracy")
    ((*_, seen, unseen),) = (row[:4] for row in table.rows)
    assert " to " not in seen
    assert " to " in unseen


def test_images_of_a_run_are_named_without_the_folder_of_all(two_runs):
    part = read_predictions(two_runs[0], ("bright", "dark"))["val"]
    far = tuple(f"/home/me/data/{'ab'[i % 2]}/{i}.png" for i in range(len(part.paths)))
    write_predictions(
        two_runs[0], ("bright", "dark"), {"val": RunPredictions(far, part.targets, part.probs)}
    )
    section = training_section([read_artifact(two_runs[0])])
    tiles = [tile for tile in section.tiles() if str(tile.path) in far]
    assert {tile.name for tile in tiles} == {path.removeprefix("/home/me/data/") for path in far}


# --------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def place(cnn_exports, tmp_path_factory) -> Path:
    """A folder with runs, exports, a bench, an evaluation and a job, as the commands left them."""
    source = cnn_exports["onnx"].path.parents[2]
    folder = tmp_path_factory.mktemp("place")
    for name in ("runs", "exports"):
        shutil.copytree(source / name, folder / name)
    rng = np.random.default_rng(0)
    (folder / "photos" / "sub").mkdir(parents=True)
    for index, color in enumerate((*COLORS.values(),) * 2):
        save_image(folder / "photos" / "sub" / f"{index}.png", color, rng)
    (folder / "photos" / f"{EVIL.replace('/', '')}.jpg").touch()
    steps = (
        ("classify", "photos", "--device", "cpu", "--report", "job.html"),
        ("evaluate", "exports/cnn/cnn.fp32.onnx", source.parent / "data", "--device", "cpu",
         "--output", "scores", "--report", "evaluation.html"),
        ("bench", "exports/cnn/cnn.fp32.onnx", "--rounds", 1, "--iterations", 2,
         "--batch-sizes", "1,2", "--device", "cpu", "--report", "bench.html"),
        ("train", source.parent / "data", "--model", "cnn", "--epochs", 1, "--val-fraction", 0.34,
         "--device", "cpu", "--run-dir", "other", "--report", "train.html"),
    )  # fmt: skip
    data = source.parent / "data"
    data.mkdir(exist_ok=True)
    for name, level in (("bright", 200), ("dark", 50)):
        (data / name).mkdir(exist_ok=True)
        for index in range(3):
            save_image(data / name / f"{index}.png", (level, level, level), rng)
    for step in steps:
        ran = run_tltools(*step, cwd=folder)
        assert ran.code == 0, ran
        assert "open it in a browser" in ran.err
    return folder


def test_each_command_writes_its_page(place):
    job = read_page((place / "job.html").read_text())
    assert "7 images in predictions.csv" in job.text
    assert EVIL.replace("/", "") in job.text
    assert job.tags.count("img") == 1 + 6
    evaluation = read_page((place / "evaluation.html").read_text())
    assert "Confusion matrix of exports/cnn/cnn.fp32.onnx" in evaluation.text
    assert evaluation.tags.count("img") == 1 + 6
    trained = read_page((place / "train.html").read_text())
    assert "Confusion matrix of cnn, validation images" in trained.text
    assert "6 of 6 images, evenly spaced through the data" in trained.text
    bench = read_page((place / "bench.html").read_text())
    for words in ("Accuracy against latency", "Recommended on this machine", "Machine", "CPU:"):
        assert words in bench.text


def test_report_finds_the_newest_results(place):
    ran = run_tltools("report", cwd=place)
    assert ran.code == 0, ran
    page = read_page((place / "report.html").read_text())
    for words in (
        "Training",
        "Run cnn",
        "Predictions: predictions.csv",
        "Benchmark",
        "Exports, verified against PyTorch",
        "Summary Best model on",
        "predictions.csv: 6 of 7 images classified.",
        "predictions.csv: 1 image could not be classified; see below.",
    ):
        assert words in page.text
    assert "name the folder that was classified" not in page.text  # classify remembers it
    assert "Runs: runs/cnn" in ran.err
    assert "Benchmarks: exports/bench-" in ran.err
    assert "same label top-1 change max logit diff images layers in fp32" in page.text
    assert "Trained 2" in page.text
    assert ran.out == ""


def test_predictions_that_are_not_complete_are_finished_first(tmp_path, monkeypatch):
    """The unfinished file beside them is no better name."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv.part").write_text("path,label\n")
    with pytest.raises(DataError, match=r"^rows\.csv is not complete; to finish it, run"):
        find_sources([Path("rows.csv")])
    with pytest.raises(DataError, match=r"^rowz\.csv does not exist: name runs"):
        find_sources([Path("rowz.csv")])


def test_results_that_are_left_out_are_named(two_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(Path("predictions.csv"), [prediction("a.png", 0.9)])
    write_csv(Path("other.csv"), [prediction("a.png", 0.9)])
    Path("table.csv").write_text("a,b\n1,2\n")
    for name in ("broken.csv", "broken.parquet", "broken.jsonl"):
        Path(name).write_bytes(b"\xff\xfe\x00")
    Path("folder.csv").mkdir()
    Path("notes.jsonl").write_text('{"text": "not a prediction"}\n')
    row = '{"path": "a.png", "label": "b", "confidence": 0.9, "probabilities": {"b": 0.9, "a": 0.1}'
    Path("rows.jsonl").write_text(row + ', "error": null}\n')
    Path("scores").mkdir()
    Path("scores/evaluation.json").write_text("{}")
    os.utime("other.csv", ns=(0, 0))
    os.utime("rows.jsonl", ns=(1, 1))
    sources = find_sources([])
    (shown,) = sources.runs
    (older,) = ({Path("runs/first"), Path("runs/second")}) - {shown.path}
    assert sources.jobs == [Path("predictions.csv")]
    why = (
        f"{shown.path.name} is newer, and of the same model and data (cnn on "
        f"{shown.card.data.name})"
    )
    assert sources.left_out == {
        older: why,
        Path("rows.jsonl"): "predictions.csv is newer",
        Path("other.csv"): "predictions.csv is newer",
        Path("scores"): "scores/evaluation.json is not a result of tltools bench or tltools "
        "evaluate of this version: Object missing required field `data`; run the command again",
    }
    assert find_sources([Path("predictions.csv")]).left_out == {}
    ran = run_tltools("report", cwd=tmp_path)
    assert f"Left out: {older}, rows.jsonl, other.csv, scores; the page says why" in ran.err
    assert f"{older} {why}" in read_page(Path("report.html").read_text()).text


def test_predictions_without_any_label_do_not_hide_older_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(Path("good.csv"), [prediction("a.png", 0.9)])
    write_csv(Path("predictions.csv"), [prediction("a.png", None)])
    os.utime("good.csv", ns=(0, 0))
    sources = find_sources([])
    assert sources.jobs == [Path("good.csv")]
    why = "none of its images could be classified"
    assert sources.left_out == {Path("predictions.csv"): why}
    Path("good.csv").unlink()
    assert find_sources([]).jobs == [Path("predictions.csv")]


def test_the_newest_predictions_are_reported_whatever_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seconds, name in enumerate(("predictions.csv", "predictions.jsonl", "which.csv")):
        if name.endswith(".csv"):
            write_csv(Path(name), [prediction("a.png", 0.9)])
        else:
            Path(name).write_text("damaged")
        os.utime(name, (seconds, seconds))
    assert find_sources([]).jobs == [Path("which.csv")]
    os.utime("predictions.csv", (9, 9))
    sources = find_sources([])
    assert sources.jobs == [Path("predictions.csv")]
    assert list(sources.left_out) == [Path("which.csv"), Path("predictions.jsonl")]


def test_a_run_on_other_data_replaces_no_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "exports"):
        shutil.copytree(place / name, tmp_path / name)
    card = load_card(Path("runs/cnn"))
    data = msgspec.structs.replace(card.data, name="toy", fingerprint="f" * 64)
    later = msgspec.structs.replace(card, run="cnn-2", data=data, created="2999-01-01T00:00:00")
    shutil.copytree("runs/cnn", "runs/cnn-2")
    Path("runs/cnn-2/card.json").write_text(later.to_json())
    export = Path("exports/cnn/cnn.fp32.onnx")
    Path("exports/cnn-2").mkdir()
    copy = Path(shutil.copy(export, "exports/cnn-2/cnn-2.fp32.onnx"))
    set_card(copy, msgspec.structs.replace(read_artifact(export).card, run="cnn-2", data=data,
                                           created=later.created))  # fmt: skip
    sources = find_sources([])
    assert {one.path for one in sources.runs} == {Path("runs/cnn"), Path("runs/cnn-2")}
    assert {one.path for one in sources.exports} >= {export, copy}
    assert sources.left_out == {}
    # Of the same data, the newer one is shown, and what the older one's exports are.
    same = msgspec.structs.replace(later, data=card.data)
    Path("runs/cnn-2/card.json").write_text(same.to_json())
    shutil.rmtree("exports/cnn-2")
    (bench,) = Path("exports").glob("bench-*.json")
    shutil.copytree("exports", "kept")
    shutil.rmtree("exports/cnn")
    sources = find_sources([])
    assert {one.path for one in sources.runs} == {Path("runs/cnn"), Path("runs/cnn-2")}  # measured
    newer = shutil.copy(bench, bench.with_name("bench-29990101T000000.json"))
    assert find_sources([]).left_out == {bench: f"{newer} is newer"}
    bench.unlink()
    Path(newer).unlink()
    assert find_sources([]).left_out == {
        Path("runs/cnn"): "cnn-2 is newer, and of the same model and data (cnn on "
        f"{card.data.name})"
    }


def test_the_run_that_made_the_predictions_is_shown(two_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (shown,) = find_sources([]).runs
    (older,) = ({"first", "second"}) - {shown.path.name}
    path = write_csv(Path("predictions.csv"), [prediction("a.png", 0.9)])
    monkeypatch.setattr(
        "tltools.report.sources.remembered_model", lambda job: job == path and f"{older} onnx fp32"
    )
    assert {one.path.name for one in find_sources([]).runs} == {"first", "second"}


def test_exports_of_an_older_run_are_left_out_and_named(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "exports", "exports")
    export = Path("exports/cnn/cnn.fp32.onnx")
    Path("exports/cnn-2").mkdir()
    copy = Path(shutil.copy(export, "exports/cnn-2/cnn-2.fp32.onnx"))
    card = read_artifact(export).card
    set_card(copy, msgspec.structs.replace(card, run="cnn-2", created="2999-01-01T00:00:00"))
    sources = find_sources([])
    assert [one.path for one in sources.exports] == [copy]
    why = f"the export of cnn-2 is newer, and of the same model and data (cnn on {card.data.name})"
    assert sources.left_out[export] == why


def test_a_folder_that_evaluate_wrote_is_reported(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "scores", "scores")
    sources = find_sources([Path("scores")])
    assert [one.path for one in sources.scored] == [Path("scores/predictions.csv")]
    assert sources.evaluations == []
    Path("scores/predictions.csv").rename("scores/mistakes.csv")
    sources = find_sources([Path("scores")])
    assert [one.path for one in sources.scored] == [Path("scores/mistakes.csv")]
    assert sources.evaluations == []  # its scores are shown with the mistakes
    facts = json.loads(Path("scores/evaluation.json").read_text())
    facts["confusion"][0][0] += 9
    facts["confusion"][0][1] += 9
    Path("scores/evaluation.json").write_text(json.dumps(facts))
    (other, _) = find_sources([Path("scores")]).evaluations[0]
    assert other == Path("scores/evaluation.json")


def test_an_export_of_another_training_than_the_run_is_left_out_and_doubted_if_named(
    place, tmp_path, monkeypatch
):
    """As if its run had been deleted, and trained anew under its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "exports"):
        shutil.copytree(place / name, tmp_path / name)
    export = Path("exports/cnn/cnn.fp32.onnx")
    assert export in {one.path for one in find_sources([]).exports}
    card = Path("runs/cnn/card.json")
    created = load_card(Path("runs/cnn")).created
    card.write_text(card.read_text().replace(created, "2999-01-01T00:00:00+00:00"))
    sources = find_sources([])
    assert sources.exports == []
    why = "is not of runs/cnn as it is now: run tltools export runs/cnn"
    assert sources.left_out[export] == f"it {why}"
    (summary, *_) = find_sources([Path("runs/cnn"), export]).sections(None)
    assert f"{export} {why}." in summary.blocks[-1].lines
    said = Recorder()
    assert choose_export(said) == export
    assert said.said[-1].endswith(f"{export} {why}")


def test_the_newest_evaluation_of_each_model_on_each_data_set_is_reported(
    place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "runs", "runs")
    evaluation = (place / "scores" / "evaluation.json").read_text()
    now = time.time()
    for age, (name, model) in enumerate(
        [("new", "cnn onnx fp32"), ("other", "vgg16"), ("old", "cnn onnx fp32"), ("gone", "cnn")]
    ):
        Path(name).mkdir()
        text = evaluation.replace('"model": "cnn onnx fp32"', f'"model": "{model}"')
        Path(name, "evaluation.json").write_text(text)
        os.utime(Path(name, "evaluation.json"), times=(now, now - age))
    os.utime("gone/evaluation.json", times=(0, 0))
    sources = find_sources([])
    assert [path.parent.name for path, _ in sources.evaluations] == ["new", "other"]
    assert sources.left_out == {
        Path("old"): "new, of the same model and data, is newer",
        Path("gone"): "cnn was trained after this evaluation",
    }
    facts = sources.evaluations[0][1]
    score = f"{facts.accuracy.correct:,}/{facts.accuracy.total:,}"
    (summary, *_) = sources.sections(None)
    (said,) = (line for line in summary.blocks[0].lines if line.startswith("Accuracy on"))
    assert said.startswith("Accuracy on data, all: cnn onnx fp32 ")
    assert said.count(score) == 2
    assert "; vgg16 " in said


def test_the_run_of_an_export_is_shown_even_if_a_newer_one_has_none(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "exports"):
        shutil.copytree(place / name, tmp_path / name)
    shutil.copytree("runs/cnn", "runs/cnn-2")
    card = Path("runs/cnn-2/card.json")
    created = load_card(Path("runs/cnn")).created
    card.write_text(card.read_text().replace(created, "2999-01-01T00:00:00+00:00"))
    assert [one.path for one in find_sources([]).runs] == [Path("runs/cnn-2"), Path("runs/cnn")]
    shutil.rmtree("exports")
    sources = find_sources([])
    assert [one.path for one in sources.runs] == [Path("runs/cnn-2")]
    assert list(sources.left_out) == [Path("runs/cnn")]


def test_a_bench_that_is_older_than_an_export_is_doubted(place, tmp_path):
    shutil.copytree(place / "exports", tmp_path / "exports")
    (bench,) = (tmp_path / "exports").glob("bench-*.json")
    export = tmp_path / "exports" / "cnn" / "cnn.fp32.onnx"
    at = bench.stat().st_mtime
    for seconds, newer in ((5, False), (-5, True)):
        os.utime(export, (at + seconds, at + seconds))
        ran = run_tltools("report", cwd=tmp_path)
        assert ran.code == 0, ran
        page = read_page((tmp_path / "report.html").read_text())
        doubted = "is older than exports/cnn/cnn.fp32.onnx" in page.text
        assert doubted == (not newer)


def test_report_shows_the_named_results(place):
    (bench,) = (place / "exports").glob("bench-*.json")
    ran = run_tltools(
        "report", "predictions.csv", "scores/evaluation.json", bench, "exports", "runs",
        "--images", "photos", "-o", "told.html", "--json", cwd=place,
    )  # fmt: skip
    assert ran.code == 0, ran
    document = json.loads(ran.out)
    assert document["report"] == "told.html"
    assert document["num_bytes"] == (place / "told.html").stat().st_size
    assert document["runs"] == ["runs/cnn"]
    assert document["exports"] == ["exports/cnn/cnn.fp32.onnx", "exports/cnn/cnn.fp32.pt"]
    page = read_page((place / "told.html").read_text())
    assert "Evaluation of cnn onnx fp32 on data, all (scores/evaluation.json)" in page.text
    assert "This file has no images" in page.text
    assert page.tags.count("img") > 6


@pytest.mark.parametrize(
    ("module", "root"), [(ntpath, "C:\\Users\\me\\photos"), (posixpath, "/home/me/photos")]
)
def test_tiles_are_named_without_the_folder_of_all_images_on_each_system(module, root, monkeypatch):
    monkeypatch.setattr("tltools.report.models.os", SimpleNamespace(path=module))
    names = [module.join("cats", "1.jpg"), module.join("dogs", "2.jpg")]
    targets = np.array([0, 1])
    predictions = RunPredictions(
        tuple(module.join(root, name) for name in names),
        targets,
        np.eye(2),
        Decided(targets, np.ones(2, bool), np.ones(2, bool)),
    )
    tiles = label_tiles(predictions, ("cats", "dogs"), "stretch")
    assert [tile.name for tile in tiles] == names


def scored_file(folder: Path, *, only_mistakes: bool = False, kept: int = 4) -> Path:
    """Four images of two classes, the second of which is misclassified; paths are absolute."""
    names = [f"{number}.png" for number in range(4)]
    for name in names:
        save_image(folder / name, COLORS["red"], np.random.default_rng(0))
    decided = Decided(np.array([0, 1, 1, 1]), np.arange(4) < kept, known=np.ones(4, dtype=np.bool_))
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    paths = tuple(str(folder / name) for name in names)
    part = RunPredictions(paths, np.array([0, 0, 1, 1]), probs, decided)
    path = folder / ("mistakes.csv" if only_mistakes else "predictions.csv")
    write_scored(path, CLASSES, part, only_mistakes=only_mistakes)
    return path


def test_predictions_with_true_labels_are_an_evaluation(tmp_path):
    scored = read_labeled(scored_file(tmp_path))
    assert scored is not None
    section = scored_section(scored)
    page = page_of(section)
    assert "accuracy with its 95% interval 75.0% (30.1% to 95.4%), 3/4" in page.text
    assert f"Confusion matrix of {tmp_path / 'predictions.csv'}" in page.text
    tiles = list(section.tiles())
    assert [(tile.is_wrong, tile.path) for tile in tiles] == [
        (True, tmp_path / "1.png"),
        (False, tmp_path / "3.png"),
        (False, tmp_path / "2.png"),
        (False, tmp_path / "0.png"),
    ]
    assert "Mistakes and correct predictions 1 of 1 mistake, 3 of 3 correct" in page.text


def test_uncertain_images_are_left_out_of_an_accuracy(tmp_path):
    scored = read_labeled(scored_file(tmp_path, kept=3))
    assert scored is not None
    text = page_of(scored_section(scored)).text
    assert "66.7% (20.8% to 93.9%), 2/3" in text
    assert "images that reach it, with the 95% interval 75.0%" in text


def test_a_file_of_mistakes_is_called_that_and_has_no_accuracy(tmp_path):
    path = scored_file(tmp_path, only_mistakes=True)
    scored = read_labeled(path)
    assert scored is not None
    assert scored.score() is None
    section = scored_section(scored)
    text = page_of(section).text
    assert section.title == f"Mistakes in {path}"
    assert "holds 1 misclassified image and no correctly classified one" in text
    assert "accuracy with its" not in text
    assert [tile.path for tile in section.tiles()] == [tmp_path / "1.png"]


def test_images_of_an_evaluation_are_taken_from_the_named_folder_alone(tmp_path):
    scored = read_labeled(scored_file(tmp_path))
    assert scored is not None
    (tmp_path / "other").mkdir()
    section = scored_section(scored, locate=locate_in(tmp_path / "other"))
    assert {tile.path for tile in section.tiles()} == {None}


def test_a_file_without_true_labels_is_a_job(tmp_path):
    assert read_labeled(write_csv(tmp_path / "job.csv", [prediction("a.png", 0.9)])) is None


@pytest.mark.parametrize(("old", "new"), [(",red\n", ",blue\n"), ("0.9,0.1", "1.9,0.1")])
def test_scores_that_contradict_themselves_are_refused(tmp_path, old, new):
    path = scored_file(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match="run tltools evaluate again"):
        read_labeled(path)


def test_the_command_that_shows_a_jobs_images_names_its_file(tmp_path):
    path = write_csv(tmp_path / "my job.csv", [prediction("a.png", 0.9)])
    text = page_of(job_section(path, locate=None)).text
    assert f"tltools report '{path}' --images FOLDER." in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), r"nothing to report here: .*tltools train"),
        (("gone.csv",), "gone.csv does not exist"),
        (("notes.txt",), "notes.txt cannot be reported"),
        (("empty",), "empty holds neither runs nor exports"),
        (("some.json",), "some.json is not a result of tltools bench or tltools evaluate"),
        (("list.json",), "list.json is not a JSON file that tltools wrote"),
        (("rows.json",), "rows.json is not a bench result of this version"),
        (("-o", "report.csv"), "--output report.csv is not an HTML page"),
        (("--images", "gone"), "--images gone is not a folder"),
    ],
)
def test_a_path_that_cannot_be_reported_is_a_one_line_error(tmp_path, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    for name, text in (("some", "{}"), ("list", "[]"), ("rows", '{"rows": 1}')):
        (tmp_path / f"{name}.json").write_text(text)
    ran = run_tltools("report", *args, cwd=tmp_path)
    assert ran.code in (1, 2)
    assert re.search(message, ran.err)
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_report_of_a_job_needs_an_output_file(tmp_path):
    ran = run_tltools("classify", ".", "-o", "-", "--report", "a.html", cwd=tmp_path)
    assert ran.code == 2
    assert "--report needs a local output file" in ran.err


# ---------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=flags)
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Open a page of a width; at the end it must have said and asked nothing."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_one(path: Path, *, width: int = 1400, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []
    assert [one for one in asked if not one.startswith(("data:", "file:"))] == []
    assert sum(one.startswith("file:") for one in asked) == len(contexts)


@pytest.fixture(scope="module")
def gallery_page(tmp_path_factory) -> Path:
    """A page with seven images: two classes, right and wrong, sure and unsure."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    tiles = []
    for index in range(7):
        path = folder / f"{index}.png"
        save_image(path, (30 * index, 90, 90), rng)
        tiles.append(
            Tile(
                name=EVIL.replace("/", "") + str(index),
                path=None if index == 6 else path,
                true=("red", "green")[index % 2],
                predicted="red",
                confidence=0.65 + 0.05 * index,
            )
        )
    write_page(
        folder / "a.html",
        [
            Section("One", [Gallery("First", tuple(tiles))]),
            Section("Two", [Gallery("Second", tuple(tiles[:1]))]),
        ],
        title="Gallery",
    )
    return folder / "a.html"


def test_filters_hide_images(open_page, gallery_page):
    page = open_page(gallery_page)
    gallery = page.locator(".gallery").first

    def visible() -> list[int]:
        return [i for i, one in enumerate(gallery.locator("li").all()) if one.is_visible()]

    assert visible() == list(range(7))
    gallery.get_by_label("Show").select_option("mistakes")
    assert visible() == [1, 3, 5]
    assert gallery.locator("output").inner_text() == "3 of 7 shown"
    gallery.get_by_label("Confidence").select_option("90% or more")
    assert visible() == [5]
    gallery.get_by_label("Show").select_option("all")
    assert visible() == [5, 6]
    gallery.get_by_label("Confidence").select_option("any")
    gallery.get_by_label("Class").select_option("green")
    assert visible() == [1, 3, 5]
    assert page.locator(".gallery").nth(1).locator("li").is_visible()


@pytest.mark.parametrize("width", [1400, 400])
def test_a_long_gallery_begins_with_whole_rows_and_a_button_shows_the_rest(
    open_page, tmp_path, width
):
    tiles = tuple(Tile(name=f"{index}.png", path=None, true="red") for index in range(40))
    write_page(tmp_path / "a.html", [Section("One", [Gallery("Many", tiles)])])
    page = open_page(tmp_path / "a.html", width=width)

    def visible() -> int:
        return sum(one.is_visible() for one in page.locator(".tiles > li").all())

    shown = visible()
    columns = page.locator(".tiles").evaluate(
        "one => getComputedStyle(one).gridTemplateColumns.split(' ').length"
    )
    assert shown % columns == 0
    assert 12 <= shown < 12 + columns or shown == 2 * columns
    height = page.locator(".tiles").evaluate("one => one.scrollHeight - one.clientHeight")
    assert height == 0
    page.emulate_media(media="print")
    assert visible() == 40
    page.emulate_media(media="screen")
    page.get_by_role("button", name="Show all 40").click()
    assert visible() == 40
    assert page.locator(".more").is_hidden()


def test_an_image_can_be_enlarged_with_the_keyboard(open_page, gallery_page):
    page = open_page(gallery_page)
    dialog = page.get_by_role("dialog")
    tiles = page.locator(".gallery").first.get_by_role("button")
    tiles.nth(1).focus()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    expect(dialog.locator("img")).to_have_js_property("naturalWidth", 224)
    assert EVIL.replace("/", "") + "1" in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    assert EVIL.replace("/", "") + "2" in dialog.inner_text()
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert "No image: not found" in dialog.inner_text()
    assert dialog.get_by_role("button", name="Next").is_disabled()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    # The dialog gives the focus back to where it was opened; the page moves it on a moment later.
    expect(tiles.nth(5)).to_be_focused()


def test_arrow_keys_skip_filtered_images(open_page, gallery_page):
    page = open_page(gallery_page)
    gallery = page.locator(".gallery").first
    gallery.get_by_label("Show").select_option("mistakes")
    gallery.get_by_role("button").nth(0).click()
    page.get_by_role("button", name="Next").click()
    assert EVIL.replace("/", "") + "3" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_charts_beside_each_other_begin_at_the_same_height(open_page, place):
    ran = run_tltools("report", "--images", "photos", "-o", "level.html", cwd=place)
    assert ran.code == 0, ran
    page = open_page(place / "level.html", width=1400)
    tops = page.eval_on_selector_all(
        ".charts",
        "all => all.map(one => [...one.children].map(x => x.getBoundingClientRect().top))",
    )
    assert any(len(row) > 2 for row in tops)
    for row in tops:
        assert all(left == right for left, right in zip(row[::2], row[1::2], strict=False)), row


@pytest.mark.parametrize(("width", "faded"), [(400, True), (700, True), (1400, False)])
def test_contents_that_scroll_sideways_fade_at_their_end(open_page, place, width, faded):
    ran = run_tltools("report", "--images", "photos", "-o", "faded.html", cwd=place)
    assert ran.code == 0, ran
    page = open_page(place / "faded.html", width=width)
    mask = page.evaluate("getComputedStyle(document.querySelector('nav')).maskImage")
    assert (mask != "none") == faded


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_whole_report_fits_the_window_without_console_errors(open_page, place, width, scheme):
    ran = run_tltools("report", "--images", "photos", "-o", "whole.html", cwd=place)
    assert ran.code == 0, ran
    page = open_page(place / "whole.html", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut_off = page.eval_on_selector_all(
        ".scroll",
        "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)",
    )
    assert cut_off == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    unnamed = page.eval_on_selector_all(
        "svg",
        "all => all.filter(one => one.getAttribute('role') !== 'img' || "
        "!(one.getAttribute('aria-label') || one.getAttribute('aria-labeledby'))).length",
    )
    assert unnamed == 0
    assert page.locator("svg").count() >= 8
    doubled = page.evaluate(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map(one => one.id);"
        " return ids.length - new Set(ids).size; })()"
    )
    assert doubled == 0


@pytest.mark.parametrize("width", [1400, 400])
def test_the_contents_stay_in_view(open_page, place, width):
    ran = run_tltools("report", "--images", "photos", "-o", "stay.html", cwd=place)
    assert ran.code == 0, ran
    page = open_page(place / "stay.html", width=width)
    page.locator("nav a", has_text="Exports").click()
    expect(page.locator("nav")).to_be_in_viewport()
    heading = page.get_by_role("heading", name="Exports", exact=True)
    expect(heading).to_be_in_viewport()
    covered = page.evaluate("document.querySelector('nav').getBoundingClientRect()")
    top = heading.bounding_box()["y"]
    assert width == 1400 or top >= covered["bottom"]


def test_twenty_thousand_predictions_open_quickly(open_page, tmp_path):
    """As many images as a page ever shows of a job, of noise, which nothing makes small."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(400):
        noise = rng.integers(0, 256, size=(112, 112, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    classes = [f"class {index}" for index in range(9)]
    layout = CsvCodec(classes)
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(layout.header)
        for index in range(20_000):
            name, error = f"{index % 400}.png", f"cannot read image: reason {index}"
            probs = rng.dirichlet(np.full(9, 0.2))
            row = Prediction(name, classes[int(probs.argmax())], float(probs.max()), probs, None)
            if index % 20 == 0:
                row = Prediction(name, None, None, None, error)
            file.write(layout.encode(row))
    page_path = tmp_path / "a.html"
    section = job_section(path, locate=locate_in(folder))
    assert len(list(section.tiles())) > 250
    size = write_page(page_path, [section])
    assert size < 25e6
    page = open_page(page_path)
    seconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    assert 0 < seconds < 3
    print(f"{size / 1e6:.1f} MB, {seconds:.2f} s")
