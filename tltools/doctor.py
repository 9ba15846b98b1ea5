"""Check what works on this machine, what does not, and how to fix it."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from tltools import __version__
from tltools.backbones import BACKBONES, COMPARED, Backbone
from tltools.backbones.backbone import IMAGENET, Download
from tltools.bench.machine import cpu_name, gpu_names, installed_versions, memory_bytes
from tltools.errors import DeviceError, TltoolsError, cause_of, problem_of
from tltools.packages import DISTRIBUTION, PYPI_NAMESAKE
from tltools.parallel import num_cores
from tltools.runtime.device import Device, open_session, placement, torch_device
from tltools.runtime.driver import PageLock, gpu_capability, gpu_memory, gpu_name, num_gpus
from tltools.runtime.model_formats import FORMATS
from tltools.wording import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

Status = Literal["ok", "warn", "fail"]

SERVING = ("numpy", "pillow", "simplejpeg", "msgspec", "rich", "typer")
"""Packages that every command needs."""
TRAINING = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "safetensors",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "matplotlib",
    "platformdirs",
)
"""Packages that `classify` does not need but other commands may."""

MIN_MEMORY = 4 * 2**30
"""Training the largest backbone, a complete VGG16, takes about 3 GiB."""
MIN_DISK = 2 * 2**30
"""It also takes 0.5 GiB each for the download, the checkpoint and two exports."""

NVIDIA = "0x10de"
"""NVIDIA's vendor ID on the PCI bus."""
DISPLAY_CLASS = "0x03"
"""Prefix of the PCI class of graphics and compute cards."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    status: Status
    """`warn`: works with limitations. `fail`: something that should work does not."""
    detail: str
    remedy: str = ""
    """How to fix it; empty if there is nothing to do."""


def diagnose() -> list[Check]:
    """Check versions, machine, devices, decoder and caches, in that order.

    This imports torch and onnxruntime, which takes some seconds. A missing GPU is not a fault.
    """
    telemetry = _telemetry()  # before onnxruntime is imported, which sets the variable
    return [
        _python(),
        _tltools(),
        *_packages(),
        _cpu(),
        _memory(),
        _disk(Path.cwd()),
        _jpeg(),
        _onnxruntime_builds(),
        telemetry,
        *_onnxruntime(),
        *_torch(),
        *map(_gpu, range(num_gpus())),
        _cuda_versions(),
    ]


# ---------------------------------------------------------------------------------- versions


def _python() -> Check:
    detail = f"{platform.python_version()} ({sys.executable})"
    unsupported = [
        one.title
        for one in FORMATS.values()
        if one.unsupported_from is not None and sys.version_info >= one.unsupported_from
    ]
    if unsupported:
        detail += f"; PyTorch does not support {' and '.join(unsupported)} on it"
    return Check(name="Python", status="ok", detail=detail)


def _tltools() -> Check:
    """Report our version; warn of the unrelated PyPI project with our name."""
    name = "tltools"
    if installed_versions([PYPI_NAMESAKE]):
        return Check(
            name=name,
            status="warn",
            detail=f"{__version__}; an unrelated package named {PYPI_NAMESAKE} is also installed "
            "and may overwrite these files",
            remedy=f"pip uninstall {PYPI_NAMESAKE}, then install {DISTRIBUTION} again (tltools "
            "docs install)",
        )
    if not installed_versions([DISTRIBUTION]):
        return Check(
            name=name,
            status="warn",
            detail=f"{__version__}, not installed as a package: tltools export --layout docker "
            "will not work",
            remedy="pip install -e . in its checkout",
        )
    return Check(name=name, status="ok", detail=__version__)


def _packages() -> list[Check]:
    versions = installed_versions((*SERVING, *TRAINING))
    checks: list[Check] = []
    for package in (*SERVING, *TRAINING):
        if package in versions:
            checks.append(Check(name=package, status="ok", detail=versions[package]))
            continue
        serving = package in SERVING
        checks.append(
            Check(
                name=package,
                status="fail" if serving else "warn",
                detail="not installed" if serving else "not installed; classify works without it",
                remedy=f"pip install {package}",
            )
        )
    return checks


def _onnxruntime_builds() -> Check:
    name = "onnxruntime build"
    versions = installed_versions(("onnxruntime-gpu", "onnxruntime"))
    detail = ", ".join(f"{package} {version}" for package, version in versions.items())
    install = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    if len(versions) == 2:
        return Check(
            name=name,
            status="warn",
            detail=f"{detail}: they overwrite each other's files, so CUDA may be missing",
            remedy=install,
        )
    if not versions:
        return Check(
            name=name, status="fail", detail="not installed", remedy="pip install onnxruntime-gpu"
        )
    if "onnxruntime" in versions:
        return Check(name=name, status="ok", detail=f"{detail}: CPU only (for a GPU: {install})")
    return Check(name=name, status="ok", detail=detail)


def _cuda_versions() -> Check:
    """Compare the CUDA version of torch with the one that onnxruntime is built for."""
    name = "CUDA versions"
    ours, theirs = _cuda_major("torch"), _cuda_major("onnxruntime-gpu")
    if ours is None or theirs is None:
        missing = [
            package
            for package, major in [("torch", ours), ("onnxruntime-gpu", theirs)]
            if major is None
        ]
        return Check(
            name=name,
            status="ok",
            detail=f"nothing to compare: {' and '.join(missing)} not installed or without CUDA",
        )
    if ours != theirs:
        return Check(
            name=name,
            status="warn",
            detail=f"torch brings CUDA {ours}, onnxruntime-gpu is built for CUDA {theirs}, "
            "so onnxruntime will not find its CUDA libraries",
            remedy='pip install --upgrade torch "onnxruntime-gpu[cuda,cudnn]"',
        )
    return Check(name=name, status="ok", detail=f"torch and onnxruntime-gpu: CUDA {ours}")


def _cuda_major(package: str) -> int | None:
    """Return the CUDA version that a package's requirements name, or None."""
    try:
        requirements = requires(package) or []
    except PackageNotFoundError:
        return None
    for requirement in requirements:
        # nvidia-cuda-runtime-cu12==12.8.90, nvidia-cuda-runtime~=13.0, cuda-toolkit[...]==13.0.3
        match = re.match(
            r"(?:nvidia-cuda-runtime(?:-cu\d+)?|cuda-toolkit(?:\[[^]]*\])?)\s*[~=]=\s*(\d+)",
            requirement,
        )
        if match:
            return int(match[1])
    return None


# ----------------------------------------------------------------------------------- machine


def _cpu() -> Check:
    cores = num_cores()
    return Check(
        name="CPU",
        status="ok",
        detail=f"{cpu_name()}, {counted(cores, 'core')} for this process",
    )


def _memory() -> Check:
    size = memory_bytes()
    if size is None:
        return Check(name="memory", status="ok", detail="unknown: the system does not report it")
    detail = f"{size / 2**30:.1f} GiB"
    if size < MIN_MEMORY:
        remedy = "train backbones with `head=pooled` and a small `batch_size=`"
        return Check(name="memory", status="warn", detail=detail, remedy=remedy)
    return Check(name="memory", status="ok", detail=detail)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < MIN_DISK:
        remedy = "free some disk space, or work in another folder"
        return Check(name="disk", status="warn", detail=detail, remedy=remedy)
    return Check(name="disk", status="ok", detail=detail)


def _jpeg() -> Check:
    """Check simplejpeg, which decodes ordinary JPEGs, and Pillow, which decodes the others."""
    from PIL import features

    name = "JPEG decoder"
    try:
        import simplejpeg
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        reason = f"simplejpeg cannot be imported: {error}"
        remedy = "pip install --force-reinstall simplejpeg"
        return Check(name=name, status="fail", detail=reason, remedy=remedy)
    if not features.check_codec("jpg"):
        remedy = "pip install --force-reinstall pillow"
        return Check(
            name=name, status="fail", detail="Pillow is built without a JPEG decoder", remedy=remedy
        )
    ours = f"simplejpeg {simplejpeg.__version__}"
    if not features.check_feature("libjpeg_turbo"):
        return Check(
            name=name,
            status="warn",
            detail=f"{ours}; Pillow has libjpeg {features.version_codec('jpg')} instead of "
            "libjpeg-turbo, so pixels of the JPEGs that it decodes may be off by one",
            remedy="pip install --force-reinstall --only-binary :all: pillow",
        )
    theirs = f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
    return Check(name=name, status="ok", detail=f"{ours}; Pillow, for rare kinds: {theirs}")


def _has_nvidia_card(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Tell whether the machine has an NVIDIA card, even without a driver (Linux only)."""
    for device in devices.glob("*"):
        try:
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY_CLASS):
            return True
    return False


# ----------------------------------------------------------------------------------- devices


def _telemetry() -> Check:
    value = os.environ.get("ORT_DISABLE_TELEMETRY")
    if value is None:
        detail = "off: tltools sets ORT_DISABLE_TELEMETRY=1"
    elif value == "1":
        detail = "off: ORT_DISABLE_TELEMETRY=1"
    else:
        detail = f"as you set it: ORT_DISABLE_TELEMETRY={value}"
    return Check(name="onnxruntime's usage reports", status="ok", detail=detail)


def _onnxruntime() -> list[Check]:
    """Run a small model on the CPU and on CUDA."""
    name = "onnxruntime on the CPU"
    try:
        detail = _run_small_model("cpu")
    except ImportError as error:
        if error.name == "onnx" and not installed_versions(["onnx"]):
            reason = "not tested: the test needs onnx, which is not installed"
            return [Check(name=name, status="warn", detail=reason, remedy="pip install onnx")]
        reason = f"cannot be tested: {error}"
        return [Check(name=name, status="fail", detail=reason, remedy=_install_again(error))]
    except TltoolsError as error:
        return [_broken(name, error, "fail")]
    checks = [Check(name=name, status="ok", detail=detail)]
    return [*checks, _on_gpu("onnxruntime on a GPU", lambda: _run_small_model("cuda"))]


def _torch() -> list[Check]:
    """Check PyTorch's device, the feature cache and the weights; nothing without torch."""
    if not installed_versions(["torch"]):
        return []
    name = "torch"
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, OSError) as error:
        reason = f"cannot be imported: {error}"
        return [Check(name=name, status="fail", detail=reason, remedy=_install_again(error))]
    return [
        _on_gpu("torch on a GPU", lambda: torch_device("cuda").reason),
        Check(
            name="TorchScript",
            status="ok",
            detail="works, but PyTorch has deprecated it: prefer ONNX or PT2 for new work",
        ),
        _feature_cache(),
        *_all_weights(),
    ]


def _on_gpu(name: str, attempt: Callable[[], str]) -> Check:
    """Try CUDA; a failure is a fault only on a machine with an NVIDIA card."""
    try:
        return Check(name=name, status="ok", detail=attempt())
    except DeviceError as error:
        if gpu_names():  # the driver works, so this should
            return _broken(name, error, "fail")
        if _has_nvidia_card():
            return _broken(name, error, "warn")
        reason = problem_of(error)
        return Check(name=name, status="ok", detail=f"no GPU, so the CPU is used ({reason})")


def _gpu(gpu: int) -> Check:
    """Describe a GPU by its device index; check whether it can read page-locked memory."""
    name = f"GPU {gpu}, `device=cuda:{gpu}`"
    try:
        major, minor = gpu_capability(gpu)
        free, total = gpu_memory(gpu)
        detail = (
            f"{gpu_name(gpu)}, compute capability {major}.{minor}, "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
    except DeviceError as error:
        return Check(
            name=name,
            status="fail",
            detail=str(error),
            remedy="check nvidia-smi, or restart the machine",
        )
    try:
        PageLock(np.zeros(2**20, dtype=np.uint8), gpu).release()
    except DeviceError as error:
        return Check(
            name=name,
            status="warn",
            detail=f"{detail}; memory cannot be page-locked, so copies to it are slow ({error})",
            remedy="raise the limit of locked memory (ulimit -l)",
        )
    return Check(name=name, status="ok", detail=f"{detail}; reads page-locked memory")


def _run_small_model(device: Device) -> str:
    """Run a model of three nodes and check its result.

    Returns:
        How many nodes each execution provider ran.

    Raises:
        DeviceError: If the device does not work, or gives a wrong result.
        ArtifactError: If onnxruntime cannot open the model.
    """
    session, choice = open_session(small_model(), device=device, threads=1)
    values = np.array([[-1, 0], [1, 2]], dtype=np.float32).reshape(1, 1, 2, 2)
    result = np.ravel(cast("NDArray[np.float32]", session.run(None, {"x": values})[0]))
    expected = 1.5  # doubled: -2, 0, 2, 4; ReLU: 0, 0, 2, 4; their mean
    if not np.allclose(result, expected):
        raise DeviceError(
            f"onnxruntime on {choice.device} gives {result} for a model of three nodes "
            f"whose result is {expected}; update the driver and onnxruntime"
        )
    nodes = ", ".join(f"{count} on {provider}" for provider, count in placement(session).items())
    return f"runs a small model correctly; nodes: {nodes}"


def small_model() -> bytes:
    """Return an ONNX model of three nodes: double, ReLU, and the mean of (2, 2)."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.full((1, 1, 1, 1), 2, dtype=np.float32)
    graph = helper.make_graph(
        nodes=[
            helper.make_node("Conv", ["x", "weight"], ["doubled"]),
            helper.make_node("Relu", ["doubled"], ["positive"]),
            helper.make_node("GlobalAveragePool", ["positive"], ["mean"]),
        ],
        name="doctor",
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        outputs=[helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 1, 1, 1])],
        initializer=[numpy_helper.from_array(weight, "weight")],
    )
    # Old versions, which every onnxruntime can read; onnx would write its newest.
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString()


# ----------------------------------------------------------------- cache and weights of training


def _feature_cache() -> Check:
    from tltools.training.features import default_cache_dir

    name = "feature cache"
    folder = default_cache_dir()
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(
            name=name,
            status="warn",
            detail=f"{folder} is not writable: {cause_of(error)}",
            remedy="make it writable, or set XDG_CACHE_HOME to a writable folder",
        )
    free = shutil.disk_usage(existing).free
    detail = f"{folder} is writable, {free / 2**30:.1f} GiB free"
    return Check(name=name, status="ok", detail=detail)


def _all_weights() -> list[Check]:
    """Check the weights of the backbones that `train` trains by default, and list the others."""
    pretrained = [one for one in BACKBONES.values() if one.pretrained is not None]
    found = {one.name: _weights(one, _default(one)) for one in pretrained}
    rest = [one.name for one in pretrained if one.name not in COMPARED and not _is_there(one)]
    checks = [check for name, check in found.items() if name not in rest]
    if rest:
        sizes = [f"{name} ({_megabytes(_default(BACKBONES[name]))})" for name in rest]
        checks.append(
            Check(
                name="other weights",
                status="ok",
                detail=f"not downloaded (done by the first training): {', '.join(sizes)}",
            )
        )
    return checks


def _default(backbone: Backbone) -> Download:
    assert backbone.pretrained is not None
    return backbone.pretrained.downloads[IMAGENET]


def _is_there(backbone: Backbone) -> bool:
    """Return whether the default weights of a backbone are in torch's cache."""
    from tltools.training.pretrained import download_path

    return download_path(_default(backbone)).is_file()


def _megabytes(download: Download) -> str:
    from tltools.training.pretrained import download_megabytes

    return f"{download_megabytes(download):.0f} MB"


def _weights(backbone: Backbone, download: Download) -> Check:
    """Look for the default weights of a backbone."""
    from tltools.training.pretrained import download_path

    name = f"{backbone.title} weights"
    path = download_path(download)
    if path.is_file():
        return Check(name=name, status="ok", detail=f"{path}, {path.stat().st_size / 1e6:.0f} MB")
    return Check(
        name=name,
        status="ok",
        detail=f"not downloaded yet ({path.name} in {path.parent}); only training needs them: "
        f"tltools train --model {backbone.name} downloads them ({_megabytes(download)}), or takes "
        "a file as `weights=`",
    )


def _broken(name: str, error: TltoolsError, status: Status) -> Check:
    """Make a check from an error, whose message has the remedy after a semicolon."""
    problem, _, remedy = str(error).partition(";")
    return Check(name=name, status=status, detail=problem, remedy=remedy.strip())


def _install_again(error: ImportError | OSError) -> str:
    module = (getattr(error, "name", None) or "torch").partition(".")[0]
    package = "onnxruntime-gpu" if module == "onnxruntime" else module
    return f"pip install --force-reinstall {package}"
