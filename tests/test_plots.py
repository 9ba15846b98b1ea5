import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tltools.errors import DataError
from tltools.plots import contact_sheet, plot_confusion, plot_heat, plot_history

LONG = "a name that is much longer than any plot has room for, really"
ODD_NAMES = ["cash $5_$", "구급차", "Élan & <b>", LONG]


def history(epochs: int) -> pd.DataFrame:
    steps = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": steps,
            "train_loss": 1 / steps,
            "val_loss": 1.2 / steps,
            "train_accuracy": 1 - 0.5 / steps,
            "val_accuracy": 1 - 0.6 / steps,
        }
    )


def read_png(path: Path) -> Image.Image:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info.get("Software", "tltools") == "tltools"  # and no version
        image.load()
        return image.convert("RGB")


def is_drawn(image: Image.Image) -> bool:
    """Whether there is something in each quarter of the image."""
    pixels = np.asarray(image)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    quarters = [pixels[r : r + height, c : c + width] for r in (0, height) for c in (0, width)]
    return all(quarter.std() > 1 for quarter in quarters)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_history_plots_are_reproducible(tmp_path, epochs):
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for path in (first, second):
        plot_history(history(epochs), path, title="runs/$cnn_$")
    assert is_drawn(read_png(first))
    assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_history_shows_its_values(tmp_path):
    plain, other = history(5), history(5)
    other.loc[2, "val_accuracy"] = 0.1
    plot_history(plain, tmp_path / "plain.png", title="run")
    plot_history(other, tmp_path / "other.png", title="run")
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path):
    table = history(5)
    table.loc[[1, 3], "train_loss"] = [np.nan, np.inf]
    plot_history(table, tmp_path / "plot.png", title="run")
    assert is_drawn(read_png(tmp_path / "plot.png"))


@pytest.mark.parametrize("num_classes", [2, 3, 10, 50])
def test_a_confusion_matrix_is_drawn_with_space_for_each_class(tmp_path, num_classes):
    matrix = np.diag(np.arange(num_classes) * 100)
    matrix[0] += 7
    classes = [f"class number {index}" for index in range(num_classes)]
    plot_confusion(matrix, classes, tmp_path / "matrix.png", title="matrix")
    image = read_png(tmp_path / "matrix.png")
    assert is_drawn(image)
    assert min(image.size) >= 48 * num_classes  # pixels: three lines of the smallest letters
    assert max(image.size) <= 4000


@pytest.mark.parametrize("num_classes", [51, 1600])
def test_of_many_classes_those_with_the_most_mistakes_are_drawn(tmp_path, num_classes):
    classes = [f"class number {index}" for index in range(num_classes)]
    images = []
    for mistaken in (0, num_classes - 1):
        matrix = np.eye(num_classes, dtype=np.int64)
        matrix[mistaken, num_classes // 2] = 3
        plot_confusion(matrix, classes, tmp_path / "matrix.png", title="matrix")
        images.append(read_png(tmp_path / "matrix.png"))
        assert max(images[-1].size) <= 4000
    assert images[0].tobytes() != images[1].tobytes()


def test_a_confusion_matrix_is_reproducible_and_shows_its_counts(tmp_path):
    images = []
    for name, corner in (("first", 5), ("second", 5), ("other", 6)):
        matrix = np.array([[1000, 3], [corner, 2000]])
        plot_confusion(matrix, ["a", "b"], tmp_path / f"{name}.png", title="matrix")
        images.append((tmp_path / f"{name}.png").read_bytes())
    assert images[0] == images[1] != images[2]


def test_no_label_is_cut_off(tmp_path):
    plot_confusion(np.eye(3, dtype=int), [LONG, "b", "c"], tmp_path / "x.png", title="t " + LONG)
    plot_history(history(3), tmp_path / "y.png", title=LONG)
    for name in ("x.png", "y.png"):
        pixels = np.asarray(read_png(tmp_path / name))
        for edge in (pixels[:5], pixels[-5:], pixels[:, :5], pixels[:, -5:]):
            assert edge.min() == 255


def test_unusual_names_and_empty_classes_are_drawn(tmp_path):
    matrix = np.diag([5, 0, 100_000, 1])
    plot_confusion(matrix, ODD_NAMES, tmp_path / "matrix.png", title="$x_$ " + LONG)
    assert is_drawn(read_png(tmp_path / "matrix.png"))


def test_a_mismatched_matrix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"matrix \(2, 3\) does not match 2 classes"):
        plot_confusion(np.zeros((2, 3), np.int64), ["a", "b"], tmp_path / "x.png", title="")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def frame(images) -> pd.DataFrame:
    paths = sorted(images.rglob("*.png"))
    return pd.DataFrame({"path": map(str, paths), "class": [path.parent.name for path in paths]})


def test_a_contact_sheet_has_a_row_per_class_in_order(tmp_path, frame):
    path = tmp_path / "sheet.png"
    contact_sheet(frame, ["red", "green", "blue"], path, per_class=4)
    sheet = np.asarray(read_png(path)).astype(int)
    for channel in range(3):
        others = [other for other in range(3) if other != channel]
        mask = sheet[:, :, channel] - sheet[:, :, others].max(axis=2) > 100
        rows = np.flatnonzero(mask.any(axis=1))
        third = sheet.shape[0] / 3
        assert channel * third <= rows.min() < rows.max() < (channel + 1) * third + 10
        assert 0.9 * 4 * 128**2 <= mask.sum() <= 4 * 128**2


def test_a_contact_sheet_spreads_its_images_over_a_class(tmp_path, frame, monkeypatch):
    import tltools.plots as plots

    seen = []
    original = plots.load_image
    monkeypatch.setattr(
        plots,
        "load_image",
        lambda path, rules: seen.append(Path(path).name) or original(path, rules),
    )
    red = frame[frame["class"] == "red"]
    contact_sheet(red, ["red"], tmp_path / "sheet.png", per_class=4)
    assert seen == ["0.png", "3.png", "6.png", "9.png"]


def test_a_contact_sheet_of_few_images_empty_classes_and_unusual_names(tmp_path, frame):
    few = frame.iloc[:2].assign(**{"class": ODD_NAMES[:2]})
    contact_sheet(few, ODD_NAMES, tmp_path / "sheet.png")
    assert read_png(tmp_path / "sheet.png").height > 4 * 128


def test_a_contact_sheet_of_many_classes_has_a_limited_size(tmp_path):
    empty = pd.DataFrame({"path": [], "class": []}, dtype=str)
    contact_sheet(empty, [f"class {index}" for index in range(1000)], tmp_path / "sheet.png")
    assert read_png(tmp_path / "sheet.png").height < 10_000


def test_a_missing_image_leaves_no_contact_sheet(tmp_path, frame):
    Path(frame["path"][0]).unlink()
    with pytest.raises(DataError, match="cannot read image"):
        contact_sheet(frame, ["red", "green", "blue"], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_plots_have_no_global_state(tmp_path):
    """In a process of its own: captum, which other tests import, loads pyplot."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from pathlib import Path\n"
            "from test_plots import history, plot_history\n"
            "plot_history(history(2), Path(sys.argv[1]), title='run')\n"
            "sys.exit('matplotlib.pyplot' in sys.modules)\n",
            tmp_path / "plot.png",
        ],
        cwd=Path(__file__).parent,
        check=True,
    )
    assert is_drawn(read_png(tmp_path / "plot.png"))


def test_a_heat_map_lets_the_image_through(tmp_path):
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:32] = 120
    heat = np.zeros((64, 64), np.float32)
    heat[:, 32:] = 1  # all evidence is on the right
    path = tmp_path / "heat.png"
    plot_heat(image, heat, path, title="a", image_title="b", heat_title="c")
    with Image.open(path) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    left, right = int(0.5 * width), int(0.85 * width)  # within the map, which is the right half
    upper, lower = int(0.3 * height), int(0.8 * height)
    assert (pixels[upper, left] == 120).all()  # without evidence, the image is unchanged
    assert (pixels[lower, left] == 255).all()
    difference = pixels[lower, right] - pixels[upper, right]
    assert (difference > 25).all()  # and under the largest evidence it can still be seen
    assert np.ptp(pixels[upper, right]) > 60  # which is colored
