"""Models, images and folders that the tests share; all made here, most in milliseconds."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from PIL import Image

from tltools import cli
from tltools.card import (
    CARD_KEY,
    Card,
    DataFacts,
    ExportFacts,
    Parity,
    Preprocessing,
    Score,
    Weights,
)
from tltools.memory import available_memory
from tltools.metrics import interval
from tltools.parallel import num_cores
from tltools.progress import SILENT, Progress, Silent
from tltools.runtime import checksum

if TYPE_CHECKING:
    import onnx
    import torch

    from tltools.data.dataset import Dataset
    from tltools.export import ExportResult

cli.load_commands()  # of which a process of `tltools` loads the one that it is given

SHARED = Path(__file__).resolve().parents[2] / "shared"
MEMORY_PER_PROCESS = 4 * 2**30
"""What a process of the suite takes at most, in bytes: the tests of the full-size VGG16."""
SIZE = 32
CLASSES = ("red", "green", "blue")
GAIN = 8.0
NUM_DRAWN = 16
SAID_OF_TORCHSCRIPT = (
    ("warning: PyTorch does not support TorchScript on Python 3.14",)
    if sys.version_info >= (3, 14)
    else ()
)
"""How the lines begin that each export to TorchScript prints on this Python."""
COLORS = {"red": (250, 10, 20), "green": (5, 240, 15), "blue": (30, 25, 245)}

# The suite's examples are the same each time; `--hypothesis-profile long` looks for others.
_ANY_TIME = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
}
hypothesis.settings.register_profile("suite", derandomize=True, max_examples=300, **_ANY_TIME)
hypothesis.settings.register_profile("long", max_examples=20_000, print_blob=True, **_ANY_TIME)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of the suite: one for each core that has the memory."""
    return max(1, min(num_cores(), available_memory() // MEMORY_PER_PROCESS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no process is left alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep all caches out of the home folder, including those of libraries."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
        (folder / "xdg" / "tltools").mkdir(parents=True)
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))
        yield folder


LARGEST_KEPT = 64 * 2**20
"""Bytes of a graph that is kept for the next test; VGG16's are not."""


@pytest.fixture(autouse=True)
def _threads_of_torch() -> Iterator[None]:
    """Give each test the suite's number of threads."""
    reset_threads()
    yield
    reset_threads()


def reset_threads() -> None:
    """Undo what opening an export does to the whole process: all cores for PyTorch's operators.

    The suite has a process for each core. Threads of several that wait for each other make the
    small steps of its trainings up to 60 times as long.
    """
    if "torch" in sys.modules and (given := os.environ.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(given))


@pytest.fixture(scope="session", autouse=True)
def _modules_are_exported_once() -> Iterator[None]:
    """Give what torch's exporter made of a module to each later test that exports the same one.

    Tests train the same small network again and again, and to export it to ONNX takes seconds.
    """
    if "torch" not in sys.modules:  # no test module here needs it
        yield
        return
    import onnx

    from tltools.graphs import onnx_file

    made: dict[str, bytes] = {}
    export = onnx_file.export_module

    def export_once(module: "torch.nn.Module", **options: Any) -> "onnx.ModelProto":
        key = _fingerprint(module, options)
        if key in made:
            return onnx.ModelProto.FromString(made[key])
        model = export(module, **options)
        if model.ByteSize() <= LARGEST_KEPT:
            made[key] = model.SerializeToString()
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "export_module", export_once)
        yield


def _fingerprint(module: "torch.nn.Module", options: dict[str, Any]) -> str:
    """Return a hash of all that the exporter sees: classes, settings, weights and options."""
    import torch

    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for name, one in module.named_modules():
        plain = {
            key: value
            for key, value in vars(one).items()
            if isinstance(value, bool | int | float | str | tuple | type(None))
        }
        kind = f"{type(one).__module__}.{type(one).__qualname__}"
        digest.update(repr((name, kind, one.forward.__code__, plain)).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        values = tensor.detach().contiguous().flatten().view(torch.uint8)
        digest.update(repr((name, tensor.dtype, tensor.shape)).encode() + values.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights, which only some machines have."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def make_card() -> Callable[..., Card]:
    """Make the tiny model's card, with the given fields changed."""

    def make(**changes: Any) -> Card:
        parity = Parity(
            max_abs_logit_diff=1e-6,
            top1_agreement=1.0,
            num_images=10,
            batch_sizes=(1, 4),
            atol=1e-4,
            min_top1_agreement=1.0,
        )
        fields: dict[str, Any] = {
            "run": "tiny",
            "model": "cnn",
            "head": "linear",
            "classes": CLASSES,
            "preprocessing": Preprocessing(size=SIZE),
            "weights": Weights(source="random"),
            "data": DataFacts(
                name="colors", fingerprint="0" * 64, split="given", num_train=20, num_val=10
            ),
            "metrics": {},
            "training": {},
            "versions": {},
            "created": "2026-01-01T00:00:00Z",
            "export": ExportFacts(format="onnx", precision="fp32", opset=20, parity=parity),
        }
        return Card(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def card(make_card: Callable[..., Card]) -> Card:
    return make_card()


def color_logits(images: np.ndarray) -> np.ndarray:
    """What the tiny model computes, by its definition: the mean of each channel, times GAIN."""
    return images.mean(axis=(1, 2), dtype=np.float64) / 255 * GAIN


@pytest.fixture(scope="session")
def make_onnx() -> Callable[..., Path]:
    """Write the tiny model: per-channel mean of the image, then Gemm with GAIN on the diagonal.

    The keyword arguments replace parts of the model, to make exports that are wrong.
    """
    import onnx.parser

    def make(
        path: Path,
        card_json: str | None,
        *,
        name: str = "images",
        dtype: str = "uint8",
        batch: str = "N",
        size: int = SIZE,
        num_classes: int = len(CLASSES),
    ) -> Path:
        weights = ", ".join(
            str(GAIN if row == column else 0.0) for row in range(3) for column in range(num_classes)
        )
        model = onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 20]>
            tiny ({dtype}[{batch}, {size}, {size}, 3] {name})
                => (float[{batch}, {num_classes}] logits)
            <float full = {{255.0}}, int64[2] axes = {{1, 2}},
             float[3, {num_classes}] weight = {{{weights}}}>
            {{
                pixels = Cast <to = 1> ({name})
                scaled = Div (pixels, full)
                means = ReduceMean <keepdims = 0> (scaled, axes)
                logits = Gemm (means, weight)
            }}
        """)
        if card_json is not None:
            onnx.helper.set_model_props(model, {"other": "entry", CARD_KEY: card_json})
        onnx.save(model, path)
        return path

    return make


@pytest.fixture(scope="session")
def onnx_path(
    make_onnx: Callable[..., Path], card: Card, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model as a complete ONNX export."""
    return make_onnx(tmp_path_factory.mktemp("exports") / "tiny.onnx", card.to_json())


@pytest.fixture(scope="session")
def torchscript_path(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a complete TorchScript export."""
    import torch

    path = tmp_path_factory.mktemp("exports") / "tiny.pt"
    module, example = tiny_module()
    torch.jit.save(
        torch.jit.trace(module, example), str(path), _extra_files={CARD_KEY: card.to_json()}
    )
    return path


@pytest.fixture(scope="session")
def pt2_path(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a complete PT2 export."""
    from tltools.runtime.model_formats import pt2

    path = tmp_path_factory.mktemp("exports") / "tiny.pt2"
    pt2._save(pt2._export(*tiny_module()), path, card)
    return path


def tiny_module() -> "tuple[torch.nn.Module, torch.Tensor]":
    """The tiny model in PyTorch, and images to export it with."""
    import torch

    class Tiny(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            means = (images.to(torch.float32) / 255.0).mean(dim=(1, 2))
            return means @ (torch.eye(3, dtype=torch.float32, device=means.device) * GAIN)

    return Tiny().eval(), torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of noisy images, ten of each color, in folders named by their color."""
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for number in range(10):
            save_image(root / name / f"{number}.png", color, rng)
    return root


def save_image(path: Path, color: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Save an image of one color with noise, so that no two are the same."""
    noise = rng.integers(-20, 21, size=(SIZE, SIZE, 3))
    pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


class Recorder(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.bars: list[str] = []
        self.said: list[str] = []

    def bar(
        self,
        description: str,
        total: int | None,
        unit: str = "images",
        *,
        epochs: range | None = None,
    ):
        self.bars.append(description)
        return super().bar(description, total, unit, epochs=epochs)

    def say(self, message: str) -> None:
        self.said.append(message)

    warn = say
    detail = say


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of noisy images, `dark` and `bright`, which a network learns in one epoch."""
    root = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for index in range(NUM_DRAWN):
        name, level = (("dark", 50), ("bright", 200))[index % 2]
        (root / name).mkdir(exist_ok=True)
        save_image(root / name / f"{index}.png", (level, level, level), rng)
    return root


@pytest.fixture(scope="session")
def drawn_dataset(drawn: Path) -> "Dataset":
    from tltools.data.dataset import load_dataset

    return load_dataset(drawn, val_fraction=0.375)


@pytest.fixture(scope="session")
def cnn_run(drawn_dataset: "Dataset", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run of the CNN, trained in seconds; tests that change it copy it."""
    from tltools.training import TrainSetup, default_config, train_model

    config = default_config("cnn", epochs=1, batch_size=5, lr=1e-3)
    run_dir = tmp_path_factory.mktemp("trained") / "runs"
    return train_model(drawn_dataset, config, TrainSetup(device="cpu", run_dir=run_dir)).folder


@pytest.fixture(scope="session")
def cnn_exports(cnn_run: Path) -> "dict[str, ExportResult]":
    """Both exports of `cnn_run`, by format, in `exports/` beside its `runs/`."""
    formats = ("torchscript", "onnx")
    results = make_exports(cnn_run, formats, cnn_run.parents[1] / "exports", device="cpu")
    return dict(zip(formats, results, strict=True))


def make_exports(
    run: Path, formats: Sequence[str], output: Path, *, progress: Progress = SILENT, **changes: Any
) -> "list[ExportResult]":
    """Export a run; `changes` are fields of the settings."""
    from tltools.export import ExportSettings, export_run

    settings = ExportSettings(formats=tuple(formats), output=output, **changes)
    return list(export_run(run, settings, progress=progress))


def replace_writer(patch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> None:
    """Have the files of a format written by other functions: `write`, `seal` or both."""
    from tltools.runtime.model_formats import FORMATS

    writer = FORMATS[name].load_writer()
    changed = SimpleNamespace(**({"write": writer.write, "seal": writer.seal} | functions))
    patch.setitem(FORMATS, name, replace(FORMATS[name], load_writer=lambda: changed))


def load_onnx(path: Path) -> "onnx.ModelProto":
    """Load an ONNX export to change it; without the checksum, which would tell of that."""
    import onnx

    model = onnx.load(path)
    for entry in [one for one in model.metadata_props if one.key == checksum.KEY]:
        model.metadata_props.remove(entry)
    return model


def with_older_distance(export: Path, path: Path) -> Path:
    """Write a copy of an ONNX export whose distance is (N,), as exports had it at first."""
    import onnx

    model = load_onnx(export)
    graph = model.graph
    last, declared = graph.node[-1], graph.output[-1]
    assert last.output == [declared.name] == ["distance"]
    last.output[0] = "distance/column"
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "distance/axis")
    graph.initializer.append(axis)
    squeeze = onnx.helper.make_node("Squeeze", ["distance/column", axis.name], [declared.name])
    graph.node.append(squeeze)
    del declared.type.tensor_type.shape.dim[1:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def set_card(path: Path, card: Card) -> None:
    """Replace the card of an export in place."""
    if path.suffix == ".onnx":
        import onnx

        model = load_onnx(path)
        kept = {item.key: item.value for item in model.metadata_props}
        onnx.helper.set_model_props(model, kept | {CARD_KEY: card.to_json()})
        onnx.save(model, path)
        return
    import torch

    if path.suffix == ".pt2":
        program = torch.export.load(path)
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={CARD_KEY: card.to_json()})
        return
    module = torch.jit.load(path, map_location="cpu")
    torch.jit.save(module, path, _extra_files={CARD_KEY: card.to_json()})


@pytest.fixture
def make_export(
    make_onnx: Callable[..., Path], make_card: Callable[..., Card], tmp_path: Path
) -> Callable[..., Path]:
    """Write the tiny model as an export of a run, with a validation accuracy, in `exports/`."""

    def make(
        run: str, *, val: float = 0.5, total: int = 100, name: str = "", **changes: Any
    ) -> Path:
        path = tmp_path / "exports" / run / (name or f"{run}.fp32.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        correct = round(val * total)
        low, high = interval(correct, total)
        score = Score(accuracy=val, low=low, high=high, correct=correct, total=total)
        return make_onnx(path, make_card(run=run, metrics={"val": score}, **changes).to_json())

    return make


@pytest.fixture
def workplace(cnn_run: Path, cnn_exports: "dict[str, ExportResult]", tmp_path: Path) -> Path:
    """A copy of a real run and its two exports, laid out as by the commands."""
    shutil.copytree(cnn_run, tmp_path / "runs" / "cnn")
    (tmp_path / "exports" / "cnn").mkdir(parents=True)
    for result in cnn_exports.values():
        shutil.copy(result.path, tmp_path / "exports" / "cnn")
    return tmp_path


@pytest.fixture(scope="session")
def vgg16_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16's convolutions with random values, as a features-only file."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        if len(shape) > 1
        else torch.zeros(shape)
        for name, shape in shapes.items()
        if name.startswith("features.")
    }
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(state, path)
    return path


SITE = """
import os, signal, time
stat = os.stat
def dangerous(path, *args, **options):  # the first thing that is done with an image
    name = os.path.basename(path) if isinstance(path, (str, os.PathLike)) else ""
    if name == "crash.png":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    if name == "hang.png":
        time.sleep(1000)
    if name == "leave.png":
        os._exit(7)
    return stat(path, *args, **options)
os.stat = dangerous
"""
"""Loaded by every Python process whose path has its folder, as a module of this name is."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two one-core nodes; `crash.png` kills the worker that decodes it."""
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'ray[data]>=2.60'")
    import ray
    from ray.cluster_utils import Cluster

    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, sys.path)]))
        node = {"num_cpus": 1, "object_store_memory": 2**27}
        made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        made.node = node
        made.second = made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


class Ran(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def run_tltools(*args: object, cwd: Path) -> Ran:
    """Run a command in this process, as if it had been typed in `cwd`."""
    from tltools.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.StringIO()
    code = 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["tltools", *map(str, args)])
        try:
            main([str(arg) for arg in args])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            reset_threads()  # which end with the process of a command
    out.seek(0)
    return Ran(code, out.read(), err.getvalue())


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
    below, found = {pid}, []
    while new := [one for one, parent in parents.items() if parent in below and one not in found]:
        found += new
        below |= set(new)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def features_of(paths, hashes, *, progress=SILENT, **settings):
    """Return the features of all images as one array, (N, F); `settings` are an `Extraction`'s.

    onnxruntime computes them unless the settings say otherwise.
    """
    import torch

    from tltools.training.features import Extraction, extract

    extraction = Extraction(**{"runtime": "onnxruntime"} | settings)
    rows = extract(paths, hashes, extraction, progress=progress)
    return torch.stack(rows).numpy()
