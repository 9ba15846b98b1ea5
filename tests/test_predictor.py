import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from conftest import CLASSES, SIZE, color_logits

from tltools.card import Preprocessing
from tltools.errors import ArtifactError, DeviceError
from tltools.runtime import load_predictor, read_card
from tltools.runtime.device import CPU_PROVIDER
from tltools.runtime.model_formats.onnx import OnnxPredictor


@pytest.fixture(params=["onnx", "pt2", "torchscript"])
def export_path(request):
    return request.getfixturevalue(f"{request.param}_path")


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def test_logits_are_those_computed_by_hand(export_path, images):
    logits = load_predictor(export_path, device="cpu")(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, color_logits(images), atol=1e-4)


def test_a_predictor_describes_itself_and_its_device(export_path, card):
    predictor = load_predictor(export_path, device="cpu", threads=1)
    assert predictor.card == card
    assert predictor.device == predictor.choice.device == "cpu"
    assert predictor.provider == (CPU_PROVIDER if export_path.suffix == ".onnx" else "torch")
    assert predictor.threads == 1


def test_batch_of_one_agrees_with_a_batch_of_many(export_path, images):
    predictor = load_predictor(export_path, device="cpu")
    singles = np.concatenate([predictor(images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(singles, predictor(images), atol=1e-5)


def test_views_are_accepted(export_path, images):
    predictor = load_predictor(export_path, device="cpu")
    mirrored = images[:, :, ::-1]
    np.testing.assert_allclose(predictor(mirrored), color_logits(mirrored), atol=1e-4)


def test_read_only_arrays_are_accepted_without_a_warning(export_path, images):
    import torch

    predictor = load_predictor(export_path, device="cpu")
    images.flags.writeable = False
    torch.set_warn_always(True)  # else torch warns once in a process, and maybe has
    try:
        np.testing.assert_allclose(predictor(images), color_logits(images), atol=1e-4)
    finally:
        torch.set_warn_always(False)


def test_threads_may_share_one_predictor(export_path, images):
    predictor = load_predictor(export_path, device="cpu", threads=1)
    results = {}

    def work(number):
        results[number] = [predictor(images[number : number + 1]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = color_logits(images)
    for number in range(4):
        for logits in results[number]:
            np.testing.assert_allclose(logits[0], expected[number], atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, SIZE, SIZE, 3), np.float32),
        ((SIZE, SIZE, 3), np.uint8),
        ((1, 3, SIZE, SIZE), np.uint8),
        ((1, SIZE, SIZE + 1, 3), np.uint8),
        ((0, SIZE, SIZE, 3), np.uint8),
    ],
)
def test_other_types_and_shapes_are_refused(export_path, shape, dtype):
    predictor = load_predictor(export_path, device="cpu")
    with pytest.raises(ValueError, match="images must"):
        predictor(np.zeros(shape, dtype=dtype))


def test_the_card_is_read_without_loading_the_model(export_path, card):
    assert read_card(export_path) == card


def test_the_card_is_read_without_torch_and_onnx(onnx_path, pt2_path, torchscript_path):
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from pathlib import Path; from tltools.runtime import read_card\n"
        f"for path in {[str(onnx_path), str(pt2_path), str(torchscript_path)]!r}:\n"
        "    read_card(Path(path))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_card_reader_agrees_with_the_onnx_package(onnx_path, card):
    import onnx

    entries = {entry.key: entry.value for entry in onnx.load(onnx_path).metadata_props}
    assert entries["tltools.card"] == card.to_json()
    assert read_card(onnx_path).to_json() == entries["tltools.card"]


def test_the_card_may_precede_the_graph(tmp_path, onnx_path, card):
    # protobuf allows fields in any order; two messages in a row merge into one.
    import onnx

    model = onnx.load(onnx_path)
    front = onnx.ModelProto()
    front.metadata_props.extend(model.metadata_props)
    model.ClearField("metadata_props")
    path = tmp_path / "front.onnx"
    path.write_bytes(front.SerializeToString() + model.SerializeToString())
    assert read_card(path) == card


@pytest.mark.parametrize("opener", [read_card, load_predictor])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt"])
@pytest.mark.parametrize("content", [b"", b"hello world, this is no model", b"\x00" * 100])
def test_files_that_are_not_exports_are_refused(tmp_path, opener, suffix, content):
    path = tmp_path / f"wrong{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"wrong\{suffix}.*tltools export"):
        opener(path)


@pytest.mark.parametrize("opener", [read_card, load_predictor])
def test_truncated_exports_are_refused(tmp_path, export_path, opener):
    path = tmp_path / export_path.name
    path.write_bytes(export_path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="tltools export"):
        opener(path)


@pytest.mark.parametrize("opener", [read_card, load_predictor])
def test_missing_files_folders_and_other_suffixes_are_refused(tmp_path, opener):
    for name in ("none.onnx", "none.txt", "none"):
        with pytest.raises(ArtifactError, match=rf"{name} does not exist"):
            opener(tmp_path / name)
    other = tmp_path / "other.txt"
    other.touch()
    with pytest.raises(
        ArtifactError, match=r"ends in '\.txt', exports end in \.onnx, \.pt2 or \.pt"
    ):
        opener(other)
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    with pytest.raises(ArtifactError, match="is a folder"):
        opener(folder)


@pytest.mark.parametrize("opener", [read_card, load_predictor])
def test_models_without_a_card_are_refused(tmp_path, make_onnx, torchscript_path, opener):
    with pytest.raises(ArtifactError, match="has no tltools card"):
        opener(make_onnx(tmp_path / "bare.onnx", None))
    bare = tmp_path / "bare.pt"
    with zipfile.ZipFile(torchscript_path) as source, zipfile.ZipFile(bare, "w") as target:
        for name in source.namelist():
            if "/extra/" not in name:
                target.writestr(name, source.read(name))
    with pytest.raises(ArtifactError, match="has no tltools card"):
        opener(bare)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "input"}, r"its input is uint8 input\[.*should be uint8 images\["),
        ({"dtype": "float"}, r"its input is float images\[.*should be uint8 images\["),
        ({"size": 16}, r"its input is .*\[\?, 16, 16, 3\].*should be .*\[\?, 32, 32, 3\]"),
        ({"num_classes": 2}, r"its output is .*\[\?, 2\].*should be .*\[\?, 3\]"),
        ({"batch": "1"}, r"its input has a fixed batch size of 1"),
    ],
)
def test_onnx_that_contradicts_its_card_is_refused(tmp_path, make_onnx, card, wrong, message):
    path = make_onnx(tmp_path / "wrong.onnx", card.to_json(), **wrong)
    for opener in (load_predictor, read_card):
        with pytest.raises(ArtifactError, match=message):
            opener(path)


def test_torchscript_that_contradicts_its_card_is_refused(tmp_path, torchscript_path, make_card):
    path = tmp_path / "wrong.pt"
    other = make_card(classes=("a", "b")).to_json()
    with zipfile.ZipFile(torchscript_path) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, other if "/extra/" in name else source.read(name))
    predictor = load_predictor(path, device="cpu")
    with pytest.raises(ArtifactError, match=r"gives float32 \(1, 3\).*should be float32 \(1, 2\)"):
        predictor(np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8))


def test_a_failing_model_is_a_device_error_that_names_the_batch(onnx_path, images):
    predictor = OnnxPredictor(onnx_path, device="cpu")

    class Failing:
        def run(self, *_args):
            raise RuntimeError("out of memory\nat line 1")

    predictor._session = Failing()
    with pytest.raises(DeviceError, match="batch of 5: out of memory; free memory"):
        predictor(images)


def test_classes_come_in_the_cards_order(export_path):
    assert load_predictor(export_path, device="cpu").card.classes == CLASSES


def test_the_image_size_comes_from_the_card(tmp_path, make_onnx, make_card):
    card = make_card(preprocessing=Preprocessing(size=16))
    predictor = load_predictor(make_onnx(tmp_path / "small.onnx", card.to_json(), size=16))
    assert predictor(np.zeros((2, 16, 16, 3), dtype=np.uint8)).shape == (2, 3)


def test_the_torchscript_warning_is_hidden(torchscript_path):
    script = (
        "from pathlib import Path; from tltools.runtime import load_predictor\n"
        f"load_predictor(Path({str(torchscript_path)!r}), device='cpu')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
