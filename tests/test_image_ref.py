"""References to images: files, bytes, archive members, URLs, decoded images."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from tltools.card import Preprocessing
from tltools.data.image_ref import Content, Decoded, ImageRef, RemoteObject
from tltools.data.images import load_image
from tltools.errors import DataError, UnreachableError

RULES = Preprocessing(size=8)


@pytest.fixture
def path(tmp_path):
    """An image of noise, on which two decoders could not agree by chance."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def refs(path):
    """Return the same image as a file, as bytes, on a server and decoded."""
    data = path.read_bytes()
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return [
        ImageRef.of_file(path),
        ImageRef("n", Content(lambda: data)),
        ImageRef("n", Content.of(data)),
        ImageRef("n", RemoteObject(lambda: data)),
        ImageRef("n", Decoded(pixels)),
    ]


def test_every_reference_to_a_file_decodes_to_the_same_pixels(path):
    expected = load_image(path, RULES)
    for image in refs(path):
        np.testing.assert_array_equal(load_image(image, RULES), expected)


def test_every_reference_to_a_file_can_be_sent_to_another_process(path):
    expected = load_image(path, RULES)
    for image in refs(path):
        sent = pickle.loads(pickle.dumps(image))  # noqa: S301 - made here
        assert sent.name == image.name
        np.testing.assert_array_equal(load_image(sent, RULES), expected)


def test_a_reference_that_cannot_be_pickled_is_read_before_it_is_sent():
    read = []

    def fetch():
        read.append(None)
        return b"bytes"

    for place in (Content(fetch), RemoteObject(fetch)):
        sent = pickle.loads(pickle.dumps(ImageRef("n", place)))  # noqa: S301 - made here
        assert isinstance(sent.place, Content)
        assert sent.place.read() == sent.place.read() == b"bytes"
    assert len(read) == 2


def refuse():
    raise OSError("it is encrypted")


@pytest.mark.parametrize(
    "place", [Content(refuse), Content.of(OSError("it is encrypted")), RemoteObject(refuse)]
)
def test_a_read_error_is_the_same_here_and_in_another_process(place):
    for image in (one := ImageRef("a/b.png", place), pickle.loads(pickle.dumps(one))):  # noqa: S301
        with pytest.raises(DataError, match=r"^cannot read image b\.png: it is encrypted$"):
            load_image(image, RULES)


def test_a_decoding_error_is_reported():
    with pytest.raises(DataError, match=r"^no pixels$"):
        load_image(ImageRef("0", Decoded(DataError("no pixels"))), RULES)


def test_an_error_names_its_file(tmp_path):
    image = ImageRef.of_file(tmp_path / "gone.png", name="a line of a list")
    with pytest.raises(DataError, match=r"^cannot read image gone\.png: no such file"):
        load_image(image, RULES)


def test_an_unreachable_server_is_not_an_image_error():
    def fetch():
        raise UnreachableError("cannot reach s3://bucket")

    with pytest.raises(UnreachableError):
        load_image(ImageRef("n", RemoteObject(fetch)), RULES)
    with pytest.raises(UnreachableError):
        pickle.dumps(ImageRef("n", RemoteObject(fetch)))


def test_a_reference_is_immutable(path):
    image = ImageRef.of_file(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.name = "another"
    inner = image.within("archive.tar/")
    assert (inner.name, inner.place) == (f"archive.tar/{image.name}", image.place)
    assert image.within("") is image


def test_results_name_a_file_by_its_path_or_by_a_given_name(tmp_path):
    path = tmp_path / "a.png"
    assert ImageRef.of_file(path) == ImageRef(path.as_posix(), str(path))
    assert ImageRef.of_file(path, name="a") == ImageRef("a", str(path))
