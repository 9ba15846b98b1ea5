"""`from tltools import load_model`: the interface for programs that embed tltools."""

import io
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, COLORS, SIZE, color_logits, save_image
from PIL import Image

import tltools
from tltools import load_model
from tltools.card import Confidence
from tltools.errors import ArtifactError, ConfigError, TltoolsError
from tltools.layouts.wheel import make_wheel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def predictor(onnx_path):
    return load_model(onnx_path, device="cpu")


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    save_image(path, COLORS["red"], np.random.default_rng(0))
    return path


def test_a_predictor_knows_its_classes_card_and_device(predictor, card):
    assert predictor.classes == CLASSES
    assert predictor.card == card
    assert predictor.device == "cpu"


def test_the_probabilities_are_those_of_the_models_definition(make_onnx, make_card, red, tmp_path):
    card = make_card(confidence=Confidence(temperature=2.5, num_images=9))
    predictor = load_model(make_onnx(tmp_path / "warm.onnx", card.to_json()), device="cpu")
    (prediction,) = predictor.predict([red])
    logits = color_logits(np.asarray(Image.open(red))[None])[0] / 2.5
    expected = np.exp(logits) / np.exp(logits).sum()
    assert prediction.label == "red"
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-6)
    assert prediction.confidence == prediction.probabilities.max()


def test_every_form_of_an_image_gets_the_same_prediction(predictor, red):
    image = Image.open(red)
    forms = [str(red), red, red.read_bytes(), image, np.asarray(image), Image.open(red)]
    predictions = predictor.predict(forms)
    assert [one.name for one in predictions] == [str(red), str(red), "2", "3", "4", "5"]
    assert {one.label for one in predictions} == {"red"}
    for one in predictions[1:]:
        np.testing.assert_array_equal(one.probabilities, predictions[0].probabilities)


def test_a_jpegs_bytes_get_the_same_prediction_as_its_file(predictor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    file, data = predictor.predict([tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()])
    np.testing.assert_array_equal(file.probabilities, data.probabilities)


def test_a_decoded_image_is_rotated_and_converted_to_rgb(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 70, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png", exif=exif)
    file, image = predictor.predict([tmp_path / "a.png", Image.open(tmp_path / "a.png")])
    np.testing.assert_array_equal(file.probabilities, image.probabilities)


def test_a_bad_image_costs_only_its_own_prediction(predictor, red, tmp_path):
    good = red.read_bytes()
    torn = Image.open(io.BytesIO(good[: len(good) // 2]))
    forms = [tmp_path / "missing.png", good, b"no image", red, torn, b""]
    predictions = predictor.predict(forms)
    assert [one.label for one in predictions] == [None, "red", None, "red", None, None]
    assert [one.error is None for one in predictions] == [False, True, False, True, False, False]
    assert "no such file" in predictions[0].error
    assert "not an image of a known format" in predictions[2].error
    assert all(one.probabilities is None for one in predictions if one.error)


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_many_images_keep_their_order(onnx_path, images, batch_size):
    predictor = load_model(onnx_path, device="cpu", batch_size=batch_size, threads=2)
    paths = sorted(images.rglob("*.png"))
    mixed = [path if number % 3 else path.read_bytes() for number, path in enumerate(paths)]
    assert [one.label for one in predictor.predict(mixed)] == [path.parent.name for path in paths]
    assert predictor.predict([]) == []


def test_an_array_of_images_gets_one_prediction_per_image(predictor):
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    images[0, ..., 2] = images[1, ..., 1] = 255
    assert [one.label for one in predictor.predict(images)] == ["blue", "green"]


def test_a_prediction_below_min_confidence_is_uncertain(predictor, red):
    (sure,) = predictor.predict([red])
    above = np.nextafter(sure.confidence, 1)
    labels = [
        predictor.predict([form], min_confidence=bound)[0].label
        for form in (red, red.read_bytes())
        for bound in (sure.confidence, above)
    ]
    assert labels == ["red", "uncertain"] * 2


def test_threads_may_share_a_predictor(predictor, images):
    paths = sorted(images.rglob("*.png"))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: predictor.predict(paths), range(8)))
    expected = [path.parent.name for path in paths]
    assert all([one.label for one in answer] == expected for answer in answers)


def test_predictions_equal_the_rows_that_the_command_writes(predictor, onnx_path, images, tmp_path):
    from conftest import run_tltools

    arguments = ("classify", images, "--model", onnx_path, "--device", "cpu", "-o", "rows.jsonl")
    assert run_tltools(*arguments, cwd=tmp_path).code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    predictions = predictor.predict([images / row["path"] for row in rows])
    assert len(rows) == 30
    for row, one in zip(rows, predictions, strict=True):
        assert row["label"] == one.label
        np.testing.assert_allclose(
            list(row["probabilities"].values()), one.probabilities, atol=1e-6
        )


# --------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        pytest.param("a.png", TypeError, r"predict\(\[image\]\)", id="path"),
        pytest.param(b"bytes", TypeError, r"predict\(\[image\]\)", id="bytes"),
        pytest.param(Path("a.png"), TypeError, r"predict\(\[image\]\)", id="pathlib"),
        pytest.param(Image.new("L", (4, 4)), TypeError, r"predict\(\[image\]\)", id="image"),
        pytest.param([3], TypeError, "got int", id="number"),
        pytest.param(np.zeros((8, 8, 3), np.uint8), ValueError, r"got uint8 \(8, 3\)", id="one"),
        pytest.param(
            [np.zeros((8, 8, 3), np.float32)], ValueError, r"got float32 \(8, 8, 3\)", id="float"
        ),
        pytest.param([np.zeros((8, 0, 3), np.uint8)], ValueError, r"\(8, 0, 3\)", id="empty"),
    ],
)
def test_a_wrong_argument_is_an_error(predictor, wrong, error, message):
    with pytest.raises(error, match=message):
        predictor.predict(wrong)


def test_invalid_settings_are_refused(predictor, onnx_path, red, tmp_path):
    with pytest.raises(ConfigError, match=r"`min_confidence=` must be between 0 and 1, got 7"):
        predictor.predict([red], min_confidence=7)
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        load_model(onnx_path, batch_size=0)
    (found,) = predictor.predict([Image.new("RGB", (0, 5))])
    assert found.error == "cannot read an image: it has 0 x 5 pixels"
    with pytest.raises(ArtifactError, match=r"missing\.onnx does not exist"):
        load_model(str(tmp_path / "missing.onnx"))


# ------------------------------------------------------------------------------------ the door


def test_exactly_the_documented_names_can_be_imported():
    for name in tltools.__all__:
        assert getattr(tltools, name) is not None
    assert set(tltools._MODULES) == set(tltools.__all__) - {"__version__"}
    assert tltools.TltoolsError is TltoolsError
    with pytest.raises(AttributeError, match="has no attribute 'load_everything'"):
        tltools.load_everything  # noqa: B018


def test_importing_tltools_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import tltools; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "tltools" in loaded
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "tltools"
    }


def test_a_predictor_works_without_torch(onnx_path, red):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # so that an import of it fails\n"
        "from tltools import load_model\n"
        "print(load_model(sys.argv[1], device='cpu').predict([sys.argv[2]])[0].label)"
    )
    command = [sys.executable, "-c", code, str(onnx_path), str(red)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "red\n"), done.stderr


def readme_example() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("## In Python")[2].partition("```python\n")[2].partition("```")[0]


def test_the_readmes_example_runs(onnx_path, red, tmp_path):
    export = tmp_path / "exports" / "cnn" / "cnn.fp32.onnx"
    export.parent.mkdir(parents=True)
    export.write_bytes(onnx_path.read_bytes())
    (tmp_path / "photo.jpg").write_bytes(red.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", readme_example()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("photo.jpg red 0.99")
    assert "cannot read image missing.jpg: no such file" in done.stdout


USER = """
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from tltools import ImagePredictor, Prediction, TltoolsError, load_model

predictor = load_model("model.onnx", device="cpu")
assert_type(predictor, ImagePredictor)
assert_type(predictor.classes, tuple[str, ...])
predictions = predictor.predict(["a.jpg", b"bytes", np.zeros((8, 8, 3), np.uint8)])
assert_type(predictions, list[Prediction])
for one in predictions:
    assert_type(one.label, str | None)
    assert_type(one.probabilities, NDArray[np.float64] | None)
try:
    load_model("model.onnx", device=0)  # EXPECTED
except TltoolsError as error:
    print(error)
"""


def test_a_type_checker_sees_the_types(tmp_path):
    """Run strict pyright on a program, with tltools installed as from a wheel."""
    import venv

    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").rglob("site-packages")
    with zipfile.ZipFile(io.BytesIO(make_wheel())) as wheel:
        wheel.extractall(site)
    # Its dependencies are those of this environment.
    (site / "dependencies.pth").write_text(str(Path(np.__file__).parents[1]))
    python = next((tmp_path / "env").rglob("bin/python"))
    command = [sys.executable, "-m", "pyright", "--pythonpath", str(python), "--outputjson"]
    done = subprocess.run([*command, "-p", "."], capture_output=True, text=True, cwd=tmp_path)
    report = json.loads(done.stdout)
    line = USER.splitlines().index(next(one for one in USER.splitlines() if "EXPECTED" in one))
    found = [(one["range"]["start"]["line"], one["rule"]) for one in report["generalDiagnostics"]]
    assert found == [(line, "reportArgumentType")], done.stdout
