import re
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from PIL import features

from tltools import __version__, doctor
from tltools.doctor import diagnose, small_model
from tltools.errors import ArtifactError, DeviceError

GPU = "onnxruntime on a GPU"


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """The checks of this machine, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        return {check.name: check for check in diagnose()}


@pytest.fixture
def no_card(monkeypatch):
    """Pretend that this machine has no NVIDIA card."""
    monkeypatch.setattr(doctor, "gpu_names", lambda: ())
    monkeypatch.setattr(doctor, "_has_nvidia_card", lambda: False)


def refuse(*_args, **_options):
    raise DeviceError("CUDA does not work in onnxruntime here: no driver; install it, or the CPU")


def pretend_requirements(monkeypatch, requirements):
    """Pretend that only these packages are installed, with these requirements."""

    def requires(package):
        if package not in requirements:
            raise PackageNotFoundError(package)
        return requirements[package]

    monkeypatch.setattr(doctor, "requires", requires)


def pretend_installed(monkeypatch, **versions):
    versions = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(
        doctor,
        "installed_versions",
        lambda packages: {name: versions[name] for name in packages if name in versions},
    )


def test_a_machine_that_runs_these_tests_has_no_failures(checks):
    assert {name for name, check in checks.items() if check.status == "fail"} == set()
    assert checks["numpy"].detail == np.__version__
    assert re.fullmatch(r"simplejpeg \d.*libjpeg-turbo \d.*", checks["JPEG decoder"].detail)
    assert "3 on CPUExecutionProvider" in checks["onnxruntime on the CPU"].detail
    assert checks["onnxruntime's usage reports"].detail.startswith("off")


def test_the_version_is_named_and_the_other_tltools_is_detected(monkeypatch):
    pretend_installed(monkeypatch, tltools_classifiers=__version__)
    assert doctor._tltools() == doctor.Check(name="tltools", status="ok", detail=__version__)
    pretend_installed(monkeypatch, tltools_classifiers=__version__, tltools="2.0.5")
    both = doctor._tltools()
    assert both.status == "warn"
    assert both.remedy.startswith("pip uninstall tltools, then install tltools-classifiers again")
    pretend_installed(monkeypatch)
    checkout = doctor._tltools()
    assert (checkout.status, checkout.remedy) == ("warn", "pip install -e . in its checkout")


def test_every_check_that_is_not_ok_says_what_to_do(checks):
    assert [check for check in checks.values() if check.status != "ok" and not check.remedy] == []


def test_a_jpeg_decoder_that_cannot_be_imported_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    check = doctor._jpeg()
    assert (check.status, check.remedy) == ("fail", "pip install --force-reinstall simplejpeg")
    assert "simplejpeg cannot be imported" in check.detail


def test_a_pillow_with_another_libjpeg_is_a_warning(monkeypatch):
    monkeypatch.setattr(features, "check_feature", lambda _name: False)
    check = doctor._jpeg()
    assert check.status == "warn"
    assert "pillow" in check.remedy


def test_a_pillow_without_jpeg_fails(monkeypatch):
    monkeypatch.setattr(features, "check_codec", lambda _name: False)
    assert doctor._jpeg().status == "fail"


def test_weights_are_looked_for_in_torchs_cache(checks, monkeypatch, tmp_path):
    missing = checks["VGG16 weights"]
    assert (missing.status, missing.remedy) == ("ok", "")  # runs and exports work without them
    assert "vgg16-397923af.pth" in missing.detail
    assert "only training needs them: tltools train --model vgg16 downloads" in missing.detail
    assert "(528 MB), or takes a file as `weights=`" in missing.detail
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg16-397923af.pth").write_bytes(b"0" * 3_000_000)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"0" * 1_000_000)
    found = {check.name: check for check in doctor._all_weights()}
    assert list(found) == ["VGG16 weights", "ResNet-18 weights", "other weights"]
    assert {check.status for check in found.values()} == {"ok"}
    assert found["VGG16 weights"].detail.endswith("vgg16-397923af.pth, 3 MB")
    assert "resnet50 (98 MB), mobilenet_v3_large (21 MB)" in found["other weights"].detail


def test_the_small_model_computes_what_the_check_expects():
    from onnx.reference import ReferenceEvaluator

    values = np.array([[[[-1, 0], [1, 2]]]], dtype=np.float32)
    (result,) = ReferenceEvaluator(small_model()).run(None, {"x": values})
    assert result.item() == 1.5


class FakeSession:
    def __init__(self, result):
        self.result = np.full((1, 1, 1, 1), result, dtype=np.float32)

    def run(self, _names, inputs):
        assert inputs["x"].ravel().tolist() == [-1, 0, 1, 2]
        return [self.result]


def pretend_session(monkeypatch, result, nodes):
    def open_fake(model, *, device, threads):
        return FakeSession(result), doctor.torch_device("cpu")

    monkeypatch.setattr(doctor, "open_session", open_fake)
    monkeypatch.setattr(doctor, "placement", lambda _session: nodes)


def test_a_gpu_that_works_is_named_with_its_nodes(monkeypatch):
    pretend_session(monkeypatch, 1.5, {"CUDAExecutionProvider": 3})
    check = doctor._onnxruntime()[1]
    assert (check.name, check.status) == (GPU, "ok")
    assert check.detail == "runs a small model correctly; nodes: 3 on CUDAExecutionProvider"


def test_a_device_that_computes_wrong_results_fails(monkeypatch):
    pretend_session(monkeypatch, 1.4, {"CUDAExecutionProvider": 3})
    (check,) = doctor._onnxruntime()
    assert check.status == "fail"
    assert "gives [1.4] for a model of three nodes whose result is 1.5" in check.detail
    assert check.remedy.startswith("update the driver")


@pytest.mark.usefixtures("no_card")
def test_having_no_gpu_is_fine():
    check = doctor._on_gpu(GPU, refuse)
    assert check.status == "ok"
    assert check.detail == (
        "no GPU, so the CPU is used (CUDA does not work in onnxruntime here: no driver)"
    )


@pytest.mark.usefixtures("no_card")
def test_a_card_without_a_driver_is_a_warning_with_the_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "_has_nvidia_card", lambda: True)
    check = doctor._on_gpu(GPU, refuse)
    assert (check.status, check.remedy) == ("warn", "install it, or the CPU")


@pytest.mark.usefixtures("no_card")
def test_a_gpu_with_a_driver_that_cannot_be_used_is_a_failure(monkeypatch):
    monkeypatch.setattr(doctor, "gpu_names", lambda: ("NVIDIA A100, 40 GB, 999.9",))
    check = doctor._on_gpu(GPU, refuse)
    assert (check.status, check.remedy) == ("fail", "install it, or the CPU")


def test_a_runtime_that_cannot_open_a_model_fails(monkeypatch):
    def broken(*_args, **_options):
        raise ArtifactError("onnxruntime cannot open the model: bad; make it again")

    monkeypatch.setattr(doctor, "open_session", broken)
    (check,) = doctor._onnxruntime()
    assert (check.status, check.remedy) == ("fail", "make it again")


def test_a_runtime_that_is_missing_fails(monkeypatch):
    def missing(*_args, **_options):
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime.capi")

    monkeypatch.setattr(doctor, "open_session", missing)
    (check,) = doctor._onnxruntime()
    assert check.detail == "cannot be tested: No module named 'onnxruntime'"
    assert check.remedy == "pip install --force-reinstall onnxruntime-gpu"


def test_a_slim_installation_without_onnx_does_not_fail(monkeypatch):
    pretend_installed(monkeypatch, onnxruntime="1.31")
    monkeypatch.setitem(sys.modules, "onnx", None)  # so that an import of it fails
    (check,) = doctor._onnxruntime()
    assert (check.status, check.remedy) == ("warn", "pip install onnx")
    assert check.detail == "not tested: the test needs onnx, which is not installed"


@pytest.mark.parametrize(
    ("vendor", "kind", "found"),
    [
        pytest.param("0x10de\n", "0x030000\n", True, id="graphics card"),
        pytest.param("0x10de\n", "0x030200\n", True, id="compute card"),
        pytest.param("0x10de\n", "0x040300\n", False, id="a card's sound"),
        pytest.param("0x1002\n", "0x030000\n", False, id="another maker"),
    ],
)
def test_an_nvidia_card_is_found_on_the_bus(tmp_path, vendor, kind, found):
    (tmp_path / "0000:00:00.0").mkdir()  # a device that says nothing
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(vendor)
    (device / "class").write_text(kind)
    assert doctor._has_nvidia_card(tmp_path) is found
    assert not doctor._has_nvidia_card(tmp_path / "missing")


@pytest.mark.parametrize(
    ("torch", "onnxruntime", "status"),
    [
        pytest.param(
            "nvidia-cuda-runtime-cu12==12.8.90; platform_system == 'Linux'",
            "nvidia-cuda-runtime-cu12~=12.0; extra == 'cuda'",
            "ok",
            id="both 12",
        ),
        pytest.param(
            "cuda-toolkit[cublas,cudart]==13.0.3; platform_system == 'Linux'",
            "nvidia-cuda-runtime~=13.0; extra == 'cuda'",
            "ok",
            id="both 13",
        ),
        pytest.param(
            "nvidia-cuda-runtime-cu12==12.8.90",
            "nvidia-cuda-runtime~=13.0; extra == 'cuda'",
            "warn",
            id="12 and 13",
        ),
        pytest.param("sympy", "nvidia-cuda-runtime~=13.0", "ok", id="torch for the CPU"),
    ],
)
def test_cuda_versions_are_compared(monkeypatch, torch, onnxruntime, status):
    pretend_requirements(
        monkeypatch, {"torch": ["filelock", torch], "onnxruntime-gpu": ["numpy", onnxruntime]}
    )
    check = doctor._cuda_versions()
    assert check.status == status
    if status == "warn":
        assert "torch brings CUDA 12, onnxruntime-gpu is built for CUDA 13" in check.detail


def test_cuda_versions_of_the_installed_packages_are_found():
    # The wheels for Linux name them; a machine with others has nothing to compare.
    if doctor._cuda_major("torch") is None or doctor._cuda_major("onnxruntime-gpu") is None:
        pytest.skip("torch or onnxruntime is not a CUDA build here")
    import torch

    assert doctor._cuda_major("torch") == int(torch.version.cuda.split(".")[0])


def test_two_onnxruntimes_at_once_are_a_warning(monkeypatch):
    pretend_installed(monkeypatch, onnxruntime="1.30", onnxruntime_gpu="1.31")
    check = doctor._onnxruntime_builds()
    assert check.status == "warn"
    assert check.detail.startswith("onnxruntime-gpu 1.31, onnxruntime 1.30: they overwrite")
    assert check.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


@pytest.mark.parametrize(
    ("installed", "status"), [({}, "fail"), ({"onnxruntime": "1"}, "ok"), ({"torch": "1"}, "fail")]
)
def test_a_missing_onnxruntime_fails(monkeypatch, installed, status):
    pretend_installed(monkeypatch, **installed)
    assert doctor._onnxruntime_builds().status == status


def test_missing_optional_and_required_packages_are_distinguished(monkeypatch):
    pretend_installed(monkeypatch, tltools="0.1", numpy="2")
    checks = {check.name: check for check in doctor._packages()}
    assert (checks["numpy"].status, checks["numpy"].detail) == ("ok", "2")
    assert (checks["pillow"].status, checks["pillow"].remedy) == ("fail", "pip install pillow")
    assert checks["torch"].status == "warn"
    assert "classify works without it" in checks["torch"].detail


def test_torch_is_not_mentioned_if_it_is_not_installed(monkeypatch):
    pretend_installed(monkeypatch)
    assert doctor._torch() == []


def test_a_torch_that_cannot_be_imported_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (check,) = doctor._torch()
    assert check.status == "fail"
    assert check.remedy == "pip install --force-reinstall torchvision"


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (None, "off: tltools sets ORT_DISABLE_TELEMETRY=1"),
        ("1", "off: ORT_DISABLE_TELEMETRY=1"),
        ("0", "as you set it: ORT_DISABLE_TELEMETRY=0"),
    ],
)
def test_usage_reporting_is_listed(monkeypatch, value, detail):
    if value is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    else:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    assert doctor._telemetry().detail == detail


def test_a_small_machine_gets_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 3 * 2**30)
    assert (doctor._memory().status, doctor._memory().detail) == ("warn", "3.0 GiB")
    monkeypatch.setattr(doctor, "memory_bytes", lambda: None)
    assert doctor._memory().status == "ok"
    monkeypatch.setattr(doctor, "MIN_DISK", 2**62)
    assert doctor._disk(tmp_path).status == "warn"


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    from tltools.training import features

    monkeypatch.setattr(features, "default_cache_dir", lambda: tmp_path / "new" / "features")
    assert doctor._feature_cache().status == "ok"
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind

    def refuse_file(*, dir):  # noqa: A002
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse_file)
    check = doctor._feature_cache()
    assert check.status == "warn"
    assert check.detail == f"{tmp_path / 'new' / 'features'} is not writable: permission denied"
