"""`tltools classify` for a few images: the answer on the terminal, and nothing else."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import CLASSES, run_tltools
from typer.main import get_command

from tltools import cli
from tltools.classify.output_formats.format import likeliest_of
from tltools.classify.predict import Prediction
from tltools.cli import few_images


@pytest.fixture
def classify(onnx_path, tmp_path):
    def run(*args):
        return run_tltools("classify", *args, "--model", onnx_path, "--device", "cpu", cwd=tmp_path)

    return run


@pytest.fixture
def one(images):
    return sorted((images / "green").iterdir())[0]


def test_one_image_is_answered_on_the_terminal(classify, one, tmp_path):
    ran = classify(one)
    assert (ran.code, ran.err) == (0, "")
    first, *rest = ran.out.splitlines()
    assert first.split()[0] == "green"
    assert {line.split()[0] for line in rest} == set(CLASSES) - {"green"}
    shares = [float(line.split()[1].rstrip("%")) for line in (first, *rest)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_the_answer_is_that_of_a_job(classify, one):
    (told,) = json.loads(classify(one, "--json").out)
    header, row = classify(one, "--output", "-").out.splitlines()
    columns = dict(zip(header.split(","), row.split(","), strict=True))
    assert (told["path"], told["label"], told["error"]) == (str(one), columns["label"], None)
    assert told["confidence"] == pytest.approx(float(columns["confidence"]), abs=1e-6)
    assert list(told["probabilities"]) == list(CLASSES)


def test_several_images_are_a_table(classify, images, tmp_path):
    paths = [sorted((images / name).iterdir())[0] for name in CLASSES]
    ran = classify(*paths)
    assert ran.code == 0
    for path, name in zip(paths, CLASSES, strict=True):
        assert str(path.relative_to(tmp_path)) in ran.out.split()
        assert f" {name} " in ran.out
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_image_that_cannot_be_read_is_an_error(classify, one, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    ran = classify("bad.jpg")
    assert (ran.code, ran.out) == (1, "")
    assert "not classified: bad.jpg: not an image" in ran.err
    ran = classify("bad.jpg", one)
    assert ran.code == 1
    assert "green" in ran.out


def test_a_label_below_the_smallest_confidence_says_what_it_may_be(classify, one):
    ran = classify(one, "--min-confidence", "1")
    uncertain, best, *_ = ran.out.splitlines()
    assert uncertain == "uncertain"
    assert best.startswith("green ")


def test_in_a_table_an_uncertain_label_names_the_class_with_the_probability(classify, images):
    paths = [sorted((images / name).iterdir())[0] for name in CLASSES]
    ran = classify(*paths, "--min-confidence", "1")
    for name in CLASSES:
        assert re.search(rf"uncertain \(likeliest {name}, [\d.]+%\) +- ", ran.out)


def test_the_class_that_an_image_may_be_is_the_one_with_its_confidence():
    shares = [0.2, 0.35, 0.45]
    assert likeliest_of("unknown", 0.45, ("a", "b", "c"), shares) == "c"
    assert likeliest_of("uncertain", 0.35, ("a", "b", "c"), shares) == "b"  # by a threshold
    assert likeliest_of("a", 0.2, ("a", "b", "c"), shares) is None
    assert likeliest_of("unknown", 0.45, ("unknown", "b", "c"), shares) is None
    unknown = Prediction("x.png", "unknown", 0.45, np.array(shares), None, distance=1.234)
    assert few_images._cells(unknown, ("a", "b", "c"), distance=True) == (
        "x.png", "unknown (likeliest c, 45.0%)", "-", "b 35.0%", "1.23",
    )  # fmt: skip
    ranked = few_images._ranked(unknown, ("a", "b", "c"))
    assert (ranked[:2], ranked[-1]) == (["unknown", "c 45.0%"], "distance 1.23")


def test_a_warning_names_an_image_that_cannot_be_read(classify, images, tmp_path):
    (images / "red" / "bad.jpg").write_bytes(b"no image")
    ran = classify("images")
    assert "warning: 1 image not classified: red/bad.jpg: not an image of" in ran.err
    (images / "red" / "worse.jpg").write_bytes(b"nor this")
    ran = classify("images", "--overwrite")
    assert "warning: 2 images not classified; the first is red/bad.jpg: not an image" in ran.err


@pytest.mark.parametrize(
    "options",
    [["--output", "rows.csv"], ["--errors-to", "errors.csv"], ["--strict"], ["--shard", "1/1"]],
    ids=" ".join,
)
def test_an_option_of_a_job_makes_it_a_job(classify, one, options):
    ran = classify(one, *options)
    assert ran.code == 0
    assert "1 row (0 with an error)" in ran.err


def test_an_option_of_another_engine_is_refused_as_for_a_job(classify, one):
    ran = classify(one, "--part-size", "5")
    assert ran.code == 2
    assert "--part-size is for --engine ray" in ran.err


def test_every_option_is_one_of_an_answer_or_of_a_job():
    known = {parameter.name for parameter in get_command(cli.app).commands["classify"].params}
    assert known > few_images._ANSWERED


def test_a_folder_or_many_images_are_a_job(classify, images):
    assert "written to predictions.csv" in classify(images).err


def test_shares_are_of_the_classified_images_and_add_up(classify, images):
    (images / "red" / "bad.jpg").write_bytes(b"no image")
    for options in ((), ("--overwrite", "--min-confidence", "0.9")):
        err = classify("images", *options).err
        shares = [float(one) for one in re.findall(r"^ *\d+ +(\d+\.\d)%  ", err, re.MULTILINE)]
        assert len(shares) >= len(CLASSES)
        assert sum(shares) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize("more", [(), ("folder",)])
def test_a_model_among_the_images_is_refused_with_its_option(more, cnn_exports, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "folder")
    image, export = next(drawn.glob("*/*.png")), cnn_exports["onnx"].path
    ran = run_tltools("classify", export, *(more or (image,)), cwd=tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (f"error: {export} is a model, not images: choose it with --model {export}\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
