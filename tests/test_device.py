import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import colour_logits

from tltools.errors import ArtifactError, DeviceError
from tltools.runtime import DeviceChoice, OnnxPredictor, device
from tltools.runtime.device import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    OPENVINO_PROVIDER,
    TENSORRT_PROVIDER,
    open_session,
    placement,
)

DRIVER = "libcuda.so.1"


def driver_present() -> bool:
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


needs_no_driver = pytest.mark.skipif(driver_present(), reason="this machine has an NVIDIA driver")


@pytest.fixture
def driver_says_yes(monkeypatch):
    """Let the driver's probe pass, so that what comes after it is reached."""
    monkeypatch.setattr(device, "_driver_problem", lambda: (None, "look at `tltools doctor`"))


class RecordedSession:
    """Stands in for onnxruntime's session where CUDA 'works'; keeps what it was asked for."""

    asked: ClassVar[dict[str, Any]] = {}
    nodes: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, _model, options, *, providers, **kwargs):
        type(self).asked = {"providers": providers, "options": options, **kwargs}
        self._providers = [p if isinstance(p, str) else p[0] for p in providers]

    def get_providers(self):
        return self._providers

    def get_provider_graph_assignment_info(self):
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda op=op: [SimpleNamespace(op_type=op)])
            for provider, op in self.nodes
        ]


@pytest.fixture
def recorded(monkeypatch, driver_says_yes):
    ort = device.import_onnxruntime()
    monkeypatch.setattr(ort, "InferenceSession", RecordedSession)
    monkeypatch.setattr(
        RecordedSession, "nodes", [(CUDA_PROVIDER, "Conv"), (CPU_PROVIDER, "Shape")]
    )
    return RecordedSession


def test_cpu_is_taken_as_asked(onnx_path):
    session, choice = open_session(onnx_path, device="cpu")
    assert session.get_providers() == [CPU_PROVIDER]
    assert (choice.device, choice.reason) == ("cpu", "as asked")


def test_model_can_be_given_as_bytes(onnx_path):
    session, _ = open_session(onnx_path.read_bytes(), device="cpu")
    assert [node.name for node in session.get_inputs()] == ["images"]


def test_placement_counts_the_nodes_by_provider(onnx_path):
    session, _ = open_session(onnx_path, device="cpu")
    assert placement(session) == {CPU_PROVIDER: 4}  # Cast, Div, ReduceMean, Gemm


@needs_no_driver
def test_auto_takes_the_cpu_and_says_why(onnx_path):
    session, choice = open_session(onnx_path, device="auto")
    assert session.get_providers() == [CPU_PROVIDER]
    assert choice.device == "cpu"
    assert "NVIDIA driver is missing (libcuda.so.1" in choice.reason
    assert "\n" not in choice.reason


@needs_no_driver
def test_cuda_without_a_driver_fails_with_reason_and_remedy(onnx_path):
    with pytest.raises(DeviceError, match=r"driver is missing.*install the driver.*--device cpu"):
        open_session(onnx_path, device="cuda")


@needs_no_driver
@pytest.mark.usefixtures("driver_says_yes")
def test_real_fallback_of_onnxruntime_is_caught(onnx_path):
    # onnxruntime itself is asked for CUDA here, raises nothing and gives a session on the CPU.
    with pytest.raises(DeviceError, match=r"fell back to the CPU: lib\S+: cannot open shared"):
        open_session(onnx_path, device="cuda")


@needs_no_driver
@pytest.mark.usefixtures("driver_says_yes")
def test_real_fallback_is_the_reason_that_auto_gives(onnx_path):
    _, choice = open_session(onnx_path, device="auto")
    assert choice.device == "cpu"
    assert "onnxruntime fell back to the CPU" in choice.reason


@needs_no_driver
def test_onnxruntime_writes_nothing_to_the_terminal(onnx_path):
    script = f"""
from pathlib import Path
from tltools.errors import DeviceError
from tltools.runtime import device
path = Path({str(onnx_path)!r})
device.open_session(path, device="auto")
device._driver_problem = lambda: (None, "")  # onnxruntime's own attempt, which is the loud one
try:
    device.open_session(path, device="cuda")
except DeviceError:
    pass
else:
    raise SystemExit("no DeviceError")
try:
    device.open_session(b"no model", device="cpu")
except Exception:
    pass
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_onnxruntime_writes_no_device_id(onnx_path, tmp_path):
    script = (
        "from pathlib import Path; from tltools.runtime.device import open_session\n"
        f"open_session(Path({str(onnx_path)!r}), device='cpu')"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | home
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_cuda_gets_the_providers_and_options_that_it_needs(recorded, onnx_path):
    _, choice = open_session(onnx_path, device="cuda")
    cuda, cpu = recorded.asked["providers"]
    options = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    assert cuda == (CUDA_PROVIDER, options)
    assert cpu == CPU_PROVIDER
    assert recorded.asked["enable_fallback"] == 0
    assert choice.device == "cuda"
    assert choice.reason == "onnxruntime placed 1 of 2 nodes on it"


@pytest.mark.usefixtures("recorded")
def test_libraries_are_preloaded_in_silence(onnx_path, monkeypatch, capsys):
    calls = []

    def preload():
        calls.append("preload")
        print("Failed to load libcublasLt.so.13")

    monkeypatch.setattr(device.import_onnxruntime(), "preload_dlls", preload)
    open_session(onnx_path, device="cuda")
    assert calls == ["preload"]
    assert capsys.readouterr() == ("", "")


def test_tf32_is_on_only_when_asked_for(recorded, onnx_path):
    open_session(onnx_path, device="cuda", tf32=True)
    assert recorded.asked["providers"][0][1]["use_tf32"] == "1"


@pytest.mark.usefixtures("recorded")
def test_auto_takes_cuda_where_it_works(onnx_path):
    _, choice = open_session(onnx_path, device="auto")
    assert choice.device == "cuda"


@pytest.mark.parametrize("op", ["Conv", "FusedConv", "Gemm", "QLinearMatMul", "GlobalAveragePool"])
def test_compute_nodes_left_on_the_cpu_are_an_error(recorded, onnx_path, monkeypatch, op):
    monkeypatch.setattr(recorded, "nodes", [(CUDA_PROVIDER, "Conv"), (CPU_PROVIDER, op)])
    with pytest.raises(DeviceError, match=rf"left on the CPU: 1 {op}\).*--precision"):
        open_session(onnx_path, device="cuda")


def test_failure_inside_cuda_is_a_device_error(recorded, onnx_path, monkeypatch):
    def fail(_self, *_args, **_kwargs):
        raise RuntimeError("CUDA failure 35: driver version is insufficient\nstack\ntrace")

    monkeypatch.setattr(recorded, "__init__", fail)
    monkeypatch.setattr(device, "_missing_library", lambda *_args: None)  # they are all there
    with pytest.raises(DeviceError, match="driver version is insufficient; look at"):
        open_session(onnx_path, device="cuda")


def test_onnxruntime_without_cuda_says_which_package_has_it(monkeypatch, onnx_path):
    ort = device.import_onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU_PROVIDER])
    with pytest.raises(DeviceError, match=r"built without CUDA; .*pip install onnxruntime-gpu"):
        open_session(onnx_path, device="cuda")


@pytest.mark.parametrize(
    ("status", "count", "problem"), [(100, 0, "no GPU \\(status 100"), (0, 0, "no GPU \\(status 0")]
)
def test_driver_without_a_gpu_is_a_reason(monkeypatch, onnx_path, status, count, problem):
    driver = SimpleNamespace(cuInit=lambda _flags: status, cuDeviceGetCount=lambda _count: count)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    with pytest.raises(DeviceError, match=problem):
        open_session(onnx_path, device="cuda")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x0a"])
def test_file_that_is_no_model_is_an_artifact_error(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"onnxruntime cannot open .*broken\.onnx.*export"):
        open_session(path, device="cpu")


def test_threads_are_those_asked_for_or_all_cores(onnx_path, monkeypatch):
    monkeypatch.setattr(device, "num_cores", lambda: 7)
    for asked, given in [(3, 3), (None, 7)]:
        session, _ = open_session(onnx_path, device="cpu", threads=asked)
        assert session.get_session_options().intra_op_num_threads == given


def test_torch_is_on_the_cpu_when_asked():
    assert device.torch_device("cpu") == device.DeviceChoice("cpu", "as asked")


def test_torch_is_not_imported_to_choose_the_cpu_for_onnxruntime(onnx_path):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from tltools.runtime.device import open_session\n"
        f"open_session(Path({str(onnx_path)!r}), device='auto')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@needs_no_driver
def test_torch_falls_to_the_cpu_with_the_reason():
    choice = device.torch_device("auto")
    assert choice.device == "cpu"
    assert "driver is missing" in choice.reason or "built without CUDA" in choice.reason


@needs_no_driver
def test_torch_on_cuda_fails_with_the_remedy():
    with pytest.raises(DeviceError, match=r"CUDA does not work in PyTorch here.*--device cpu"):
        device.torch_device("cuda")


def test_torch_takes_cuda_where_it_works(monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert device.torch_device("auto") == device.DeviceChoice("cuda", "PyTorch sees Some GPU")


def test_only_the_device_module_names_cuda_or_onnxruntime():
    package = Path(device.__file__).parents[1]
    guilty = []
    for path in (*package.glob("runtime/*.py"), *package.glob("classify/*.py")):
        text = path.read_text()
        if path.name != "device.py" and ("cuda" in text or "import onnxruntime" in text):
            guilty.append(path.name)
    assert guilty == []


@pytest.mark.gpu
def test_cuda_gives_the_same_logits_as_the_cpu(onnx_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    sessions = [open_session(onnx_path, device=name)[0] for name in ("cpu", "cuda")]
    cpu, cuda = (session.run(None, {"images": images})[0] for session in sessions)
    assert sessions[1].get_providers()[0] == CUDA_PROVIDER
    np.testing.assert_allclose(cuda, cpu, atol=1e-4)


# ------------------------------------------------------------------- other execution providers


def test_tensorrt_comes_before_cuda_and_keeps_its_engines(recorded, onnx_path, monkeypatch):
    monkeypatch.setattr(
        recorded, "nodes", [(TENSORRT_PROVIDER, "TRTKernel"), (CUDA_PROVIDER, "Conv")]
    )
    _, choice = open_session(onnx_path, device="tensorrt", gpu=1)
    tensorrt, cuda, cpu = recorded.asked["providers"]
    assert tensorrt[0] == TENSORRT_PROVIDER
    assert tensorrt[1]["device_id"] == cuda[1]["device_id"] == "1"
    assert tensorrt[1]["trt_engine_cache_enable"] == "1"
    assert Path(tensorrt[1]["trt_engine_cache_path"]).is_dir()
    assert (cuda[0], cpu) == (CUDA_PROVIDER, CPU_PROVIDER)
    assert choice == DeviceChoice("cuda", "onnxruntime placed 1 of 2 nodes on it")


@needs_no_driver
@pytest.mark.usefixtures("driver_says_yes")
def test_real_fallback_from_tensorrt_is_caught(onnx_path):
    with pytest.raises(
        DeviceError, match=r"TensorRT does not work .* here: lib\S+: cannot .*pip install tensorrt,"
    ):
        open_session(onnx_path, device="tensorrt")


@needs_no_driver
def test_tensorrt_without_a_driver_fails_with_reason_and_remedy(onnx_path):
    with pytest.raises(
        DeviceError, match=r"TensorRT does not work .*driver is missing.*device cpu"
    ):
        open_session(onnx_path, device="tensorrt")


def test_openvino_is_asked_for_its_cpu_with_the_given_threads(onnx_path, monkeypatch):
    ort = device.import_onnxruntime()
    monkeypatch.setattr(ort, "InferenceSession", RecordedSession)
    monkeypatch.setattr(RecordedSession, "nodes", [(OPENVINO_PROVIDER, "Conv")] * 3)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [OPENVINO_PROVIDER, CPU_PROVIDER])
    _, choice = open_session(onnx_path, device="openvino", threads=3)
    assert RecordedSession.asked["providers"] == [
        (OPENVINO_PROVIDER, {"device_type": "CPU", "num_of_threads": "3"}),
        CPU_PROVIDER,
    ]
    assert choice == DeviceChoice("cpu", "onnxruntime placed 3 of 3 nodes on it")
    monkeypatch.setattr(
        RecordedSession, "nodes", [(OPENVINO_PROVIDER, "Conv"), (CPU_PROVIDER, "Gemm")]
    )
    with pytest.raises(DeviceError, match=r"OpenVINO cannot run all .*left on the CPU: 1 Gemm"):
        open_session(onnx_path, device="openvino")


def test_a_provider_that_is_not_installed_is_named_with_its_package(onnx_path, monkeypatch):
    ort = device.import_onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU_PROVIDER])
    for name, wheel in (("tensorrt", "onnxruntime-gpu"), ("openvino", "onnxruntime-openvino")):
        with pytest.raises(
            DeviceError, match=rf"built without (?i:{name}); .*pip install {wheel},"
        ):
            open_session(onnx_path, device=name)


@pytest.mark.parametrize("name", ["tensorrt", "openvino"])
def test_pytorch_runs_on_neither(name):
    with pytest.raises(
        DeviceError, match=rf"--device {name} runs ONNX exports only.*an .onnx file"
    ):
        device.torch_device(name)


class Counted:
    """Stands in for the driver's library with some GPUs."""

    def __init__(self, count, status=0):
        self.count, self.status = count, status

    def cuInit(self, _flags):  # noqa: N802 - the driver's name
        return self.status

    def cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("driver", "expected"), [(None, 0), (Counted(3), 3), (Counted(3, status=100), 0)]
)
def test_gpus_are_those_that_the_driver_counts(monkeypatch, driver, expected):
    monkeypatch.setattr(device, "_driver", lambda: driver)
    assert device.num_gpus() == expected


class Bound:
    """A session on a device with page-locked memory; computes on the CPU what it is bound to."""

    def __init__(self, path):
        self._session, _ = open_session(path, device="cpu")
        self.bound = []
        self.run = None  # must not be used

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_input_epdevices(self):
        return [SimpleNamespace(memory_info=lambda kind: ("memory", kind))]

    def run_with_iobinding(self, binding):
        self.bound.append(binding)
        self._session.run_with_iobinding(binding)


def test_a_gpus_batches_are_bound_where_they_lie(onnx_path, monkeypatch):
    ort = device.import_onnxruntime()
    asked = []
    make = ort.OrtValue.ortvalue_from_shape_and_type

    def make_locked(shape, dtype, *, memory_info):
        asked.append(memory_info)
        return make(shape, dtype)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", make_locked)
    predictor = OnnxPredictor(onnx_path, device="cpu")
    session = Bound(onnx_path)
    predictor._session, predictor.device = session, "cuda"
    images = predictor.new_batch(3)
    assert asked == [("memory", ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)]
    for value in (0, 200):  # the second time round the batch holds something else
        images[:] = value
        logits = predictor(images)
        np.testing.assert_allclose(logits, colour_logits(images), atol=1e-4)
    assert len(session.bound) == 2
    del session.run  # other arrays, and parts of a batch, take the ordinary way
    np.testing.assert_allclose(predictor(images[:2]), colour_logits(images[:2]), atol=1e-4)
    np.testing.assert_allclose(predictor(images.copy()), colour_logits(images), atol=1e-4)
    assert len(session.bound) == 2


def test_the_cpu_has_no_page_locked_memory(onnx_path):
    session, _ = open_session(onnx_path, device="cpu")
    assert device.page_locked_array(session, (2, 4, 4, 3)) is None
