"""The report on images unlike the training data: counts, chart, and reference."""

import itertools
import shutil
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from conftest import load_onnx, run_tltools, save_image
from test_charts import HOSTILE
from test_report import page_of, read_page

from tltools.artifacts import read_artifact
from tltools.card import CARD_KEY, DISTANCE_LEVELS, Beyond, Distances
from tltools.classify.output_formats import output_format
from tltools.classify.output_formats.csv_rows import CsvCodec
from tltools.classify.predict import Prediction
from tltools.classify.remembered import (
    Reference,
    remember_inputs,
    remembered_inputs,
    remembered_reference,
)
from tltools.distance import far_out, load_distance
from tltools.errors import DataError
from tltools.metrics import proportion
from tltools.report.blocks import Charts, Gallery, Section, Table
from tltools.report.distance_chart import (
    EDGES,
    _label,
    bin_of,
    distance_histogram,
    ticks_between,
)
from tltools.report.distances import (
    MAX_FARTHEST,
    DistanceFacts,
    Far,
    beyond_cells,
    ordinal,
    reference_among,
)
from tltools.report.jobs import job_section, locate_in, read_job
from tltools.report.models import MAX_DISTANT, exports_section, training_section
from tltools.report.summary import summary_section
from tltools.report.svg import new_figure, theme
from tltools.run_folder import DISTANCE, read_distances

CLASSES = ("red", "green")
TITLE_OF_RUNS = "Images most unlike the training data"
# The p-th percentile of the training images is p / 50: the median is 1, the largest 2.
TRAINING = Distances(
    percentiles=tuple(level / 50 for level in DISTANCE_LEVELS),
    num_images=500,
    beyond=(
        Beyond(level=90.0, validation=proportion(12, 100)),
        Beyond(level=99.0, validation=proportion(1, 100)),
    ),
)
AT_95 = Reference("cnn", TRAINING, 95.0)
DISTANCES = [0.5, 1.0, 1.79, 1.81, 1.899, 1.901, 1.97, 1.99, 3.0, 5.0]


def write_job(path: Path, distances: list[float | None], *, limit: float = 1.9) -> Path:
    """Write a job of red images; None is a file that is no image."""
    codec = CsvCodec(CLASSES, distance=True)
    with path.open("wb") as file:
        file.write(codec.header)
        for number, distance in enumerate(distances):
            name, probs = f"{number}.png", np.array([0.75, 0.25])
            if distance is None:
                row = Prediction(name, None, None, None, f"cannot read image {name}: it is empty")
            else:
                label = "unknown" if distance > limit else "red"
                row = Prediction(name, label, 0.75, probs, None, distance=distance)
            file.write(codec.encode(row))
    return path


def distance_part(section: Section) -> Section:
    (part,) = (one for one in section.blocks if isinstance(one, Section))
    assert part.title == "Images unlike the training data"
    return part


def block_of(section: Section, kind):
    (found,) = (one for one in section.blocks if isinstance(one, kind))
    return found


# --------------------------------------------------------------------------------- the figures


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_job_counts_the_images_beyond_each_percentile(tmp_path, suffix):
    path = write_job(tmp_path / "rows.csv", [*DISTANCES, None])
    if suffix != ".csv":
        path = converted(path, suffix)
    facts = read_job(path, lambda _classes: AT_95).distances
    assert (facts.num_images, facts.num_unknown) == (10, 5)
    assert facts.beyond == {90.0: 7, 95.0: 5, 99.0: 3}
    assert facts.limit == pytest.approx(1.9)
    np.testing.assert_array_equal(facts.counts, np.histogram(DISTANCES, EDGES)[0])
    assert [one.distance for one in facts.farthest()] == sorted(DISTANCES, reverse=True)


def converted(path: Path, suffix: str) -> Path:
    """Write the rows of a CSV in another format."""
    from tltools.classify.output_formats.json_lines import JsonLinesCodec, JsonRow
    from tltools.classify.output_formats.parquet import write_parquet

    codec, other = JsonLinesCodec(CLASSES, distance=True), path.with_suffix(suffix)
    _, rows = output_format(path).read(path)
    probs = np.array([0.75, 0.25])
    lines = [
        codec.encode(
            Prediction(
                row.path, row.label, row.confidence, None if row.error else probs, row.error,
                distance=row.distance,
            )
        )
        for row in rows
    ]  # fmt: skip
    if suffix == ".parquet":
        decoded = (msgspec.json.decode(line, type=JsonRow) for line in lines)
        write_parquet(other, decoded, CLASSES, distance=True)
    else:
        other.write_bytes(b"".join(lines))
    return other


def test_the_section_says_how_many_are_unknown_and_shows_the_most_distant_first(tmp_path):
    path = write_job(tmp_path / "rows.csv", [*DISTANCES, None])
    job = read_job(path, lambda _classes: AT_95)
    part = distance_part(job_section(path, locate=locate_in(tmp_path), job=job))
    assert block_of(part, Table).rows == (
        ("90th", "1.80", "12.0%", "70.0% (7)"),
        ("95th (limit)", "1.90", "-", "50.0% (5)"),
        ("99th", "1.98", "1.0%", "30.0% (3)"),
    )
    gallery = block_of(part, Gallery)
    assert [tile.name for tile in gallery.tiles[:4]] == ["9.png", "8.png", "7.png", "6.png"]
    assert [tile.notes for tile in gallery.tiles[:3]] == [
        ("distance 5.00", "2.5 times as far as the most distant training image"),
        ("distance 3.00", "1.5 times as far as the most distant training image"),
        ("distance 1.99", "99th percentile"),
    ]
    assert gallery.tiles[0].predicted == "unknown"
    assert (
        gallery.note
        == "10 of 10 images, the most distant first; the most distant training image is at 2.00"
    )
    text = page_of(part).text
    assert "5 of 10 images (50.0%), beyond the 95th percentile of the 500 training images" in text
    told = "distance 5.00 2.5 times as far as the most distant training image"
    assert f"unknown (likeliest red, 75.0%) {told}" in text
    (summary,) = summary_section([], [], [], [(Path("rows.csv"), job)]).blocks[:1]
    assert summary.lines == ("rows.csv: 10 of 11 images classified, 5 of them unlike the training "
                             "data.",)  # fmt: skip


def test_a_job_without_distances_has_no_such_section(tmp_path):
    path = tmp_path / "rows.csv"
    codec = CsvCodec(CLASSES)
    row = Prediction("a.png", "red", 0.75, np.array([0.75, 0.25]), None)
    path.write_bytes(codec.header + codec.encode(row))
    section = job_section(path, locate=None, job=read_job(path, lambda _classes: AT_95))
    assert not [one for one in section.blocks if isinstance(one, Section)]


def test_without_the_model_the_labels_alone_are_counted(tmp_path):
    path = write_job(tmp_path / "rows.csv", DISTANCES)
    part = distance_part(job_section(path, locate=None))
    text = page_of(part).text
    assert "Labeled unknown: 5 of 10 images (50.0%). The percentiles of the training" in text
    (chart,) = block_of(part, Charts).charts
    assert "The nearest unknown image is at 1.90." in chart.description
    # The images' folder is not known either: a table names them.
    table = block_of(part, Table)
    unknown = "unknown (likeliest red, 75.0%)"
    assert table.rows[:2] == (("9.png", unknown, "5.00", "-"), ("8.png", unknown, "3.00", "-"))
    assert read_job(path).distances.limit == 1.901
    assert read_job(write_job(path, DISTANCES, limit=9)).distances.limit is None


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.8, 0.98), (0.5, 2), (0.1, 10), (0.9, 1.4), (1, 1.04), (3, 3.2), (0.001, 4000), (1.9, 8)],
)
def test_labels_of_ticks_do_not_touch_each_other(low, high):
    ticks = ticks_between(low, high)
    assert 2 <= len(ticks) <= 9
    assert low <= ticks[0] < ticks[-1] <= high
    with theme():
        figure = new_figure(300)
        axes = figure.subplots()
        axes.set_ylim(0, 1000)
        _label(axes, np.array([low, high]))
        figure.canvas.draw()
        boxes = [one.get_window_extent() for one in axes.get_xticklabels()]
    assert len(boxes) == len(ticks)
    for left, right in itertools.pairwise(boxes):
        assert left.x1 + 4 < right.x0  # less would read as one number


def test_only_the_most_distant_of_many_images_are_kept():
    facts = DistanceFacts(AT_95)
    for number in np.random.default_rng(0).permutation(1000):
        facts.add(Far(f"{number}.png", "red", 0.5, number / 100), is_unknown=False)
    kept = [one.path for one in facts.farthest()]
    assert kept == [f"{number}.png" for number in range(999, 999 - MAX_FARTHEST, -1)]
    assert facts.counts.sum() == facts.num_images == 1000


@pytest.mark.parametrize("distance", ["nan", "-1", "inf"])
def test_a_distance_that_is_none_is_refused(tmp_path, distance):
    path = write_job(tmp_path / "rows.csv", [1.5])
    path.write_text(path.read_text().replace("1.5", distance))
    with pytest.raises(
        DataError, match=r"row 1 is (damaged|not from tltools classify: .*distance)"
    ):
        read_job(path)


def test_a_class_named_unknown_is_no_unknown_image(tmp_path):
    codec = CsvCodec(("unknown", "green"), distance=True)
    row = Prediction("a.png", "unknown", 0.75, np.array([0.75, 0.25]), None, distance=9.0)
    path = tmp_path / "rows.csv"
    path.write_bytes(codec.header + codec.encode(row))
    assert read_job(path).distances.num_unknown == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1st"), (2.0, "2nd"), (3, "3rd"), (11, "11th"), (22, "22nd"), (99, "99th"),
     (99.5, "99.5th"), (12.0, "12th"), (0.1, "0.1th")],
)  # fmt: skip
def test_a_percentile_is_an_ordinal(number, text):
    assert ordinal(number) == text


# --------------------------------------------------------------------------------- the chart


def draw(distances, **options):
    counts = np.bincount(list(map(bin_of, distances)), minlength=len(EDGES) - 1)
    options = {"training": TRAINING, "limit": 1.9, "title": "t", "description": "d"} | options
    chart = distance_histogram(counts, **options)
    return chart, list(ElementTree.fromstring(chart.svg).itertext())  # noqa: S314


def test_the_chart_draws_images_training_images_and_the_limit():
    _, text = draw(DISTANCES, limit_name="limit: 95th percentile")
    for words in ("images", "training images, scaled to as many", "limit: 95th percentile", "1"):
        assert words in text
    _, text = draw(DISTANCES, training=None, limit=None)
    assert "training images, scaled to as many" not in text


@pytest.mark.parametrize("distances", [[0.0], [1e9], [0.0, 1e9], [1.0], [1.0, 1.0001], [1e-5, 900]])
@pytest.mark.parametrize("training", [TRAINING, None])
def test_any_distances_can_be_drawn(distances, training):
    chart, text = draw(distances, training=training, limit=1.9 if training else None)
    assert chart.svg.count("<path") < 200
    assert "distance" in text


def test_equal_training_images_can_be_drawn():
    equal = Distances(percentiles=(0.0,) * len(DISTANCE_LEVELS), num_images=4)
    assert draw([0.0, 1.0], training=equal, limit=0.0)[0].svg


def test_bins_hold_their_lower_edge():
    assert bin_of(float(EDGES[5])) == 5
    assert bin_of(np.nextafter(EDGES[5], 0)) == 4
    assert (bin_of(0), bin_of(1e300)) == (0, len(EDGES) - 2)


def test_a_hostile_name_of_a_run_is_text(tmp_path):
    for name in HOSTILE:
        path = write_job(tmp_path / "rows.csv", DISTANCES)
        job = read_job(path, lambda _classes, name=name: Reference(name, TRAINING, 95.0))
        page = page_of(distance_part(job_section(path, locate=None, job=job)))
        assert page.tags.count("script") == 1


# --------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """A run on gray images and one red one among the training images, and what it said."""
    root = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(60)]
    lines = ["image,label,split"]
    for index, name in enumerate(names):
        level = (50, 200)[index % 2]
        save_image(root / name, (250, 20, 20) if index == 30 else (level, level, level), rng)
        label, split = ("dark", "bright")[index % 2], "val" if index < 8 else "train"
        lines.append(f"{name},{label},{split}")
    (root / "labels.csv").write_text("\n".join(lines))
    words = ("train", "labels.csv", "--model", "cnn", "--epochs", 2, "--device", "cpu")
    ran = run_tltools(*words, cwd=root)
    assert ran.code == 0, ran
    return root / "runs" / "cnn", ran.err


def test_train_names_the_image_that_is_unlike_the_others(odd_run):
    folder, said = odd_run
    found, (_, facts) = read_distances(folder), load_distance(folder / DISTANCE)
    num_far = (found.distances > far_out(facts)).sum()  # few, but which depends on the rounding
    assert 1 <= num_far < 10
    assert f"Unlike the other training images: {num_far} of 60 images, most of all" in said
    assert "30.png; look at them in runs/cnn/distances.csv or in a report" in " ".join(said.split())
    assert Path(found.paths[0]).name == "30.png"
    assert (found.labels[0], found.splits[0]) == ("dark", "train")
    assert sorted(Path(one).name for one in found.paths) == sorted(f"{i}.png" for i in range(60))
    assert list(found.distances) == sorted(found.distances, reverse=True)
    is_val = np.array(found.splits) == "val"
    assert is_val.sum() == 8
    training = found.distances[~is_val]
    np.testing.assert_allclose(
        np.percentile(training, DISTANCE_LEVELS), facts.percentiles, rtol=1e-4, atol=1e-6
    )
    for one in facts.beyond:
        assert one.validation.count == (found.distances[is_val] > facts.at(one.level)).sum()


def test_a_run_shows_the_images_of_its_data_that_are_most_unlike(odd_run):
    section = training_section([read_artifact(odd_run[0])])
    (run,) = (one for one in section.blocks if getattr(one, "title", "") == "Run cnn")
    (gallery,) = (one for one in run.blocks if getattr(one, "title", "") == TITLE_OF_RUNS)
    assert len(gallery.tiles) == MAX_DISTANT
    first = gallery.tiles[0]
    assert (first.name, first.true, first.split) == ("30.png", "dark", "train")
    assert first.notes[1] == "the most distant of them"
    assert "24 of 60 images, the most distant first" in gallery.note
    _, facts = load_distance(odd_run[0] / DISTANCE)
    num_far = (read_distances(odd_run[0]).distances > far_out(facts)).sum()
    assert f"; {num_far} outlier" in gallery.note
    assert f" (beyond {far_out(facts):.2f})" in gallery.note


def test_damaged_or_missing_distances_of_a_run_leave_the_rest(odd_run, tmp_path):
    run = tmp_path / "cnn"
    shutil.copytree(odd_run[0], run)
    (run / "distances.csv").write_text("path,true,split,distance\na.png,dark,val,-1\n")
    text = page_of(training_section([read_artifact(run)])).text
    assert "distances.csv has a distance that is not a number of at least 0" in text
    (run / "distances.csv").unlink()
    text = page_of(training_section([read_artifact(run)])).text
    assert TITLE_OF_RUNS not in text
    assert "Confusion matrix of cnn" in text


def test_a_table_is_wide_if_words_and_names_do_not_fit_a_phone():
    def table(*columns, row=("a", "1", "2")):
        return Table("t", columns, (row,))

    assert not table("class", "precision", "recall").is_wide
    assert table("export", "precision", "recall", row=("exports/cnn/cnn.fp32.onnx",) * 3).is_wide
    assert not table("class", "a text of many short words that a cell may break", "b").is_wide
    assert table("a name of a row that is never broken, however long", "a", "b").is_wide
    assert not Table("t", ("class",), ()).is_wide


# --------------------------------------------------------------------------------- the models


@pytest.fixture(scope="module")
def exports(cnn_exports):
    return [read_artifact(one.path) for one in cnn_exports.values()]


def test_exports_tell_the_shares_of_validation_images(exports):
    assert beyond_cells(TRAINING.beyond) == ("12.0% (12/100)", "-", "1.0% (1/100)")
    table = next(
        one for one in exports_section(exports).blocks if "unlike" in getattr(one, "title", "")
    )
    assert table.columns[2:] == tuple(f"beyond the {one}th percentile" for one in (90, 95, 99))
    facts = exports[0].card.export.distances
    assert table.rows[0][1:] == (str(facts.num_images), *beyond_cells(facts.beyond))
    assert len(table.rows) == len(exports)


def with_card(export, path: Path, change):
    import onnx

    model = load_onnx(export.path)
    onnx.helper.set_model_props(model, {CARD_KEY: change(export.card).to_json()})
    onnx.save(model, path)
    return read_artifact(path)


def test_percentiles_are_those_of_the_only_model_with_the_classes(exports, tmp_path):
    classes = exports[0].card.classes
    found = reference_among(exports, classes)
    assert (found.run, found.unknown) == ("cnn", None)
    assert found.distances.percentiles == exports[0].card.export.distances.percentiles
    assert reference_among(exports, ("other", "classes")) is None
    assert reference_among([], classes) is None

    def other(card):
        distances = card.export.distances
        larger = tuple(2 * one for one in distances.percentiles)
        distances = msgspec.structs.replace(distances, percentiles=larger)
        facts = msgspec.structs.replace(card.export, distances=distances)
        return msgspec.structs.replace(card, run="other", export=facts)

    onnx = next(one for one in exports if one.path.suffix == ".onnx")
    assert reference_among([*exports, with_card(onnx, tmp_path / "b.onnx", other)], classes) is None


# --------------------------------------------------------------------------------- the commands


def test_what_a_job_was_compared_with_is_remembered(tmp_path):
    output = write_job(tmp_path / "rows.csv", DISTANCES)
    assert not remember_inputs(output, [tmp_path / "photos.tar"], AT_95)
    assert (remembered_inputs(output), remembered_reference(output)) == (None, AT_95)
    assert remember_inputs(output, [tmp_path], AT_95)
    assert (remembered_inputs(output), remembered_reference(output)) == ([tmp_path], AT_95)
    damaged = msgspec.structs.replace(TRAINING, percentiles=(1.0,))
    assert remember_inputs(output, [tmp_path], Reference("cnn", damaged, 95.0))
    assert (remembered_inputs(output), remembered_reference(output)) == ([tmp_path], None)
    remember_inputs(output, [tmp_path], AT_95)
    output.write_text("another file")
    assert remembered_reference(output) is None


def test_classify_and_report_show_the_unknown_images(exports, drawn, tmp_path):
    export = next(one for one in exports if one.path.suffix == ".onnx")
    photos = tmp_path / "photos"
    shutil.copytree(drawn, photos)
    for number in range(4):
        save_image(photos / f"red{number}.png", (250, 20, 20), np.random.default_rng(number))
    ran = run_tltools(
        "classify", "photos", "--model", export.path, "--unknown", "95", "--device", "cpu",
        "--report", "job.html", cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran
    facts = read_job(tmp_path / "predictions.csv").distances
    assert facts.num_unknown >= 4
    told = f"Labeled unknown: {facts.num_unknown} of 20 images"
    limit = export.card.export.distances.at(95)
    for args in (None, ("report",), ("report", "copy.csv", export.path, "--images", "photos")):
        if args and len(args) > 1:  # a report without names takes the newest file
            shutil.copy(tmp_path / "predictions.csv", tmp_path / "copy.csv")
        if args:
            assert run_tltools(*args, "-o", "job.html", cwd=tmp_path).code == 0
        html = (tmp_path / "job.html").read_text()
        page = read_page(html)
        assert told in page.text
        # A copy has the labels, and its model says what the percentiles are, but not the limit.
        assert ("nearest unknown image" in page.text) == (args is not None and len(args) > 1)
        assert (f"95th (limit) {limit:.2f}" in page.text) == (args is None or len(args) == 1)
        assert "red0.png" in page.text
        assert str(tmp_path) not in html.replace(str(export.path), "")
