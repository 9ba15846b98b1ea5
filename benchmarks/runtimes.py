"""Run a model on images in one runtime, without tltools: RUNTIME MODEL IMAGES ANSWER.

`consumers.py` starts this in an environment without tltools. IMAGES is a `.npy` file of decoded
images, uint8 (N, H, W, 3), or, for `predict.py`, a JSON list of files. ANSWER is JSON: `version`
of the runtime; `logits` and `probabilities`, (N, C), and, if the model gives it, `distance`,
(N, 1), or (N,) from older exports; for Triton, `mismatch`, empty if all fits.
"""

import json
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 8
"""The last batch is smaller unless the images divide: the batch axis must be dynamic."""
OUTPUTS = ("logits", "probabilities", "distance")
"""The last one is left out by exports of runs that know no distances."""
Model = Callable[[NDArray[np.uint8]], Sequence[Any]]
"""Maps images, uint8 (N, H, W, 3), to the outputs, in this order."""


def _outputs(names: Iterable[str]) -> list[str]:
    """Return the outputs that a model has, in their order."""
    has = set(names)
    return [name for name in OUTPUTS if name in has]


def open_onnxruntime(path: Path) -> Model:
    """Open an ONNX file in onnxruntime with its defaults."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = _outputs(one.name for one in session.get_outputs())
    return lambda images: session.run(names, {"images": images})


def open_openvino(path: Path, **settings: str) -> Model:
    """Open an ONNX file in OpenVINO on the CPU; without settings, it may compute in bfloat16."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = _outputs(name for one in compiled.outputs for name in one.names)

    def call(images: NDArray[np.uint8]) -> Sequence[Any]:
        found = compiled(images)
        return [found[name] for name in names]

    return call


def open_openvino_fp32(path: Path) -> Model:
    """Open an ONNX file in OpenVINO on the CPU, in the precision that the file has."""
    return open_openvino(path, INFERENCE_PRECISION_HINT="f32")


def open_opencv(path: Path) -> Model:
    """Open an ONNX file in OpenCV's `dnn` module."""
    import cv2

    net = cv2.dnn.readNetFromONNX(str(path))
    names = _outputs(net.getUnconnectedOutLayersNames())

    def call(images: NDArray[np.uint8]) -> Sequence[Any]:
        net.setInput(images, "images")
        return [np.array(found) for found in net.forward(names)]

    return call


def open_torchscript(path: Path) -> Model:
    """Open a TorchScript file in PyTorch."""
    import torch

    return _in_torch(torch.jit.load(path, map_location="cpu"))


def open_pt2(path: Path) -> Model:
    """Open a PT2 file in PyTorch."""
    import torch

    return _in_torch(torch.export.load(path).module())


def open_torchvision(run: Path) -> Model:
    """Load a run's checkpoint of VGG16 into torchvision's own `vgg16`.

    Normalization and temperature, which an export's graph contains, are the card's.
    """
    import torch
    from safetensors.torch import load_file
    from torchvision.models import vgg16

    card = json.loads((run / "card.json").read_text(encoding="utf-8"))
    saved = load_file(run / "checkpoint.safetensors")
    net = vgg16(weights=None)
    last = torch.nn.Linear(saved["head.weight"].shape[1], len(card["classes"]))
    if card["head"] == "pooled":
        net.avgpool, net.classifier = torch.nn.AdaptiveAvgPool2d(1), last
        head = "classifier"
    else:
        net.classifier[6] = last
        head = "classifier.6"
    names = {name: name.removeprefix("backbone.").replace("head", head) for name in saved}
    net.load_state_dict({names[name]: tensor for name, tensor in saved.items()}, strict=True)
    net.eval()
    mean, std = (torch.tensor(card["preprocessing"][key]).view(3, 1, 1) for key in ("mean", "std"))
    temperature = (card["confidence"] or {"temperature": 1.0})["temperature"]

    def module(images: Any) -> tuple[Any, Any]:
        logits = net((images.permute(0, 3, 1, 2) / 255 - mean) / std)
        return logits, torch.softmax(logits / temperature, dim=1)

    return _in_torch(module)


def _in_torch(module: Callable[[Any], Sequence[Any]]) -> Model:
    import torch

    def call(images: NDArray[np.uint8]) -> Sequence[Any]:
        with torch.inference_mode():
            return [found.numpy() for found in module(torch.from_numpy(images))]

    return call


def run_model(open_model: Callable[[Path], Model], path: Path, images: Path) -> dict[str, Any]:
    """Run decoded images through a model in batches."""
    pixels = np.load(images)
    model = open_model(path)
    return _joined([model(pixels[i : i + BATCH_SIZE]) for i in range(0, len(pixels), BATCH_SIZE)])


def run_program(folder: Path, images: Path) -> dict[str, Any]:
    """Run the program of `export --layout python`: it decodes and resizes the files itself."""
    load = runpy.run_path(str(folder / "predict.py"))["load"]
    model = open_onnxruntime(folder / "model.onnx")
    return _joined([model(load(path)) for path in json.loads(images.read_text(encoding="utf-8"))])


def _joined(parts: Sequence[Sequence[Any]]) -> dict[str, Any]:
    # A model without the last output has two results for each batch.
    return {
        name: np.concatenate(found).tolist()
        for name, found in zip(OUTPUTS, zip(*parts, strict=True), strict=False)
    }


def check_triton(folder: Path, images: Path) -> dict[str, Any]:
    """Compare a model's Triton configuration with the model, by tritonclient's own definitions.

    No server runs: this only shows that Triton's text format accepts the configuration, that its
    inputs and outputs are the model's, and that the client accepts a request with the images.
    """
    import onnxruntime
    import tritonclient.grpc
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2
    from tritonclient.utils import triton_to_np_dtype

    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    session = onnxruntime.InferenceSession(
        folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )

    def configured(one: Any) -> tuple[Any, ...]:
        kind = model_config_pb2.DataType.Name(one.data_type).removeprefix("TYPE_")
        sizes = one.reshape.shape if one.HasField("reshape") else one.dims
        return one.name, np.dtype(triton_to_np_dtype(kind)), tuple(sizes)

    def of_model(one: Any) -> tuple[Any, ...]:
        kind = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[one.type]
        return one.name, np.dtype(kind), tuple(one.shape[1:])  # Triton adds the batch axis

    pairs = {
        "name": (config.name, folder.name),
        "inputs": (list(map(configured, config.input)), list(map(of_model, session.get_inputs()))),
        "outputs": (
            list(map(configured, config.output)),
            list(map(of_model, session.get_outputs())),
        ),
    }
    found = [
        f"{key} {mine}, not {theirs}" for key, (mine, theirs) in pairs.items() if mine != theirs
    ]
    batch = np.load(images)[: config.max_batch_size]
    (given,) = config.input
    kind = model_config_pb2.DataType.Name(given.data_type).removeprefix("TYPE_")
    request = tritonclient.grpc.InferInput(given.name, [len(batch), *given.dims], kind)
    request.set_data_from_numpy(batch)  # it raises an error if shape or type differ
    return {"mismatch": "; ".join(found)}


RUNTIMES: dict[str, tuple[str, Callable[[Path], Model]]] = {
    "onnxruntime": ("onnxruntime", open_onnxruntime),
    "openvino": ("openvino", open_openvino),
    "openvino-fp32": ("openvino", open_openvino_fp32),
    "opencv": ("opencv-python-headless", open_opencv),
    "torchscript": ("torch", open_torchscript),
    "pt2": ("torch", open_pt2),
    "torchvision": ("torchvision", open_torchvision),
}
"""The package whose version is named, and the function that opens a model."""


def answer(runtime: str, path: Path, images: Path) -> dict[str, Any]:
    """Return what a runtime makes of a model, and its version."""
    if runtime == "predict.py":
        return run_program(path, images) | {"version": version("pillow")}
    if runtime == "triton":
        return check_triton(path, images) | {"version": version("tritonclient")}
    package, open_model = RUNTIMES[runtime]
    return run_model(open_model, path, images) | {"version": _version(package)}


def _version(package: str) -> str:
    if package == "onnxruntime":  # several distributions have this module
        import onnxruntime

        return onnxruntime.__version__
    return version(package)


def main() -> None:
    """Write the answer, or end with an error of one line."""
    runtime, path, images, output = sys.argv[1:]
    sys.modules["tltools"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        found = answer(runtime, Path(path), Path(images))
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
    Path(output).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
