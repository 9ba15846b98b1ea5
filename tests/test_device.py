import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from tltools.errors import ArtifactError, ConfigError, DeviceError
from tltools.runtime import DeviceChoice, device, load_predictor
from tltools.runtime.device import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    OPENVINO_PROVIDER,
    TENSORRT_PROVIDER,
    DeviceRequest,
    chosen_gpus,
    cluster_device,
    open_session,
    parse_device,
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


def test_the_cpu_is_used_on_request(onnx_path):
    session, choice = open_session(onnx_path, device="cpu")
    assert session.get_providers() == [CPU_PROVIDER]
    assert (choice.device, choice.reason) == ("cpu", "as asked")


def test_a_model_can_be_given_as_bytes(onnx_path):
    session, _ = open_session(onnx_path.read_bytes(), device="cpu")
    assert [node.name for node in session.get_inputs()] == ["images"]


def test_placement_counts_the_nodes_by_provider(onnx_path):
    session, _ = open_session(onnx_path, device="cpu")
    assert placement(session) == {CPU_PROVIDER: 4}  # Cast, Div, ReduceMean, Gemm


@needs_no_driver
def test_auto_uses_the_cpu_and_says_why(onnx_path):
    session, choice = open_session(onnx_path, device="auto")
    assert session.get_providers() == [CPU_PROVIDER]
    assert choice.device == "cpu"
    assert "NVIDIA driver is missing (libcuda.so.1" in choice.reason
    assert "\n" not in choice.reason


@needs_no_driver
def test_cuda_without_a_driver_fails_with_a_reason_and_a_remedy(onnx_path):
    with pytest.raises(DeviceError, match=r"driver is missing.*install the driver.*`device=cpu`"):
        open_session(onnx_path, device="cuda")


@needs_no_driver
@pytest.mark.usefixtures("driver_says_yes")
def test_a_real_fallback_of_onnxruntime_is_caught(onnx_path):
    # onnxruntime itself is asked for CUDA here, raises nothing and gives a session on the CPU.
    with pytest.raises(DeviceError, match=r"fell back to the CPU: lib\S+: cannot open shared"):
        open_session(onnx_path, device="cuda")


@needs_no_driver
@pytest.mark.usefixtures("driver_says_yes")
def test_auto_reports_a_real_fallback_as_its_reason(onnx_path):
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


def test_cuda_gets_the_providers_and_options_it_needs(recorded, onnx_path):
    _, choice = open_session(onnx_path, device="cuda")
    cuda, cpu = recorded.asked["providers"]
    options = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    assert cuda == (CUDA_PROVIDER, options)
    assert cpu == CPU_PROVIDER
    assert recorded.asked["enable_fallback"] == 0
    assert choice.device == "cuda"
    assert choice.reason == "onnxruntime placed 1 of 2 nodes on it"


@pytest.mark.usefixtures("recorded")
def test_libraries_are_preloaded_without_output(onnx_path, monkeypatch, capsys):
    calls = []

    def preload():
        calls.append("preload")
        print("Failed to load libcublasLt.so.13")

    monkeypatch.setattr(device.import_onnxruntime(), "preload_dlls", preload)
    open_session(onnx_path, device="cuda")
    assert calls == ["preload"]
    assert capsys.readouterr() == ("", "")


def test_tf32_is_used_only_on_request_and_the_reason_says_so(recorded, onnx_path):
    _, choice = open_session(onnx_path, device="cuda", tf32=True)
    assert recorded.asked["providers"][0][1]["use_tf32"] == "1"
    assert choice.reason == "onnxruntime placed 1 of 2 nodes on it, TF32"


@needs_no_driver
@pytest.mark.parametrize("path", ["onnx_path", "pt2_path", "torchscript_path"])
@pytest.mark.parametrize(("asked", "reason"), [("cpu", "as asked"), ("auto", ".*CUDA.*")])
def test_tf32_on_the_cpu_is_refused_with_the_reason(request, path, asked, reason):
    with pytest.raises(
        DeviceError, match=rf"`tf32=True` needs an NVIDIA GPU, .* the CPU \({reason}\); leave it"
    ):
        load_predictor(request.getfixturevalue(path), device=asked, tf32=True)


def test_channels_come_last_only_on_request(recorded, onnx_path):
    open_session(onnx_path, device="cuda", nhwc=True)
    assert recorded.asked["providers"][0][1]["prefer_nhwc"] == "1"


@pytest.mark.parametrize("path", ["onnx_path", "pt2_path", "torchscript_path"])
def test_on_the_cpu_channels_always_come_first(request, path):
    predictor = load_predictor(request.getfixturevalue(path), device="cpu", nhwc=True)
    assert (predictor.layout, predictor.tf32) == ("nchw", False)


@pytest.mark.usefixtures("recorded")
def test_auto_uses_cuda_if_it_works(onnx_path):
    _, choice = open_session(onnx_path, device="auto")
    assert choice.device == "cuda"


@pytest.mark.parametrize("op", ["Conv", "FusedConv", "Gemm", "QLinearMatMul", "GlobalAveragePool"])
def test_compute_nodes_left_on_the_cpu_are_an_error(recorded, onnx_path, monkeypatch, op):
    monkeypatch.setattr(recorded, "nodes", [(CUDA_PROVIDER, "Conv"), (CPU_PROVIDER, op)])
    with pytest.raises(DeviceError, match=rf"left on the CPU: 1 {op}\).*`precision=`"):
        open_session(onnx_path, device="cuda")


def test_a_failure_inside_cuda_is_a_device_error(recorded, onnx_path, monkeypatch):
    def fail(_self, *_args, **_kwargs):
        raise RuntimeError("CUDA failure 35: driver version is insufficient\nstack\ntrace")

    monkeypatch.setattr(recorded, "__init__", fail)
    monkeypatch.setattr(device, "_missing_library", lambda *_args: None)  # they are all there
    with pytest.raises(DeviceError, match="driver version is insufficient; run"):
        open_session(onnx_path, device="cuda")


def test_onnxruntime_without_cuda_names_the_package_that_has_it(monkeypatch, onnx_path):
    ort = device.import_onnxruntime()
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU_PROVIDER])
    with pytest.raises(DeviceError, match=r"built without CUDA; .*pip install onnxruntime-gpu"):
        open_session(onnx_path, device="cuda")


@pytest.mark.parametrize(
    ("status", "count", "problem"), [(100, 0, "no GPU \\(status 100"), (0, 0, "no GPU \\(status 0")]
)
def test_a_driver_without_a_gpu_is_a_reason(monkeypatch, onnx_path, status, count, problem):
    driver = SimpleNamespace(cuInit=lambda _flags: status, cuDeviceGetCount=lambda _count: count)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    with pytest.raises(DeviceError, match=problem):
        open_session(onnx_path, device="cuda")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x0a"])
def test_a_file_that_is_not_a_model_is_an_artifact_error(tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"onnxruntime cannot open .*broken\.onnx.*export"):
        open_session(path, device="cpu")


def test_threads_are_as_requested_or_one_per_core(onnx_path, monkeypatch):
    monkeypatch.setattr(device, "num_cores", lambda: 7)
    for asked, given in [(3, 3), (None, 7)]:
        session, _ = open_session(onnx_path, device="cpu", threads=asked)
        assert session.get_session_options().intra_op_num_threads == given


def test_torch_runs_on_the_cpu_on_request():
    assert device.torch_device("cpu") == device.DeviceChoice("cpu", "as asked")


def test_torch_is_not_imported_to_choose_the_cpu_for_onnxruntime(onnx_path):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from tltools.runtime.device import open_session\n"
        f"open_session(Path({str(onnx_path)!r}), device='auto')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@needs_no_driver
def test_torch_falls_back_to_the_cpu_with_a_reason():
    choice = device.torch_device("auto")
    assert choice.device == "cpu"
    assert "driver is missing" in choice.reason or "built without CUDA" in choice.reason


@needs_no_driver
def test_torch_on_broken_cuda_fails_with_a_remedy():
    with pytest.raises(DeviceError, match=r"CUDA does not work in PyTorch here.*`device=cpu`"):
        device.torch_device("cuda")


def test_torch_uses_cuda_if_it_works(monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _gpu: "Some GPU")
    choice = device.torch_device("auto")
    assert choice == device.DeviceChoice("cuda", "PyTorch sees Some GPU", 0)
    assert choice.name == "cuda:0"


def test_only_two_modules_name_cuda_and_one_imports_onnxruntime():
    package = Path(device.__file__).parents[1]
    guilty = []
    for path in (*package.glob("runtime/*.py"), *package.glob("classify/*.py")):
        text = path.read_text()
        if "cuda" in text and path.name not in ("device.py", "driver.py"):
            guilty.append(path.name)
        if "import onnxruntime" in text and path.name != "device.py":
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


def test_tensorrt_comes_before_cuda_and_caches_its_engines(recorded, onnx_path, monkeypatch):
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
    assert choice == DeviceChoice("cuda", "onnxruntime placed 1 of 2 nodes on it", 1)


@needs_no_driver
@pytest.mark.usefixtures("driver_says_yes")
def test_a_real_fallback_from_tensorrt_is_caught(onnx_path):
    with pytest.raises(
        DeviceError, match=r"TensorRT does not work .* here: lib\S+: cannot .*pip install tensorrt,"
    ):
        open_session(onnx_path, device="tensorrt")


@needs_no_driver
def test_tensorrt_without_a_driver_fails_with_a_reason_and_a_remedy(onnx_path):
    with pytest.raises(
        DeviceError, match=r"TensorRT does not work .*driver is missing.*device=cpu"
    ):
        open_session(onnx_path, device="tensorrt")


def test_openvino_runs_on_its_cpu_with_the_given_threads(onnx_path, monkeypatch):
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
def test_pytorch_runs_on_neither_tensorrt_nor_openvino(name):
    with pytest.raises(
        DeviceError, match=rf"`device={name}` runs ONNX exports only.*an ONNX export"
    ):
        device.torch_device(name)


# ----------------------------------------------------------------------------- which of the GPUs


@pytest.mark.parametrize(
    ("text", "kind", "gpus"),
    [
        ("auto", "auto", ()),
        ("cpu", "cpu", ()),
        ("cuda", "cuda", ()),
        ("openvino", "openvino", ()),
        ("cuda:1", "cuda", (1,)),
        ("cuda:2,cuda:0", "cuda", (2, 0)),
        ("cuda:0, cuda:1", "cuda", (0, 1)),
        ("tensorrt:1", "tensorrt", (1,)),
    ],
)
def test_a_device_is_a_kind_and_optionally_some_gpus(text, kind, gpus):
    assert parse_device(text) == DeviceRequest(kind, gpus)


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:1000", "cuda:0,1", "cuda,cuda:1",
     "cuda:0,tensorrt:1", "cpu:0", "openvino:1", "auto:0", "cuda:0,", "cuda:\u0661"],
)  # fmt: skip
def test_an_unknown_device_is_a_one_line_error(text):
    with pytest.raises(ConfigError, match=r"is not a device: choose auto, .* cuda:1, or") as caught:
        parse_device(text)
    assert "\n" not in str(caught.value)


def test_a_gpu_may_be_named_only_once():
    with pytest.raises(ConfigError, match=r"'cuda:1,cuda:1' lists a GPU twice"):
        parse_device("cuda:1,cuda:1")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", (0, 1, 2)),
        ("cuda", (0, 1, 2)),
        ("tensorrt", (0, 1, 2)),
        ("cuda:1", (1,)),
        ("cuda:2,cuda:0", (2, 0)),
        ("cpu", ()),
        ("openvino", ()),
    ],
)
def test_a_request_uses_the_gpus_that_it_names_or_all(monkeypatch, asked, expected):
    monkeypatch.setattr(device, "num_gpus", lambda: 3)
    assert chosen_gpus(asked) == expected


@pytest.mark.parametrize(
    ("count", "have"), [(0, "no GPU"), (1, "one GPU, cuda:0"), (2, "2 GPUs, from cuda:0")]
)
def test_a_missing_gpu_is_refused_with_a_list_of_gpus(monkeypatch, count, have):
    monkeypatch.setattr(device, "num_gpus", lambda: count)
    with pytest.raises(
        DeviceError, match=rf"GPU 2 does not exist: this process sees {have}.*; choose .*cpu"
    ):
        chosen_gpus("cuda:0,cuda:2" if count else "cuda:2")


def test_a_session_runs_on_the_named_gpu(recorded, onnx_path, monkeypatch):
    monkeypatch.setattr(device, "num_gpus", lambda: 2)
    for asked, gpu, expected in (("cuda", None, 0), ("cuda:1", None, 1), ("cuda:0,cuda:1", 1, 1)):
        _, choice = open_session(onnx_path, device=asked, gpu=gpu)
        assert recorded.asked["providers"][0][1]["device_id"] == str(expected)
        assert (choice.gpu, choice.name) == (expected, f"cuda:{expected}")
    with pytest.raises(DeviceError, match="GPU 2 does not exist"):
        open_session(onnx_path, device="cuda:2")


def test_a_session_uses_one_gpu(onnx_path):
    with pytest.raises(
        DeviceError, match=r"`device=cuda:0,cuda:1` names several GPUs.*choose `device=cuda:0`$"
    ):
        open_session(onnx_path, device="cuda:0,cuda:1")
    with pytest.raises(DeviceError, match=r"names several GPUs"):
        device.torch_device("cuda:0,cuda:1")


@needs_no_driver
def test_a_named_gpu_without_a_driver_fails_as_cuda_does(onnx_path):
    with pytest.raises(DeviceError, match=r"CUDA does not work in onnxruntime here: the NVIDIA"):
        open_session(onnx_path, device="cuda:1")
    with pytest.raises(DeviceError, match=r"CUDA does not work in PyTorch here"):
        device.torch_device("cuda:1")


def test_a_cluster_assigns_its_own_gpus():
    with pytest.raises(DeviceError, match=r"`device=cuda:1` names GPUs of one.*`device=cuda`$"):
        cluster_device("cuda:1", 4)


def test_the_cpu_does_not_page_lock_memory(onnx_path, pt2_path, torchscript_path):
    for path in (onnx_path, pt2_path, torchscript_path):
        assert load_predictor(path, device="cpu").lock_pages(np.zeros(10, np.uint8)) is None
