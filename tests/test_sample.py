import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

from tltools.errors import ConfigError, DataError
from tltools.sample import SAMPLE_CLASSES, SAMPLE_CSV, draw_image, draw_sample
from tltools.sample import folder as sample_folder
from tltools.sample.bodies import BODIES
from tltools.sample.designs import Design
from tltools.sample.vehicle import draw_front, draw_side


def rows(folder):
    with (folder / SAMPLE_CSV).open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_sample(tmp_path_factory.mktemp("sample") / "a", num_images=20, size=64)


def test_the_layout_is_the_articles(drawn):
    assert (drawn / SAMPLE_CSV).read_text().splitlines()[0] == "image_names,emergency_or_not"
    assert len(rows(drawn)) == 20
    for row in rows(drawn):
        assert row["emergency_or_not"] in ("0", "1")
        with Image.open(drawn / "images" / row["image_names"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
    assert len(list((drawn / "images").iterdir())) == 20


def test_labels_index_the_class_names():
    assert SAMPLE_CLASSES[1] == "emergency"
    assert len(SAMPLE_CLASSES) == 2


def test_about_45_percent_are_emergency_vehicles(drawn):
    assert sum(int(row["emergency_or_not"]) for row in rows(drawn)) == 9


def test_order_and_names_do_not_reveal_the_class(drawn):
    labels = [row["emergency_or_not"] for row in rows(drawn)]
    assert labels not in (sorted(labels), sorted(labels, reverse=True))
    names = [row["image_names"] for row in rows(drawn)]
    assert names == [f"{number:04d}.jpg" for number in range(20)]


def test_no_two_images_are_the_same(drawn):
    images = [path.read_bytes() for path in (drawn / "images").iterdir()]
    assert len(set(images)) == len(images)


def test_the_same_seed_draws_the_same_bytes(drawn, tmp_path):
    again = draw_sample(tmp_path / "b", num_images=20, size=64)
    assert digests(again) == digests(drawn)


def test_another_seed_draws_other_images_and_labels(drawn, tmp_path):
    other = draw_sample(tmp_path / "b", num_images=20, size=64, seed=14)
    assert rows(other) != rows(drawn)
    common = {name for name, digest in digests(other).items() if digests(drawn)[name] == digest}
    assert common == set()


def test_an_image_depends_only_on_its_own_seed(drawn, tmp_path):
    label = int(rows(drawn)[7]["emergency_or_not"])
    alone = draw_image(np.random.default_rng((13, 7)), emergency=bool(label), size=64)
    alone.save(tmp_path / "alone.jpg", quality=sample_folder.JPEG_QUALITY)
    assert (tmp_path / "alone.jpg").read_bytes() == (drawn / "images/0007.jpg").read_bytes()


def test_the_smallest_sample_has_two_images_per_class(tmp_path):
    labels = [
        row["emergency_or_not"] for row in rows(draw_sample(tmp_path / "a", num_images=4, size=32))
    ]
    assert sorted(labels) == ["0", "0", "1", "1"]


@pytest.mark.parametrize("emergency", [False, True])
def test_every_seed_can_be_drawn(emergency):
    for seed in range(150):
        image = draw_image(np.random.default_rng(seed), emergency=emergency, size=32)
        assert (image.mode, image.size) == ("RGB", (32, 32))


@pytest.mark.parametrize("emergency", [False, True])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("view", ["side", "front"])
def test_every_vehicle_can_be_drawn_with_every_pattern(name, view, emergency):
    rng = np.random.default_rng(0)
    for pattern in ("plain", "stripe", "checkers", "doors", "wedge", "band"):
        if pattern == "doors" and not BODIES[name].doors:
            continue
        design = Design(
            body=name,
            color=(200, 200, 200),
            pattern=pattern,
            text="TEXT",
            emblem="star" if emergency else "disc",
            lights=((0, 0, 255), (255, 0, 0)) if emergency else (),
            roof_item="ladder" if emergency else "taxi",
            lockers=name == "engine",
        )
        if view == "side":
            layer, lamps = draw_side(rng, design, 200, mirrored=False)
        else:
            layer, lamps = draw_front(rng, design, 200, rear=False)
        assert layer.getbbox() is not None
        assert bool(lamps) <= emergency
        for x, y, _, _ in lamps:
            assert 0 <= x <= layer.width
            assert 0 <= y <= layer.height


def test_lettering_is_readable_after_mirroring():
    design = Design(body="van", color=(255, 255, 255), text="POLICE")
    plain, _ = draw_side(np.random.default_rng(0), design, 400, mirrored=False)
    mirrored, _ = draw_side(np.random.default_rng(0), design, 400, mirrored=True)
    mirrored = mirrored.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, bottom, right, top = (0.1, 0.3, 0.6, 0.42)  # the letters' part of the flank
    height = plain.height
    there = plain.crop(
        (int(left * 400), int(height - top * 400), int(right * 400), int(height - bottom * 400))
    )
    back = mirrored.crop(
        (
            int((1 - right) * 400),
            int(height - top * 400),
            int((1 - left) * 400),
            int(height - bottom * 400),
        )
    )
    word, same_word = (np.asarray(part.convert("L")) < 80 for part in (there, back))

    def trimmed(mask):
        ys, xs = np.nonzero(mask)
        return mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]

    assert trimmed(word).shape == trimmed(same_word).shape
    assert (trimmed(word) == trimmed(same_word)).mean() > 0.95
    assert (trimmed(word) == trimmed(same_word)[:, ::-1]).mean() < 0.8


# Folders


def test_an_existing_sample_is_left_unchanged(drawn):
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert draw_sample(drawn, num_images=20, size=64) == drawn
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


@pytest.mark.parametrize(
    "other", [{"num_images": 21}, {"seed": 14}, {"size": 96}], ids=["count", "seed", "size"]
)
def test_another_sample_in_the_folder_is_refused(drawn, other):
    before = digests(drawn)
    arguments = {"num_images": 20, "size": 64} | other
    with pytest.raises(
        ConfigError, match=r"is another sample \(20 images, seed 13\): choose another"
    ):
        draw_sample(drawn, **arguments)
    assert digests(drawn) == before


def test_a_sample_with_a_missing_image_is_refused(tmp_path):
    folder = draw_sample(tmp_path / "a", num_images=4, size=32)
    (folder / "images/0002.jpg").unlink()
    with pytest.raises(ConfigError, match="lacks files of this sample"):
        draw_sample(folder, num_images=4, size=32)


@pytest.mark.parametrize("name", ["notes.txt", "sample.json"])
def test_a_folder_with_other_content_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="is not a sample of tltools"):
        draw_sample(tmp_path, num_images=4, size=32)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_existing_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ConfigError, match="is not a sample of tltools"):
        draw_sample(tmp_path / "a", num_images=4, size=32)


def test_an_empty_folder_is_filled(tmp_path):
    assert draw_sample(tmp_path, num_images=4, size=32) == tmp_path
    assert len(rows(tmp_path)) == 4


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    original = sample_folder.draw_image
    drawn = []

    def fail_later(*arguments, **options):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(sample_folder, "draw_image", fail_later)
    with pytest.raises(DataError, match=r"cannot write the sample to .*: no space left on device"):
        draw_sample(tmp_path / "a", num_images=8, size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 3}, "must be at least 4, got 3"),
        ({"size": 31}, "at least 32 pixels a side, got 31"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        draw_sample(tmp_path / "a", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_image(tmp_path):
    amounts = []

    class Bar:
        def advance(self, amount=1, note=""):
            amounts.append(amount)

        def __enter__(self):
            return self

        def __exit__(self, *details):
            return None

    class Recorder:
        def bar(self, description, total, unit="images"):
            amounts.append(-total)
            return Bar()

        say = warn = print

    draw_sample(tmp_path / "a", num_images=6, size=32, progress=Recorder())
    assert amounts == [-6, 1, 1, 1, 1, 1, 1]
