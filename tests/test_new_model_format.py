"""Adding a model format takes one object, defined in this test; the commands then know it."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import replace_writer, run_tltools

from tltools.artifacts import open_predictor
from tltools.bench import BenchSettings, bench_inputs, run_bench
from tltools.card import Card, card_from_json
from tltools.distance import Distance
from tltools.runtime import open_model, read_card
from tltools.runtime.device import torch_device
from tltools.runtime.model_formats import FORMATS, ModelFormat, Written

# ------------------------------------------------------------------------------- a model format
#
# TorchScript's bytes and the card in a NumPy archive, with its facts, its reader and its writer.


class NpzPredictor:
    """An opened archive: the network, and softmax by NumPy."""

    provider = "torch"
    gives_distances = False
    layout = "nchw"
    tf32 = False

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        import torch

        with np.load(path) as archive:
            self.card = card_from_json(archive["card"].tobytes(), where=str(path))
            self._module = torch.jit.load(io.BytesIO(archive["module"].tobytes()))
            names = ("mean", "directions", "precisions")
            found = {name: archive[name] for name in names if name in archive}
            self._distance = Distance(**found) if found else None  # until it is sealed
        self.choice = torch_device(device)
        self.device = self.choice.device
        self.threads = threads or 1
        self.placement: dict[str, int] = {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            logits, features = self._module(torch.from_numpy(images))
        if not self.gives_distances:
            return logits.numpy()
        return np.column_stack((logits, self._distance(features.numpy()).astype(np.float32)))

    def distances(self, images: np.ndarray) -> np.ndarray:
        self.gives_distances = True
        found = self(images)[:, -1]
        self.gives_distances = False
        return found

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        scaled = np.exp(self(images) / self.card.temperature)
        return scaled / scaled.sum(axis=1, keepdims=True)

    def new_batch(self, num_images: int) -> np.ndarray:
        return np.empty(self.card.preprocessing.shape(num_images), dtype=np.uint8)

    def lock_pages(self, memory: np.ndarray) -> None:
        return None


def read_npz_card(path: Path) -> Card:
    with np.load(path) as archive:
        return card_from_json(archive["card"].tobytes(), where=str(path))


def open_npz(path: Path, *, device="auto", threads=None, **_: Any) -> NpzPredictor:
    return NpzPredictor(path, device, threads)


def write_npz(trained, precision, path, check) -> Written:
    import torch

    module, file = trained.module(precision, features=True), io.BytesIO()
    torch.jit.save(torch.jit.trace(module, trained.example(precision), check_trace=False), file)
    _save_npz(path, np.frombuffer(file.getvalue(), np.uint8), trained.card)
    check(path)
    return Written()


def seal_npz(path: Path, card: Card, distance: Distance | None) -> None:
    with np.load(path) as archive:
        module = archive["module"]
    _save_npz(path, module, card, **vars(distance))


def _save_npz(path: Path, module: np.ndarray, card: Card, **distance: np.ndarray) -> None:
    text = np.frombuffer(card.to_json().encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, module=module, card=text, **distance)


NPZ = ModelFormat(
    name="npz",
    title="NumPy",
    suffix=".npz",
    precisions=("fp32",),
    is_code=True,
    needs_torch=True,
    load_reader=lambda: SimpleNamespace(
        read_card=read_npz_card, open_export=open_npz, is_as_written=lambda _path: True
    ),
    load_writer=lambda: SimpleNamespace(write=write_npz, seal=seal_npz),
)


def open_with_npz(path: Path, device: str, threads: int | None, *, tf32: bool = False):
    """What bench opens a candidate with, in the new process of a measurement."""
    FORMATS[NPZ.name] = NPZ
    return open_predictor(path, device, threads, tf32=tf32)


def open_model_with_npz(path: Path, **options):
    FORMATS[NPZ.name] = NPZ
    return open_model(path, **options)


@pytest.fixture
def npz_export(workplace, monkeypatch):
    """An export of the trained network in the new format, by the command."""
    monkeypatch.setitem(FORMATS, NPZ.name, NPZ)
    done = run_tltools(
        *("export", "runs/cnn", "--format", "npz", "--precision", "all", "--device", "cpu"),
        cwd=workplace,
    )
    assert done.code == 0, done.err
    return workplace / "exports" / "cnn" / "cnn.fp32.npz"


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_export_in_a_new_format_is_verified_and_classifies(npz_export, workplace, drawn):
    facts = read_card(npz_export).export
    assert (facts.format, facts.precision) == ("npz", "fp32")
    assert facts.parity.top1_agreement == 1.0
    assert facts.self_test is not None
    # The other precisions are none of the format's, so there is one file.
    assert [path.suffix for path in npz_export.parent.glob("*.npz")] == [".npz"]

    rows = {}
    for name in ("cnn.fp32.npz", "cnn.fp32.onnx"):
        done = run_tltools(
            *("classify", drawn, "--model", f"exports/cnn/{name}", "--device", "cpu"),
            *("--output", f"{name}.csv"),
            cwd=workplace,
        )
        assert done.code == 0, done.err
        lines = (workplace / f"{name}.csv").read_text().splitlines()
        rows[name] = [line.split(",")[:2] for line in lines]
    assert len(rows["cnn.fp32.npz"]) == 1 + 16
    assert rows["cnn.fp32.npz"] == rows["cnn.fp32.onnx"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_wrong_export_in_a_new_format_is_not_kept(workplace, monkeypatch):
    def write_wrong(trained, precision, path, check):
        trained.model.head.bias.data += 0.01 * trained.model.head.bias.new_tensor([0.0, 1.0])
        return write_npz(trained, precision, path, check)

    monkeypatch.setitem(FORMATS, NPZ.name, NPZ)
    replace_writer(monkeypatch, NPZ.name, write=write_wrong)
    done = run_tltools("export", "runs/cnn", "--format", "npz", "--device", "cpu", cwd=workplace)
    assert done.code == 3
    assert "cnn.fp32.npz was not written: the logits differ by" in done.err
    assert not list(workplace.glob("exports/cnn/*.npz"))


@pytest.mark.slow
def test_a_new_format_is_measured_beside_the_others(npz_export, workplace):
    runs, exports = workplace / "runs", workplace / "exports"
    inputs = bench_inputs(None, None, run_dir=runs, export_dir=exports)
    settings = BenchSettings(
        device="cpu", batch_sizes=(2,), rounds=1, iterations=2, classify_seconds=0.2
    )
    found = run_bench(
        inputs, settings, open_predictor=open_with_npz, open_model=open_model_with_npz
    )
    # From PyTorch outward, by the formats' order.
    assert [row.format for row in found.rows] == ["eager", "npz", "torchscript", "onnx"]
    assert [row.reason for row in found.rows] == [""] * 4
    npz = found.rows[1]
    assert npz.agreement == 1.0
    assert npz.classify is not None
    assert npz.classify.images_per_s > 0
    (choice,) = found.recommendation.choices
    judged = [choice.name, *(line.partition(":")[0] for line in choice.passed_over)]
    assert len(judged) == 3
    assert sum("npz fp32" in one for one in judged) == 1


def test_an_unknown_format_and_suffix_are_errors_that_list_the_known_ones(workplace):
    done = run_tltools("export", "runs/cnn", "--format", "tflite", cwd=workplace)
    assert done.code == 2
    assert "unknown model format 'tflite'; choose from onnx, pt2, torchscript, all" in " ".join(
        done.err.replace("│", " ").split()
    )
    (workplace / "model.tflite").write_bytes(b"some bytes")
    done = run_tltools("bench", "model.tflite", cwd=workplace)
    assert done.code != 0
    assert "its name ends in '.tflite', exports end in .onnx, .pt2 or .pt" in done.err
