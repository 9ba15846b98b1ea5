"""Near-duplicates: real copies are found, and images that only look alike at a glance are not."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tltools.artifacts import read_artifact
from tltools.card import Preprocessing
from tltools.data import near
from tltools.data.dataset import load_dataset
from tltools.data.images import load_image
from tltools.data.near import SIDE, find_near_duplicates, thumbnail
from tltools.report.blocks import Gallery, Section
from tltools.report.models import training_section
from tltools.report.page import write_page
from tltools.run_folder import read_split, write_split
from tltools.sample import draw_sample

CHECK = Preprocessing(size=32)


def scene(number: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """Return a smooth random image, as different from the others as photographs are."""
    noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Cut a share off the width and the height, at one corner."""
    width, height = image.size
    return image.crop((round(share * width), 0, width, round((1 - share) * height)))


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "resized": (lambda image: image.resize((121, 93)), 95),
    "recompressed": (lambda image: image, 30),
    "mirrored": (mirrored, 95),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.3), 95),
    "gray": (lambda image: image.convert("L"), 95),
    "cropped by 5%": (lambda image: cropped(image, 0.05), 95),
    "cropped by 10%": (lambda image: cropped(image, 0.1), 95),
    "all together": (
        lambda image: mirrored(cropped(image, 0.05)).resize((140, 99), Image.Resampling.BICUBIC),
        50,
    ),
}


def saved(image: Image.Image, path: Path, quality: int = 95) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
    return path


def thumbnails(*images: Image.Image, quality: int = 95) -> np.ndarray:
    found = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        pixels = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB").resize((32, 32)))
        found.append(thumbnail(pixels))
    return np.array(found).reshape(-1, SIDE, SIDE)


def pairs(*images: Image.Image) -> list[tuple[int, int]]:
    return [(one, other) for one, other in find_near_duplicates(thumbnails(*images)).pairs.tolist()]


# -------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_among_other_images(kind, tmp_path):
    change, quality = COPIES[kind]
    paths = [saved(scene(number), tmp_path / f"{number}.jpg") for number in range(40)]
    paths.append(saved(change(scene(7)), tmp_path / "copy.jpg", quality))
    images = np.array([thumbnail(load_image(path, CHECK)) for path in paths])
    found = find_near_duplicates(images)
    assert found.pairs.tolist() == [[7, 40]]
    assert found.distances[0] <= near.THRESHOLD
    assert found.leaders.tolist() == [*range(40), 7]


def test_different_images_are_no_near_duplicates():
    assert pairs(*map(scene, range(60))) == []


def test_flat_images_are_no_near_duplicates_of_one_another():
    flat = [Image.new("RGB", (64, 64), (level, level, 90)) for level in range(0, 250, 25)]
    noisy = [one.filter(ImageFilter.GaussianBlur(2)) for one in flat]
    assert pairs(*flat, *noisy) == []


def test_images_that_share_only_a_horizon_or_a_frame_are_none():
    def framed(number: int) -> Image.Image:
        image = Image.new("RGB", (240, 180))
        image.paste(scene(number, (200, 140)), (20, 20))
        return image

    def outdoors(number: int) -> Image.Image:
        light = np.where(np.arange(180) < 90, 120, -60)[:, None, None]
        pixels = np.asarray(scene(number), dtype=np.int64) // 3 + 80 + light // 2
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    assert pairs(*map(framed, range(20))) == []
    assert pairs(*map(outdoors, range(20))) == []


def test_the_drawn_sample_has_none(tmp_path):
    # The images of `make demo`, smaller: many are alike but for a horizon and a vehicle's type.
    dataset = load_dataset(draw_sample(tmp_path / "sample", size=112), purpose="inspect")
    assert len(dataset.frame) == 300
    assert [one.kind for one in dataset.findings if "near" in one.kind] == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_can_be_compared(count):
    found = find_near_duplicates(thumbnails(*[scene(number) for number in range(count)]))
    assert len(found.pairs) == 0
    assert found.leaders.tolist() == list(range(count))


def test_large_sets_are_divided_and_give_the_same_pairs(monkeypatch):
    images = [scene(number) for number in range(300)]
    copies = [mirrored(image).resize((100, 80)) for image in images[::10]]
    whole = find_near_duplicates(thumbnails(*images, *copies))
    monkeypatch.setattr(near, "_CELL", 100)
    monkeypatch.setattr(near, "_CELL_OF_LARGE", 40)
    divided = find_near_duplicates(thumbnails(*images, *copies))
    assert len(whole.pairs) == 30
    assert divided.pairs.tolist() == whole.pairs.tolist()
    np.testing.assert_array_equal(divided.leaders, whole.leaders)


# ----------------------------------------------------------------------------------------- groups


def test_many_copies_of_an_image_are_one_group():
    copies = [scene(0).resize((120 + 2 * step, 100 + step)) for step in range(60)]
    found = find_near_duplicates(thumbnails(*copies, scene(1)))
    assert len(set(found.leaders[:60])) == 1
    assert found.leaders[60] == 60


def test_a_chain_of_similar_images_does_not_join_its_ends():
    panorama = scene(0, (1200, 180))
    steps = [panorama.crop((9 * step, 0, 9 * step + 240, 180)) for step in range(60)]
    images = thumbnails(*steps)
    found = find_near_duplicates(images)
    linked = {frozenset(pair) for pair in found.pairs.tolist()}
    assert all(frozenset((step, step + 1)) in linked for step in range(59))
    for leader in set(found.leaders):
        places = np.flatnonzero(found.leaders == leader)
        assert len(places) > 1
        assert np.ptp(places) <= 12  # 9 of 240 pixels a step; unlike images are 240 apart
    assert len(set(found.leaders)) >= 5


# --------------------------------------------------------------------------------- labeled images


@pytest.fixture
def labeled(tmp_path) -> Path:
    """Two classes of 20 images; each of the first 8 of a class has a smaller copy."""
    for number in range(40):
        name = "cat" if number < 20 else "dog"
        saved(scene(number), tmp_path / "data" / name / f"{number}.jpg")
        if number % 20 < 8:
            small = scene(number).resize((100, 80))
            saved(small, tmp_path / "data" / name / f"{number}-small.jpg")
    return tmp_path / "data"


def finding(dataset, kind):
    return next((one for one in dataset.findings if one.kind == kind), None)


def sides_of_groups(frame) -> list[int]:
    return [len(set(part["split"])) for _, part in frame.groupby("group")]


@pytest.mark.parametrize("seed", range(5))
def test_the_default_split_keeps_near_duplicates_together(labeled, seed):
    dataset = load_dataset(labeled, seed=seed, val_fraction=0.3)
    assert len(set(dataset.frame["group"])) == 40
    assert set(sides_of_groups(dataset.frame)) == {1}
    found = finding(dataset, "near-duplicates")
    assert found.severity == "note"
    assert found.message.startswith("16 groups of near-duplicates")
    assert found.message.endswith("each group stays on one side of the split")
    assert len(found.paths) == 32
    assert finding(dataset, "near-duplicates-across-splits") is None


def test_the_split_does_not_depend_on_names(labeled, tmp_path):
    first = load_dataset(labeled, val_fraction=0.3).frame
    for number, path in enumerate(sorted(labeled.rglob("*.jpg"), reverse=True)):
        saved_path = tmp_path / "renamed" / path.parent.name / f"{number}.jpg"
        saved_path.parent.mkdir(parents=True, exist_ok=True)
        saved_path.write_bytes(path.read_bytes())
    again = load_dataset(tmp_path / "renamed", val_fraction=0.3).frame
    columns = ["sha256", "split", "group"]
    assert set(map(tuple, first[columns].to_numpy())) == set(map(tuple, again[columns].to_numpy()))


def test_a_given_split_is_kept_and_its_near_duplicates_are_reported(tmp_path):
    for number in range(12):
        name = ("cat", "dog")[number % 2]
        saved(scene(number), tmp_path / "train" / name / f"{number}.jpg")
        other = mirrored(scene(number)) if number < 3 else scene(number + 100)
        saved(other, tmp_path / "val" / name / f"{number}.jpg")
    found = finding(load_dataset(tmp_path), "near-duplicates-across-splits")
    assert found.severity == "warning"
    assert found.message.startswith("3 of the 12 val images have a near-duplicate in train")
    assert len(found.paths) == 3


def test_near_duplicates_with_different_labels_are_listed_and_kept(labeled):
    saved(scene(15).resize((100, 80)), labeled / "dog" / "other.jpg")
    dataset = load_dataset(labeled)
    found = finding(dataset, "near-contradiction")
    assert found.severity == "warning"
    assert "1 pair of near-duplicates has different labels" in found.message
    assert "15.jpg (cat)" in found.message
    assert "other.jpg (dog)" in found.message
    assert len(dataset.frame) == 57
    assert set(sides_of_groups(dataset.frame)) == {1}


def test_an_evaluation_compares_no_images(labeled):
    dataset = load_dataset(labeled, purpose="evaluate")
    assert "group" not in dataset.frame
    assert finding(dataset, "near-duplicates") is None


def test_folds_keep_near_duplicates_together(labeled):
    from tltools.training.folds import _folds

    dataset = load_dataset(labeled)
    seen = 0
    for held in _folds(dataset, dataset.frame, 4, seed=13):
        assert set(sides_of_groups(held.dataset.frame)) == {1}
        seen += len(held.rows)
    assert seen == len(dataset.frame) == 56


def test_the_groups_are_written_with_the_split(labeled, tmp_path):
    frame = load_dataset(labeled).frame
    write_split(tmp_path, frame)
    assert list(read_split(tmp_path)["group"]) == list(frame["group"])


# ----------------------------------------------------------------------------------------- report


def near_gallery(run: Path) -> Gallery | None:
    galleries = [
        block
        for part in training_section([read_artifact(run)]).blocks
        if isinstance(part, Section)
        for block in part.blocks
        if isinstance(block, Gallery) and block.title == "Near-duplicates"
    ]
    return galleries[0] if galleries else None


def test_the_report_shows_near_duplicates_side_by_side(cnn_run, tmp_path):
    run = tmp_path / "runs" / "cnn"
    shutil.copytree(cnn_run, run)
    assert near_gallery(run) is None
    frame = read_split(run)
    dark = frame[frame["class"] == "dark"]
    train, val = (list(dark.index[dark["split"] == split]) for split in ("train", "val"))
    for rows in (train[:2], [train[2], val[0]]):
        frame.loc[rows, "group"] = frame["sha256"][rows[0]]
    write_split(run, frame)
    gallery = near_gallery(run)
    assert gallery is not None
    assert [tile.group for tile in gallery.tiles[:4]] == ["group 1"] * 2 + ["group 2"] * 2
    assert {tile.split for tile in gallery.tiles[:2]} == {"train", "val"}  # the worst first
    assert gallery.note.startswith("2 of 2 groups")
    write_page(tmp_path / "report.html", [training_section([read_artifact(run)])])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("group 1</span>") == 2


def test_the_split_of_an_earlier_version_has_no_groups_to_show(cnn_run, tmp_path):
    run = tmp_path / "runs" / "cnn"
    shutil.copytree(cnn_run, run)
    write_split(run, read_split(run).drop(columns="group"))
    assert near_gallery(run) is None
