"""Heat maps: the right regions, the library's values, and safe output paths."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam
from conftest import Recorder, run_tltools
from PIL import Image

from tltools.backbones.cnn import CNN
from tltools.backbones.vgg16 import VGG16
from tltools.card import Preprocessing
from tltools.errors import ConfigError, DataError
from tltools.explain import (
    MAX_OF_FOLDER,
    evidence,
    explain_images,
    heat_maps,
    images_of,
    output_paths,
)
from tltools.training.models import build_classifier

SIZE = 32
SMALL = Preprocessing(size=SIZE)
HALF = SIZE // 2
CORNERS = {
    "top left": (slice(0, HALF), slice(0, HALF)),
    "bottom right": (slice(HALF, SIZE), slice(HALF, SIZE)),
}


def noise(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)


def share_within(heat, corner):
    rows, columns = CORNERS[corner]
    return (heat[:, rows, columns].sum(dim=(1, 2)) / heat.sum(dim=(1, 2))).min().item()


@pytest.fixture(scope="module")
def vgg16():
    """VGG16 with the pooled head and random weights."""
    from torchvision.models import vgg16

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = vgg16(weights=None).features.state_dict()
        state = {f"features.{name}": tensor for name, tensor in state.items()}
        return build_classifier(VGG16, 3, SMALL, head="pooled", state=state).eval()


@pytest.fixture(scope="module")
def cnn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_classifier(CNN, 3, SMALL).eval()


def maps_of(model):
    """The layer that the model's backbone names for heat maps."""
    backbone = VGG16 if hasattr(model.backbone, "features") else CNN
    return model.backbone.get_submodule(backbone.last_maps)


def one_corner(images, corner):
    """Black images with these pixels in one corner."""
    rows, columns = CORNERS[corner]
    alone = torch.zeros_like(images)
    alone[:, rows, columns] = images[:, rows, columns]
    return alone


# ------------------------------------------------------------------------------- where it lies


@pytest.mark.parametrize("corner", CORNERS)
def test_a_cnn_that_learned_from_one_corner_looks_there(corner):
    rows, columns = CORNERS[corner]
    images = noise(64) // 2  # dark noise everywhere
    targets = torch.arange(64) % 2
    images[targets == 1, rows, columns] += 127  # bright in the corner that decides
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier(CNN, 2, SMALL)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-2)
        for _ in range(60):
            loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    assert (model(images).argmax(dim=1) == targets).all()
    heat = heat_maps(model, maps_of(model), images[targets == 1], targets[targets == 1])
    assert share_within(heat, corner) > 0.6  # a quarter of the area


def test_a_cnn_whose_head_reads_one_corner_is_explained_by_it_alone(cnn):
    """Grad-CAM, which averages gradients first, points elsewhere; so it is not used."""
    model = build_classifier(CNN, 3, SMALL).eval()
    model.load_state_dict(cnn.state_dict())
    weight = model.head.weight.data.view(3, 8, SIZE // 4, SIZE // 4)
    mask = torch.zeros_like(weight)
    mask[:, :, : HALF // 4, : HALF // 4] = 1
    weight *= mask
    images, targets = noise(4), torch.tensor([0, 1, 2, 0])
    found = evidence(model, maps_of(model), images, targets)
    assert found[:, : HALF // 4, : HALF // 4].abs().sum() > 0
    found[:, : HALF // 4, : HALF // 4] = 0
    assert not found.any()
    heat = heat_maps(model, maps_of(model), images, targets)
    assert share_within(heat, "top left") > 0.85  # less what blurs
    grad_cam = LayerGradCam(model, model.backbone[7]).attribute(images, targets)
    enlarged = LayerAttribution.interpolate(grad_cam.abs(), (SIZE, SIZE), "nearest")[:, 0]
    assert share_within(enlarged, "top left") < 0.5


@pytest.mark.parametrize("corner", CORNERS)
def test_a_frozen_vgg16_looks_at_what_is_bright(vgg16, corner):
    model = build_classifier(VGG16, 2, Preprocessing(size=224), head="pooled")
    state = {f"backbone.{name}": tensor for name, tensor in vgg16.backbone.state_dict().items()}
    head = {"head.weight": torch.ones(2, 512), "head.bias": torch.zeros(2)}
    model.load_state_dict(state | head, assign=True)
    images = one_corner(noise(1), corner).repeat_interleave(7, 1).repeat_interleave(7, 2)
    values = evidence(model.eval(), maps_of(model), images, torch.zeros(1, dtype=torch.int64))[0]
    assert values.shape == (7, 7)
    cells = {name: 0 if name == "top left" else 6 for name in CORNERS}
    row = cells[corner]
    others = [values[6 - row, 6 - row], values[row, 6 - row], values[6 - row, row]]
    assert values[row, row] > 2 * max(others)


# ------------------------------------------------------------------------- what the library says


@pytest.mark.parametrize("name", ["cnn", "vgg16"])
def test_the_map_and_the_bias_add_up_to_the_logit(name, request):
    model = request.getfixturevalue(name)
    images, targets = noise(3), torch.tensor([2, 0, 1])
    with torch.no_grad():
        logits = model(images).gather(1, targets[:, None])[:, 0]
    places = evidence(model, maps_of(model), images, targets)
    total = places.sum(dim=(1, 2)) + model.head.bias.detach()[targets]
    torch.testing.assert_close(total, logits, atol=1e-5, rtol=1e-4)


def test_the_pooled_vgg16s_map_equals_a_hand_computed_grad_cam(vgg16):
    images, targets = noise(4), torch.tensor([0, 1, 2, 2])
    by_hand = LayerGradCam(vgg16, vgg16.backbone.features).attribute(
        images, targets, relu_attributions=True
    )
    by_hand = LayerAttribution.interpolate(by_hand, (SIZE, SIZE), "bilinear")[:, 0]
    by_hand /= by_hand.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    assert by_hand.any()
    torch.testing.assert_close(heat_maps(vgg16, maps_of(vgg16), images, targets), by_hand.detach())


@pytest.fixture(scope="module")
def last_layer():
    """VGG16 with the article's head and random weights."""
    model = build_classifier(VGG16, 3, SMALL, head="last-layer")
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(tensor.shape).uniform_(-1, 1, generator=generator)
        * (6 / max(1, tensor[0].numel())) ** 0.5  # He's bound, so that activations stay in range
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


@pytest.mark.parametrize("name", ["cnn", "vgg16", "last_layer"])
def test_a_heat_map_has_finite_values_up_to_one(name, request):
    model = request.getfixturevalue(name)
    heat = heat_maps(model, maps_of(model), noise(5), torch.tensor([0, 1, 2, 0, 1]))
    assert heat.shape == (5, SIZE, SIZE)
    assert heat.dtype == torch.float32
    assert heat.isfinite().all()
    assert heat.min() >= 0
    largest = heat.amax(dim=(1, 2))
    assert (((largest > 0.999) & (largest <= 1)) | (largest == 0)).all()
    assert largest.any()


def test_a_batch_is_explained_like_its_images_alone(cnn):
    images, targets = noise(3), torch.tensor([0, 2, 1])
    together = heat_maps(cnn, maps_of(cnn), images, targets)
    for index in range(3):
        alone = heat_maps(cnn, maps_of(cnn), images[index : index + 1], targets[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=1e-3)


def test_without_supporting_evidence_the_map_is_empty(vgg16):
    model = build_classifier(VGG16, 3, SMALL, head="pooled")
    model.load_state_dict(vgg16.state_dict(), assign=True)
    model.head.weight = torch.nn.Parameter(-torch.ones(3, 512))
    assert not heat_maps(model.eval(), maps_of(model), noise(1), torch.tensor([1])).any()


def test_explaining_leaves_the_model_unchanged(cnn):
    before = {name: tensor.clone() for name, tensor in cnn.state_dict().items()}
    heat_maps(cnn, maps_of(cnn), noise(1), torch.tensor([0]))
    assert all(torch.equal(before[name], tensor) for name, tensor in cnn.state_dict().items())
    assert all(parameter.grad is None for parameter in cnn.parameters())
    assert not any(module._forward_hooks for module in cnn.modules())


# ------------------------------------------------------------------------------- the command


@pytest.fixture
def place(tmp_path, drawn):
    for number, source in enumerate(sorted(drawn.rglob("*.png"))[:3]):
        (tmp_path / f"{number}.png").write_bytes(source.read_bytes())
    return tmp_path


def test_the_command_draws_and_predicts_like_classify(place, cnn_run, cnn_exports):
    names = [f"{number}.png" for number in range(3)]
    ran = run_tltools("explain", cnn_run, *names, "--json", "--device", "cpu", cwd=place)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [one["image"] for one in found] == names
    job = run_tltools(
        "classify", *names, "--model", cnn_exports["onnx"].path, "--device", "cpu",
        "-o", "rows.jsonl", cwd=place,
    )  # fmt: skip
    assert job.code == 0, job.err
    for one, line in zip(found, (place / "rows.jsonl").read_text().splitlines(), strict=True):
        row = json.loads(line)
        assert one["label"] == one["explained"] == row["label"]
        assert one["confidence"] == pytest.approx(row["confidence"], abs=1e-4)
        assert one["output"] == f"explained/{one['image'][0]}.cnn.png"
        with Image.open(place / one["output"]) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        assert pixels[:, : pixels.shape[1] // 2].std() > 1
        assert len(np.unique(pixels[:, pixels.shape[1] // 2 :].reshape(-1, 3), axis=0)) > 50


def test_a_class_can_be_chosen(place, cnn_run):
    ran = run_tltools(
        "explain", cnn_run, "0.png", "--class", "bright", "-o", "one.png", "--json", cwd=place
    )
    assert ran.code == 0, ran.err
    (bright,) = json.loads(ran.out)
    assert (bright["explained"], bright["output"]) == ("bright", "one.png")
    ran = run_tltools("explain", cnn_run, "0.png", "--class", "dark", "--json", cwd=place)
    (dark,) = json.loads(ran.out)
    assert dark["label"] == bright["label"]
    assert dark["probability"] + bright["probability"] == pytest.approx(1)
    assert dark["output"] == "explained/0.cnn.dark.png"
    assert (place / "one.png").read_bytes() != (place / dark["output"]).read_bytes()
    ran = run_tltools("explain", cnn_run, "0.png", "--class", "gray", cwd=place)
    assert ran.code == 2
    assert "'gray'; --class takes one of" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_the_table_lists_label_and_file(place, cnn_run):
    ran = run_tltools("explain", cnn_run, "0.png", cwd=place)
    assert ran.code == 0, ran.err
    assert "explained/0.cnn.png" in ran.out
    assert "dark" in ran.out or "bright" in ran.out


def test_an_export_is_refused_with_the_name_of_its_run(place, cnn_run, cnn_exports):
    export = cnn_exports["onnx"].path
    ran = run_tltools("explain", export, "0.png", cwd=cnn_run.parents[1])
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert ran.err.endswith("name runs/cnn\n")
    ran = run_tltools("explain", export, "0.png", cwd=place)
    assert ran.err.endswith("name the folder of run cnn\n")
    assert not (place / "explained").exists()


BAD = pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n truncated"], ids=["empty", "text", "cut"]
)


@BAD
def test_a_file_that_is_not_an_image_is_a_one_line_error(place, cnn_run, content):
    (place / "bad\n.jpg").write_bytes(content)
    ran = run_tltools("explain", cnn_run, "bad\n.jpg", cwd=place)
    assert (ran.code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.startswith(r"error: cannot read image bad\n.jpg: ")
    assert not (place / "explained").exists()


@BAD
def test_the_others_are_drawn_beside_a_file_that_is_not_an_image(place, cnn_run, content):
    (place / "bad\n.jpg").write_bytes(content)
    ran = run_tltools(
        "explain", cnn_run, "0.png", "bad\n.jpg", "gone.png", "1.png", "-q", cwd=place
    )
    assert ran.code == 1  # they were named, as for classify
    bad, gone = ran.err.splitlines()
    assert bad.startswith(r"warning: cannot read image bad\n.jpg: ")
    assert gone.startswith("warning: cannot read image gone.png: ")
    drawn = sorted(path.name for path in (place / "explained").glob("*.png"))
    assert drawn == ["0.cnn.png", "1.cnn.png"]
    assert all(f"explained/{name}" in ran.out for name in drawn)


def test_a_folder_may_hold_a_file_that_is_not_an_image(place, cnn_run):
    (place / "bad.jpg").write_bytes(b"no image")
    ran = run_tltools("explain", cnn_run, ".", "-q", cwd=place)
    assert ran.code == 0
    assert ran.err.startswith("warning: cannot read image bad.jpg: ")


def test_without_a_readable_image_nothing_is_written(place, cnn_run):
    ran = run_tltools("explain", cnn_run, "gone.png", "neither.png", cwd=place)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 2)
    assert not (place / "explained").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["0.png", "--class", "brigth"], 2, "has no class 'brigth'; did you mean bright?"),
        (["gone.png"], 1, "gone.png does not exist"),
        (["0.png", "--model", "cnn"], 2, "give RUN without it: tltools explain cnn "),
    ],
)
def test_misspelled_names_are_refused_without_torch(place, cnn_run, words, code, message):
    script = (
        "import sys; sys.modules['torch'] = None  # so that an import of it fails\n"
        f"from tltools.cli import main; main({['explain', str(cnn_run), *words]})"
    )
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=60)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (code, 1), ran.stderr
    assert message in ran.stderr


def test_a_folder_means_its_images(place, cnn_run):
    ran = run_tltools("explain", cnn_run, ".", "--json", "-q", cwd=place)
    assert (ran.code, ran.err) == (0, "")
    assert [one["image"] for one in json.loads(ran.out)] == ["0.png", "1.png", "2.png"]
    again = run_tltools("explain", cnn_run, ".", "--json", "-q", cwd=place)  # now with explained/
    assert again.out == ran.out
    (place / "empty").mkdir()
    ran = run_tltools("explain", cnn_run, "empty", cwd=place)
    assert (ran.code, ran.err) == (
        1,
        "error: no images in empty; name images, or a folder of them\n",
    )


def test_a_run_is_not_explained(cnn_run):
    with pytest.raises(DataError, match="is a run, not images; name images, or a folder of them"):
        images_of([cnn_run])


def test_of_a_large_folder_each_subfolder_has_a_part(tmp_path):
    for name, number in (("a", 10), ("b", 40)):
        (tmp_path / name).mkdir()
        for index in range(number):
            (tmp_path / name / f"{index:02}.png").touch()
    recorder = Recorder()
    named = [tmp_path / "a" / "00.png"] * 30
    found = images_of([*named, tmp_path], recorder)
    assert found[:30] == named
    names = [path.relative_to(tmp_path).as_posix() for path in found[30:]]
    assert len(set(names)) == MAX_OF_FOLDER
    assert [name for name in names if name.startswith("a")] == [
        "a/00.png",
        "a/02.png",
        "a/05.png",
        "a/07.png",
    ]
    (told,) = recorder.said
    assert told.startswith(f"Drawing 20 of 50 images in {tmp_path}, ")
    assert images_of([tmp_path / "a"], recorder) == sorted((tmp_path / "a").iterdir())
    assert len(recorder.said) == 1


def test_the_help_says_how_many_images_of_a_folder_are_drawn(tmp_path):
    ran = run_tltools("explain", "--help", cwd=tmp_path)
    words = " ".join(ran.out.replace("│", " ").split())
    assert f"up to {MAX_OF_FOLDER} images of each" in words


def test_a_missing_image_is_refused(place, cnn_run):
    missing = place / "nowhere.jpg"
    with pytest.raises(DataError, match=re.escape(f"cannot read image {missing}: ")):
        list(explain_images(cnn_run, [missing], place / "out"))
    assert not (place / "out").exists()


def test_names_that_are_not_utf8_are_drawn_and_written(place, cnn_run):
    odd = place / "a\udcff\n<b>$x$.png"
    odd.write_bytes((place / "0.png").read_bytes())
    ran = run_tltools("explain", cnn_run, odd, "--json", cwd=place)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)[0]["output"] == "explained/a___b_$x$.cnn.png"
    assert (place / "explained" / "a___b_$x$.cnn.png").is_file()


# ------------------------------------------------------------------------------- where files go


def test_output_names_neither_collide_nor_escape_the_folder(tmp_path, make_card):
    paths = [
        tmp_path / "a.jpg", tmp_path / "b" / "a.png", tmp_path / "A.gif", tmp_path / "a-2.jpg",
        tmp_path / "...jpg", tmp_path / (80 * "구" + ".jpg"), tmp_path / "c:\\d.jpg",
    ]  # fmt: skip
    found = output_paths(paths, tmp_path / "out", card=make_card(), class_name="../../x/y")
    names = [path.name for path in found]
    assert {path.parent for path in found} == {tmp_path / "out"}
    assert len({name.casefold() for name in names}) == len(paths)
    assert all(len(name.encode()) < 255 - 20 for name in names)  # and room for a temporary name
    assert not any(set(name) & set('/\\:*?"<>|') for name in names)
    assert names[0] == "a.tiny._.._x_y.png"


def test_an_unsuitable_output_is_refused(tmp_path, make_card):
    card, photo = make_card(), tmp_path / "photo.png"
    photo.touch()
    for output, words in (
        (tmp_path / "x.jpg", "heat maps are PNG files"),
        (photo, "is one of the images"),
        (tmp_path / "." / "photo.png", "is one of the images"),
    ):
        with pytest.raises(ConfigError, match=words):
            output_paths([photo], output, card=card)
    with pytest.raises(ConfigError, match="one file for 2 images; name a folder"):
        output_paths([photo, photo], tmp_path / "x.png", card=card)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"neither a folder nor a \.png"):
        output_paths([photo], tmp_path / "file", card=card)
    (tmp_path / "photo.tiny.png").touch()
    with pytest.raises(ConfigError, match="is one of the images"):
        output_paths([photo, tmp_path / "photo.tiny.png"], tmp_path, card=card)
    with pytest.raises(ConfigError, match="did not write it as a heat map"):
        output_paths([photo], tmp_path, card=card)
    (tmp_path / "photo.tiny.png").unlink()
    assert output_paths([photo], tmp_path, card=card) == [tmp_path / "photo.tiny.png"]


def test_swapped_arguments_are_refused_with_the_right_command(cnn_run, drawn, tmp_path):
    for images in (drawn, next(drawn.glob("*/*.png"))):
        ran = run_tltools("explain", images, cnn_run, cwd=tmp_path)
        right = f"tltools explain {cnn_run} {images}"
        assert (ran.code, ran.err) == (
            2,
            f"error: the run comes first, then the images: {right}\n",
        )


def test_a_missing_run_is_named_rather_than_the_images(place):
    ran = run_tltools("explain", "0.png", cwd=place)
    assert ran.code == 2
    assert ran.err.startswith(
        "error: missing argument RUN, which comes first: tltools explain RUN 0.png (see "
    )
