"""The frozen backbone's features: computed once per image and cached on disk.

On the CPU and on a cluster, onnxruntime computes them, as it does in `classify`; training images
go through an int8 copy of the backbone. On a GPU, PyTorch computes them; training images in fp16.
Validation and test images always get fp32 features, which match those of the exported model.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tltools.atomic import atomic_path
from tltools.card import Preprocessing
from tltools.data.image_ref import ImageRef
from tltools.errors import ConfigError, ParityError, TltoolsError
from tltools.graphs.onnx_file import write_module
from tltools.graphs.precision import quantize_until
from tltools.parallel import num_cores
from tltools.progress import SILENT, Progress
from tltools.ray.models import RayCluster
from tltools.runtime import Plan, run_images
from tltools.runtime.device import allow_tf32, free_gpu_memory
from tltools.runtime.onnx_backbone import (
    MAX_FEATURE_ERROR,
    OnnxBackbone,
    feature_error,
    load_few,
    open_shared,
)
from tltools.runtime.pipeline import Model, decode_batches, readable
from tltools.training.config import FeaturePrecision
from tltools.training.models import Classifier
from tltools.wording import plural

BATCH_SIZE = 16
"""Images per forward pass; larger batches are no faster on a CPU (benchmarks/LOG.md)."""
GPU_BATCH_SIZE = 128
"""Images per forward pass on a GPU, if `GPU_IMAGE_BYTES` for each fit into half of its memory."""
GPU_IMAGE_BYTES = 64 * 2**20
"""Memory budget per image of a batch: VGG16, the largest backbone, holds two feature maps of 13 MB
each at a time in fp32, and cuDNN needs workspace."""
CALIBRATION_IMAGES = 64
"""Training images used to calibrate int8 (benchmarks/LOG.md)."""
CHECK_IMAGES = 16
PART_SIZE = 32
"""Maximum number of images per task of an actor: a few seconds' work on few cores."""
PROBE_IMAGES = 2
"""Images on which each actor's features are compared with this machine's."""
SHARD_SIZE = 512
"""Images per cache file: the most that an interrupted extraction loses."""
_REMEDY_FP32 = "use `feature_precision=fp32`"
_DECODING = 2
"""Part of the cache key; incremented when `load_image` returns different pixels."""


Precision = Literal["fp32", "fp16", "int8"]
"""Precision in which features are computed; they are stored as float32."""


def choose_precision(requested: FeaturePrecision, *, on_gpu: bool, on_cluster: bool) -> Precision:
    """Choose the precision of the features that a head is trained on.

    `auto` is fp16 on a GPU and int8 on the CPU. On a cluster, which computes int8 on CPUs and fp32
    on GPUs, it is fp32 if this machine has a GPU and int8 otherwise.

    Raises:
        ConfigError: If the device or the cluster cannot compute that precision.
    """
    if requested == "auto":
        if not on_gpu:
            return "int8"
        return "fp32" if on_cluster else "fp16"
    if requested == "fp16" and (on_cluster or not on_gpu):
        where = "on a cluster" if on_cluster else "on the CPU"
        raise ConfigError(f"`feature_precision=fp16` needs a local GPU; use int8 or fp32 {where}")
    if requested == "int8" and on_gpu and not on_cluster:
        raise ConfigError(
            "`feature_precision=int8` needs the CPU; use fp16 or fp32 on a GPU, or `device=cpu`"
        )
    return requested


def default_cache_dir() -> Path:
    """Return the default folder of cached features, in the user's cache folder."""
    return user_cache_path("tltools", appauthor=False) / "features"


class FeatureCache:
    """Features of one backbone with one preprocessing, keyed by the SHA-256 of the image's bytes.

    A folder of shards, each written once and never changed; the folder's name is a hash of
    everything that the features depend on. Several processes can share one cache.
    """

    def __init__(
        self,
        folder: Path,
        *,
        weights_sha256: str,
        head: str,
        preprocessing: Preprocessing,
        runtime: str = "onnxruntime",
        precision: "Precision" = "fp32",
        calibration: Sequence[str] = (),
    ) -> None:
        """Open the cache, which need not exist yet.

        Args:
            folder: Parent of all caches.
            weights_sha256: SHA-256 of the backbone's weights file.
            head: Head of the backbone that takes the features.
            preprocessing: Preprocessing of the images.
            runtime: Runtime that computes the features.
            precision: Precision in which they are computed.
            calibration: SHA-256 of the images used to calibrate an int8 backbone.
        """
        parts = [weights_sha256, head, repr(preprocessing), str(_DECODING), runtime, precision]
        parts += calibration
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.folder = folder / key[:16]
        self.backbone = self.folder / "backbone.onnx"
        """The int8 backbone, once it has been written."""

    def load(self) -> dict[str, NDArray[np.float32]]:
        """Return all features, float32 (F,), by hexadecimal SHA-256.

        Unreadable shards are deleted; their features are computed again.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for path in sorted(self.folder.glob("[!.]*.safetensors")):  # skip files being written
            try:
                shard = load_file(path)
                hashes, features = shard["sha256"], shard["features"]
            except (SafetensorError, KeyError, OSError):
                path.unlink(missing_ok=True)
                continue
            found.update(zip((row.tobytes().hex() for row in hashes), features, strict=True))
        return found

    def add(self, hashes: Sequence[str], features: NDArray[np.float32]) -> None:
        """Store features, float32 (N, F), of the images with these SHA-256 values."""
        digests = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        with atomic_path(self.folder / f"{name}.safetensors") as temporary:
            save_file({"sha256": digests.copy(), "features": features}, temporary)


def choose_calibration(paths: Sequence[Path], hashes: Sequence[str]) -> dict[str, Path]:
    """Return the images used to calibrate an int8 backbone, by their SHA-256.

    The images with the smallest hashes are chosen: this order is independent of names and classes,
    and adding or removing a few images hardly changes it.
    """
    by_hash = dict(zip(hashes, paths, strict=True))
    return {sha: by_hash[sha] for sha in sorted(by_hash)[:CALIBRATION_IMAGES]}


def extract_features(
    model: Classifier,
    paths: Sequence[Path],
    hashes: Sequence[str],
    *,
    preprocessing: Preprocessing,
    cache: FeatureCache,
    device: torch.device,
    precision: Precision = "fp32",
    calibration: Sequence[Path] = (),
    remote: RayCluster | None = None,
    progress: Progress = SILENT,
) -> NDArray[np.float32]:
    """Return the backbone's features of all images, computing those that are not cached.

    Args:
        model: Classifier whose backbone is run in eval mode.
        paths: The images.
        hashes: SHA-256 of each image's bytes, hexadecimal.
        preprocessing: Size and resize rule.
        cache: Cache to read and write, created for the same device, precision and calibration.
        device: Device that runs the backbone: the CPU uses onnxruntime, a GPU uses PyTorch.
        precision: See `choose_precision`.
        calibration: Images used to calibrate an int8 copy of the backbone, which is faster on the
            CPU; empty for other precisions.
        remote: A cluster whose actors compute the features with onnxruntime: int8 on CPUs, fp32
            on GPUs if it has any. It is not joined if all features are cached.
        progress: Shows the extraction.

    Returns:
        Float32 (N, F), in the order of `paths`.

    Raises:
        DataError: If an image cannot be read.
        ParityError: If int8 or fp16 features differ too much from fp32 ones on this device, or an
            actor's features from this machine's.
        TltoolsError: If the cluster cannot be reached, or fails.
    """
    known = cache.load()
    missing = {sha: path for path, sha in zip(paths, hashes, strict=True) if sha not in known}
    if known and (reused := len(set(hashes)) - len(missing)):
        images = plural(reused, "image")
        progress.say(f"Features of {reused:,} {images} come from the cache {cache.folder}")
    if missing:
        with closing(
            _results(
                model,
                missing,
                preprocessing,
                cache,
                device,
                precision,
                calibration,
                remote,
                progress,
            )
        ) as results:
            for shard, features in _in_shards(results, len(missing), progress):
                cache.add(shard, features)
                known.update(zip(shard, features, strict=True))
    return np.stack([known[sha] for sha in hashes])


class TorchBackbone:
    """A backbone that runs in PyTorch on a GPU."""

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        fp16: bool = False,
    ) -> None:
        """Move the model to the device; `fp16` uses autocast, otherwise full fp32."""
        allow_tf32(False)
        self._model = model.to(device).to(memory_format=torch.channels_last).eval()
        self._preprocessing = preprocessing
        self._device = device
        self._fp16 = fp16
        self.device = device.type

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to features, float32 (N, F).

        Raises:
            ParityError: If a value is too large for fp16.
        """
        with torch.inference_mode(), torch.autocast(self.device, torch.float16, self._fp16):
            on_device = torch.from_numpy(images).to(self._device, non_blocking=True)
            features = self._model.features(on_device).float().cpu().numpy()
        if self._fp16 and not np.isfinite(features).all():
            raise ParityError(f"the features overflow fp16; {_REMEDY_FP32}")
        return features

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3), in page-locked memory, which the GPU reads directly."""
        shape = self._preprocessing.shape(num_images)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def gpu_batch_size(device: torch.device) -> int:
    """Return the GPU's batch size: less than `GPU_BATCH_SIZE` if its memory is small."""
    room = free_gpu_memory(device) // (2 * GPU_IMAGE_BYTES)
    return min(GPU_BATCH_SIZE, 2 ** max(0, room.bit_length() - 1))


def check_fp16(features: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """Compare features in fp16 with those in fp32, both float32 (N, F).

    Raises:
        ParityError: If the relative error exceeds `MAX_FEATURE_ERROR`.
    """
    error = feature_error(features, right)
    if not error <= MAX_FEATURE_ERROR:
        raise ParityError(
            f"fp16 features differ from fp32 ones by {error:.1%}, more than "
            f"{MAX_FEATURE_ERROR:.0%}; {_REMEDY_FP32}"
        )


class _Features(torch.nn.Module):
    """A classifier without its head."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images, uint8 (N, H, W, 3), to features, float32 (N, F)."""
        return self.model.features(images)


@contextmanager
def _backbone_file(
    model: Classifier,
    preprocessing: Preprocessing,
    cache: FeatureCache,
    calibration: Sequence[Path],
    progress: Progress,
) -> Iterator[Path]:
    """Yield the backbone's ONNX file: int8 if there are calibration images, otherwise fp32.

    Raises:
        ParityError: If int8 features differ too much from fp32 ones.
    """
    if calibration and cache.backbone.is_file():
        yield cache.backbone
        return
    with TemporaryDirectory(prefix="tltools-backbone-") as folder:
        fp32 = Path(folder) / "fp32.onnx"
        write_module(
            _Features(model).eval(), fp32, size=preprocessing.size, output="features", metadata={}
        )
        if not calibration:
            yield fp32
            return

        def batches() -> Iterator[NDArray[np.uint8]]:
            with progress.bar("Calibrating int8 features", len(calibration)) as bar:
                for images in decode_batches(
                    calibration, preprocessing=preprocessing, batch_size=BATCH_SIZE
                ):
                    yield images
                    bar.advance(len(images))

        few = load_few(calibration[:CHECK_IMAGES], preprocessing)
        reference = OnnxBackbone(fp32, preprocessing)(few)

        def check(path: Path) -> None:
            error = feature_error(OnnxBackbone(path, preprocessing)(few), reference)
            if not error <= MAX_FEATURE_ERROR:
                raise ParityError(
                    f"int8 features differ from fp32 ones by {error:.1%}, more than "
                    f"{MAX_FEATURE_ERROR:.0%}"
                )

        quantize_until(fp32, cache.backbone, batches(), check, progress=progress)
    yield cache.backbone


_Results = Generator[tuple[Sequence[str], NDArray[np.float32]], None, None]
"""Hashes of some images, and their features, float32 (n, F)."""


def _results(
    model: Classifier,
    missing: dict[str, Path],
    preprocessing: Preprocessing,
    cache: FeatureCache,
    device: torch.device,
    precision: Precision,
    calibration: Sequence[Path],
    remote: RayCluster | None,
    progress: Progress,
) -> _Results:
    """Prepare the backbone; return an iterator over its features, computed here or on a cluster.

    `missing` are the images' paths by SHA-256.
    """
    paths = list(missing.values())
    if remote is None and device.type != "cpu":
        exact = TorchBackbone(model, preprocessing, device)
        batch_size = gpu_batch_size(device)
        if precision != "fp16":
            return _computed_here(exact, missing, preprocessing, batch_size)
        half = TorchBackbone(model, preprocessing, device, fp16=True)
        few = load_few(paths[:CHECK_IMAGES], preprocessing)
        check_fp16(half(few), exact(few))
        return _computed_here(half, missing, preprocessing, batch_size)
    with _backbone_file(model, preprocessing, cache, calibration, progress) as path:
        backbone = OnnxBackbone(path, preprocessing)
        data = b"" if remote is None else path.read_bytes()
    if remote is None:
        return _computed_here(backbone, missing, preprocessing, BATCH_SIZE)
    few = load_few(paths[:PROBE_IMAGES], preprocessing)
    outputs = remote.outputs(
        paths,
        partial(open_shared, remote.connect().put(data), preprocessing, few, backbone(few)),
        preprocessing=preprocessing,
        batch_size=BATCH_SIZE,
        task_size=PART_SIZE,
        device="cpu" if calibration else None,
    )
    return _computed_there(outputs, list(missing))


def _computed_there(
    outputs: Generator[tuple[range, NDArray[np.float32]], None, None], hashes: Sequence[str]
) -> _Results:
    with closing(outputs):
        for indices, values in outputs:
            yield [hashes[index] for index in indices], values


def _computed_here(
    backbone: Model, missing: dict[str, Path], preprocessing: Preprocessing, batch_size: int
) -> _Results:
    plan = Plan("ahead", num_cores(), batch_size)
    images = [ImageRef.of_file(path, name=sha) for sha, path in missing.items()]
    results = run_images(backbone, images, preprocessing=preprocessing, plan=plan, finish=readable)
    with closing(results):
        for outputs in results:
            yield [image.name for image in outputs.images], outputs.values


def _in_shards(results: _Results, total: int, progress: Progress) -> _Results:
    """Yield hashes and features, a shard at a time; an interrupt yields the partial shard first."""
    hashes: list[str] = []
    parts: list[NDArray[np.float32]] = []
    try:
        with progress.bar("Extracting features", total) as bar:
            for some, features in results:
                hashes += some
                parts.append(features)
                bar.advance(len(some))
                if len(hashes) >= SHARD_SIZE:
                    yield hashes, np.concatenate(parts)
                    hashes, parts = [], []
    except (KeyboardInterrupt, TltoolsError):
        if hashes:
            yield hashes, np.concatenate(parts)
        raise
    if hashes:
        yield hashes, np.concatenate(parts)
