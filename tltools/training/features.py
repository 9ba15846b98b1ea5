"""The frozen backbone's features: computed once per image, kept on disk.

On the CPU, and on a cluster, they are computed by onnxruntime, like everything that is
classified, for training images with an int8 copy of the backbone. On a GPU they are computed by
PyTorch, for training images in fp16. What a head is judged by, its validation and test images,
gets fp32 features, which are those of the exported model.
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
from tltools.runtime.backbone import (
    MAX_FEATURE_ERROR,
    OnnxBackbone,
    feature_error,
    load_few,
    open_shared,
)
from tltools.runtime.device import allow_tf32, free_gpu_memory
from tltools.runtime.pipeline import Model, decode_batches, readable
from tltools.training.config import FeaturePrecision
from tltools.training.models import Classifier

BATCH_SIZE = 16
"""Images per forward pass; larger ones are no faster on a CPU (benchmarks/LOG.md)."""
GPU_BATCH_SIZE = 128
"""Images per forward pass on a GPU, if `GPU_IMAGE_BYTES` for each fit into half of its memory."""
GPU_IMAGE_BYTES = 64 * 2**20
"""What an image in a batch may take: VGG16, the largest backbone, has two maps of 13 MB each at a
time in fp32, and cuDNN needs room to work."""
CALIBRATION_IMAGES = 64
"""Training images that int8's ranges are taken from (benchmarks/LOG.md)."""
CHECK_IMAGES = 16
PART_SIZE = 32
"""Most images that an actor answers together: some seconds' work on few cores."""
PROBE_IMAGES = 2
"""Images that each actor's features are compared with this machine's on."""
SHARD_SIZE = 512
"""Images per file of the cache: what an interrupted extraction loses at most."""
_REMEDY_FP32 = "use --feature-precision fp32"
_DECODING = 1
"""Part of the key; goes up when `load_image` changes the pixels that it returns."""


Precision = Literal["fp32", "fp16", "int8"]
"""In which features are computed; they are kept as float32."""


def choose_precision(requested: FeaturePrecision, *, on_gpu: bool, on_cluster: bool) -> Precision:
    """Choose the precision of the features that a head is trained on.

    `auto` is fp16 on a GPU and int8 on the CPU. A cluster, which computes int8 on CPUs and fp32 on
    GPUs, gets the one that suits this machine.

    Raises:
        ConfigError: If what is to compute the features has no such precision.
    """
    if requested == "auto":
        if not on_gpu:
            return "int8"
        return "fp32" if on_cluster else "fp16"
    if requested == "fp16" and (on_cluster or not on_gpu):
        where = "on a cluster" if on_cluster else "on the CPU"
        raise ConfigError(
            f"--feature-precision fp16 needs a GPU of this machine; use int8 or fp32 {where}"
        )
    if requested == "int8" and on_gpu and not on_cluster:
        raise ConfigError(
            "--feature-precision int8 is for the CPU; use fp16 or fp32 on a GPU, or --device cpu"
        )
    return requested


def default_cache_dir() -> Path:
    """Return where features are kept when nobody says otherwise: the user's cache folder."""
    return user_cache_path("tltools", appauthor=False) / "features"


class FeatureCache:
    """Features of one backbone under one preprocessing, by the SHA-256 of the image's bytes.

    A folder of shards that are written once and never changed; its name is a hash of all that
    the features depend on. Two processes may use one cache at a time.
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
        """Open or make the cache.

        Args:
            folder: Parent of all caches.
            weights_sha256: Of the backbone's weights file.
            head: The backbone's head whose input the features are.
            preprocessing: What the images go through before the backbone.
            runtime: What computes them.
            precision: In which they are computed.
            calibration: SHA-256 of the images that an int8 backbone is calibrated on.
        """
        parts = [weights_sha256, head, repr(preprocessing), str(_DECODING), runtime, precision]
        parts += calibration
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.folder = folder / key[:16]
        self.backbone = self.folder / "backbone.onnx"
        """The int8 backbone, once it has been made."""

    def load(self) -> dict[str, NDArray[np.float32]]:
        """Return all features, float32 (F,), by hexadecimal SHA-256.

        A shard that cannot be read is removed: its features are computed again.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for path in sorted(self.folder.glob("[!.]*.safetensors")):  # not those being written
            try:
                shard = load_file(path)
                hashes, features = shard["sha256"], shard["features"]
            except (SafetensorError, KeyError, OSError):
                path.unlink(missing_ok=True)
                continue
            found.update(zip((row.tobytes().hex() for row in hashes), features, strict=True))
        return found

    def add(self, hashes: Sequence[str], features: NDArray[np.float32]) -> None:
        """Keep features, float32 (N, F), of the images with these SHA-256 values."""
        digests = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        with atomic_path(self.folder / f"{name}.safetensors") as temporary:
            save_file({"sha256": digests.copy(), "features": features}, temporary)


def choose_calibration(paths: Sequence[Path], hashes: Sequence[str]) -> dict[str, Path]:
    """Return the images that an int8 backbone is calibrated on, by their SHA-256.

    Those with the smallest hashes: an order that has nothing to do with names and classes, and
    that few images more or less hardly change.
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
    """Return the backbone's features of all images, from the cache where it has them.

    Args:
        model: Its backbone is used, in eval mode.
        paths: The images.
        hashes: SHA-256 of each image's bytes, hexadecimal.
        preprocessing: Size and resize rule.
        cache: Where features come from and go to; made for the same device, precision and
            calibration.
        device: Where the backbone runs: on the CPU in onnxruntime, on a GPU in PyTorch.
        precision: See `choose_precision`.
        calibration: Images to make an int8 copy of the backbone with, which is faster on the CPU;
            none for other precisions.
        remote: A cluster whose actors compute the features, in onnxruntime: int8 ones on CPUs,
            fp32 ones on its GPUs if it has some. It is not joined where there is nothing to do.
        progress: Shows the extraction.

    Returns:
        Float32 (N, F), in the order of `paths`.

    Raises:
        DataError: If an image cannot be read.
        ParityError: If int8 or fp16 features are too far from fp32 ones on this device, or an
            actor's features from this machine's.
        TltoolsError: If the cluster cannot be reached, or gives up.
    """
    known = cache.load()
    missing = {sha: path for path, sha in zip(paths, hashes, strict=True) if sha not in known}
    if known and (reused := len(set(hashes)) - len(missing)):
        progress.say(f"Features of {reused} images come from the cache {cache.folder}")
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
    """The backbone in PyTorch, on a GPU."""

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        fp16: bool = False,
    ) -> None:
        """Move the model to the device; `fp16` computes with autocast, otherwise in full fp32."""
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
            raise ParityError(f"features are too large for fp16; {_REMEDY_FP32}")
        return features

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3), in memory that the GPU reads by itself."""
        shape = self._preprocessing.shape(num_images)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def gpu_batch_size(device: torch.device) -> int:
    """Return how many images a GPU takes at once: fewer than `GPU_BATCH_SIZE` if it is small."""
    room = free_gpu_memory(device) // (2 * GPU_IMAGE_BYTES)
    return min(GPU_BATCH_SIZE, 2 ** max(0, room.bit_length() - 1))


def check_fp16(features: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """Compare features in fp16 with those in fp32, both float32 (N, F).

    Raises:
        ParityError: If they are further off than `MAX_FEATURE_ERROR`.
    """
    error = feature_error(features, right)
    if not error <= MAX_FEATURE_ERROR:
        raise ParityError(
            f"fp16 features are {error:.1%} off, more than {MAX_FEATURE_ERROR:.0%}; {_REMEDY_FP32}"
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
    """Yield the backbone's ONNX file; int8 if there are images to calibrate it on, else fp32.

    Raises:
        ParityError: If int8 features are too far from fp32 ones.
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
                    f"int8 features are {error:.1%} off, more than {MAX_FEATURE_ERROR:.0%}"
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
    """Prepare the backbone; return what computes features with it, here or on a cluster.

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
    """Yield hashes and features, a shard at a time; what is done when interrupted comes last."""
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
