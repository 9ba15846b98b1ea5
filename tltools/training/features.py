"""The outputs of frozen layers: computed once per image and cached on disk.

They are the features that a head is trained on, or the activations that fine-tuned layers take.
On the CPU and on a cluster, onnxruntime computes them, as it does in `classify`; training images
go through an int8 copy of the layers. On a GPU, PyTorch computes them, training images in fp16; on
the CPU, those of few images, in fp32. Validation and test images always get fp32 outputs, which
match those of the exported model.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tltools.atomic import atomic_path, temporary_folder
from tltools.card import Preprocessing
from tltools.data.image_ref import ImageRef
from tltools.errors import ConfigError, ParityError, TltoolsError, cause_of
from tltools.graphs.onnx_file import write_module
from tltools.graphs.precision import WEIGHT_BITS, LayerCounts, count_layers, quantize_until
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
from tltools.training.augment import UNCHANGED, View
from tltools.training.config import FeaturePrecision
from tltools.training.models import Classifier
from tltools.wording import counted, plural

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
FEW_IMAGES = 256
"""Up to so many images, PyTorch computes them on the CPU sooner than it writes the layers as ONNX
and onnxruntime calibrates an int8 copy of them (benchmarks/LOG.md)."""
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
FeatureRuntime = Literal["torch", "onnxruntime"]


class Computation(NamedTuple):
    """How the features that a head is trained on are computed."""

    precision: Precision
    runtime: FeatureRuntime
    """It computes those that the head is evaluated on as well, in fp32."""


def choose_computation(
    requested: FeaturePrecision, *, on_gpu: bool, on_cluster: bool, num_images: int
) -> Computation:
    """Choose how the features are computed that a head is trained on.

    `auto` is fp16 on a GPU; on the CPU it is int8, but fp32 for few images. On a cluster, which
    computes int8 on CPUs and fp32 on GPUs, it is fp32 if this machine has a GPU and int8 otherwise.

    Args:
        requested: The setting.
        on_gpu: Whether this machine's GPU is used.
        on_cluster: Whether a cluster computes the features.
        num_images: Number of images, each view counted.

    Raises:
        ConfigError: If the device or the cluster cannot compute that precision.
    """
    is_few = num_images <= FEW_IMAGES
    if requested == "auto" and on_cluster:
        requested = "fp32" if on_gpu else "int8"
    elif requested == "auto" and on_gpu:
        requested = "fp16"
    elif requested == "auto":
        requested = "fp32" if is_few else "int8"
    if requested == "fp16" and (on_cluster or not on_gpu):
        where = "on a cluster" if on_cluster else "on the CPU"
        raise ConfigError(f"`feature_precision=fp16` needs a local GPU; use int8 or fp32 {where}")
    if requested == "int8" and on_gpu and not on_cluster:
        raise ConfigError(
            "`feature_precision=int8` needs the CPU; use fp16 or fp32 on a GPU, or `device=cpu`"
        )
    in_torch = not on_cluster and (on_gpu or (is_few and requested == "fp32"))
    return Computation(requested, "torch" if in_torch else "onnxruntime")


def default_cache_dir() -> Path:
    """Return the default folder of cached features, in the user's cache folder."""
    return user_cache_path("tltools", appauthor=False) / "features"


class FeatureCache:
    """Outputs of frozen layers with one preprocessing, keyed by the SHA-256 of the image's bytes.

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
        runtime: FeatureRuntime = "onnxruntime",
        precision: "Precision" = "fp32",
        calibration: Sequence[str] = (),
        layers: str = "",
        view: str = "",
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
            layers: Name of the frozen layers; empty for all layers up to the head.
            view: Name of the view of each image; empty for the unchanged image.
        """
        parts = [weights_sha256, head, repr(preprocessing), str(_DECODING), runtime, precision]
        parts += [f"{WEIGHT_BITS}-bit weights"] if precision == "int8" else []
        parts += calibration
        parts += [f"layers {layers}"] if layers else []
        self.backbone = folder / _key(parts) / "backbone.onnx"
        """The int8 layers, once they have been written; the same for all views."""
        parts += [f"view {view}"] if view else []
        self.folder = folder / _key(parts)
        self.dtype = torch.float16 if layers and precision != "fp32" else torch.float32
        """Type of the outputs on disk. Activations are large, and fp16 is closer to fp32 than the
        precisions that it is used for."""

    def load(self, progress: Progress = SILENT) -> dict[str, Tensor]:
        """Return all outputs, memory-mapped, without the batch axis, by hexadecimal SHA-256.

        Damaged shards are deleted, and shards that cannot be read now are skipped, which may be
        the fault of a share or of too many open files; their outputs are computed again.

        Args:
            progress: Is warned of skipped shards.
        """
        found: dict[str, Tensor] = {}
        skipped: list[str] = []
        for path in sorted(self.folder.glob("[!.]*.safetensors")):  # skip files being written
            try:
                outputs = _read_shard(path)
                if outputs is None:
                    path.unlink(missing_ok=True)
            except (OSError, RuntimeError) as error:  # the latter from PyTorch, which maps the file
                skipped.append(f"{path.name}: {cause_of(error)}")
            else:
                found.update(outputs or {})
        if skipped:
            progress.warn(
                f"{counted(len(skipped), 'file')} of the cache {self.folder} cannot be read (first "
                f"{skipped[0]}), so the features in {plural(len(skipped), 'it', 'them')} are "
                "computed again"
            )
        return found

    def add(self, hashes: Sequence[str], features: NDArray[np.float32]) -> dict[str, Tensor]:
        """Store outputs, float32 (N, …), of the images with these SHA-256 values.

        Returns:
            The stored outputs, memory-mapped, by SHA-256.
        """
        digests = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        path = self.folder / f"{name}.safetensors"
        stored = torch.from_numpy(features)
        if self.dtype == torch.float16 and stored.half().isfinite().all():
            stored = stored.half()
        with atomic_path(path) as temporary:
            save_file({"sha256": torch.from_numpy(digests.copy()), "features": stored}, temporary)
        return dict(zip(hashes, load_file(path)["features"], strict=True))


def _read_shard(path: Path) -> dict[str, Tensor] | None:
    """Return a shard's outputs, memory-mapped, by hexadecimal SHA-256; None if it is damaged.

    Raises:
        OSError, RuntimeError: If it cannot be read now.
    """
    try:
        shard = load_file(path)
        hashes, features = shard["sha256"].numpy(), shard["features"]
    except (SafetensorError, KeyError):
        return None
    if len(hashes) != len(features):
        return None
    return dict(zip((row.tobytes().hex() for row in hashes), features, strict=True))


def _key(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def choose_calibration(paths: Sequence[Path], hashes: Sequence[str]) -> dict[str, Path]:
    """Return the images used to calibrate an int8 backbone, by their SHA-256.

    The images with the smallest hashes are chosen: this order is independent of names and classes,
    and adding or removing a few images hardly changes it.
    """
    by_hash = dict(zip(hashes, paths, strict=True))
    return {sha: by_hash[sha] for sha in sorted(by_hash)[:CALIBRATION_IMAGES]}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What the outputs of frozen layers are computed with."""

    model: Classifier
    """Run in eval mode."""
    preprocessing: Preprocessing
    cache: FeatureCache
    """Cache to read and write, created for the same layers, device, precision and calibration."""
    device: torch.device
    """Device of this machine that computes them."""
    runtime: FeatureRuntime
    """What computes them here: see `choose_computation`."""
    precision: Precision = "fp32"
    """See `choose_computation`."""
    calibration: Sequence[Path] = ()
    """Images used to calibrate an int8 copy of the layers, which is faster on the CPU; empty for
    other precisions."""
    layers: nn.Module | None = None
    """The frozen layers, which map normalized images to activations; None for the backbone."""
    view: View = UNCHANGED
    """What is done to each image."""
    cluster: RayCluster | None = None
    """A cluster whose actors compute the features of unchanged images with onnxruntime: int8 on
    CPUs, fp32 on GPUs if it has any. It is not joined if all features are cached."""
    scratch: Path | None = None
    """Folder for the layers' fp32 file, for several extractions by the same layers: PyTorch takes
    seconds to write it. None: each writes its own."""


def extract(
    paths: Sequence[Path],
    hashes: Sequence[str],
    settings: Extraction,
    *,
    progress: Progress = SILENT,
) -> list[Tensor]:
    """Return the outputs of frozen layers for all images, computing those that are not cached.

    Args:
        paths: The images.
        hashes: SHA-256 of each image's bytes, hexadecimal.
        settings: The layers, and what they are computed with.
        progress: Shows the extraction.

    Returns:
        A tensor for each image, float32 or float16, memory-mapped; in the order of `paths`.

    Raises:
        DataError: If an image cannot be read.
        ParityError: If int8 or fp16 outputs differ too much from fp32 ones on this device, or an
            actor's from this machine's.
        TltoolsError: If the cluster cannot be reached, or fails.
    """
    cache = settings.cache
    known = cache.load(progress)
    missing = {sha: path for path, sha in zip(paths, hashes, strict=True) if sha not in known}
    if known and (reused := len(set(hashes)) - len(missing)):
        images = plural(reused, "image")
        # With others to extract, their number would look as if images were lost.
        tell = progress.say if missing else progress.detail
        tell(f"Features of {reused:,} {images} come from the cache {cache.folder}")
    if missing:
        with closing(_results(missing, settings, progress)) as results:
            of = f" of {settings.view.name} images" if settings.view.name else ""
            title = f"Extracting features{of}"
            for shard, features in _in_shards(results, len(missing), title, progress):
                known |= cache.add(shard, features)
    return [known[sha] for sha in hashes]


class TorchBackbone:
    """A backbone that runs in PyTorch, on a GPU or on the CPU."""

    def __init__(
        self,
        model: Classifier,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        layers: nn.Module | None = None,
        fp16: bool = False,
    ) -> None:
        """Move the model to the device; `fp16` uses autocast, otherwise full fp32."""
        allow_tf32(False)
        if device.type != "cpu":
            # Not on the CPU: what is trained next would depend on whether the outputs were cached.
            model = model.to(device).to(memory_format=torch.channels_last)
        model.eval()
        self._layers = _Frozen(model, layers)
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
            # On a GPU, activations have the channels last.
            features = self._layers(on_device).float().cpu().contiguous().numpy()
        if self._fp16 and not np.isfinite(features).all():
            raise ParityError(f"the features overflow fp16; {_REMEDY_FP32}")
        return features

    def new_batch(self, num_images: int) -> NDArray[np.uint8]:
        """Allocate images, (N, H, W, 3): page-locked for a GPU, which reads them directly."""
        shape, on_gpu = self._preprocessing.shape(num_images), self.device != "cpu"
        return torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu).numpy()


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


def check_int8(path: Path, requested: FeaturePrecision) -> LayerCounts:
    """Return how many layers of an int8 copy of the frozen layers are computed in which precision.

    Raises:
        ParityError: If int8 was requested, and no layer is computed in it.
    """
    counts = count_layers(path)
    if requested == "int8" and not counts.num_int8:
        raise ParityError(
            f"with any of the {counts.num_float} layers in int8, the features differ too much from "
            f"fp32 ones; {_REMEDY_FP32}"
        )
    return counts


class _Frozen(nn.Module):
    """The frozen layers of a classifier and its normalization."""

    def __init__(self, model: Classifier, layers: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.layers = model.backbone if layers is None else layers

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 (N, H, W, 3), to features (N, F) or activations (N, …)."""
        return self.layers(self.model.normalized(images))


class _Viewed:
    """A backbone that sees a view of each image."""

    def __init__(self, backbone: "TorchBackbone | OnnxBackbone", view: View) -> None:
        self._backbone, self._view = backbone, view
        self.device, self.new_batch = backbone.device, backbone.new_batch

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map images, uint8 (N, H, W, 3), to the outputs of their views, (N, …)."""
        return self._backbone(self._view(images))


@contextmanager
def _backbone_file(settings: Extraction, progress: Progress) -> Iterator[Path]:
    """Yield the layers' ONNX file: int8 if there are calibration images, otherwise fp32.

    Raises:
        ParityError: If int8 outputs differ too much from fp32 ones.
    """
    int8 = settings.cache.backbone
    if settings.calibration and int8.is_file():
        yield int8
        return
    with _fp32_file(settings) as fp32:
        if not settings.calibration:
            yield fp32
            return
        _write_int8(fp32, int8, settings, progress)
    yield int8


@contextmanager
def _fp32_file(settings: Extraction) -> Iterator[Path]:
    """Yield the layers' fp32 ONNX file; write it unless the scratch folder has it."""
    given = settings.scratch
    with temporary_folder(Path(gettempdir())) if given is None else nullcontext(given) as folder:
        path = folder / "fp32.onnx"
        if not path.exists():
            frozen = _Frozen(settings.model, settings.layers).eval()
            size = settings.preprocessing.size
            write_module(frozen, path, size=size, output="features", metadata={})
        yield path


def _write_int8(fp32: Path, int8: Path, settings: Extraction, progress: Progress) -> None:
    """Write an int8 copy of the layers, and compare its outputs with those of fp32."""
    images, preprocessing = settings.calibration, settings.preprocessing

    def batches() -> Iterator[NDArray[np.uint8]]:
        with progress.bar("Calibrating int8 features", len(images)) as bar:
            for batch in decode_batches(images, preprocessing=preprocessing, batch_size=BATCH_SIZE):
                yield batch
                bar.advance(len(batch))

    few = load_few(images[:CHECK_IMAGES], preprocessing)
    reference = OnnxBackbone(fp32, preprocessing)(few)

    def check(path: Path) -> None:
        error = feature_error(OnnxBackbone(path, preprocessing)(few), reference)
        if not error <= MAX_FEATURE_ERROR:
            raise ParityError(
                f"int8 features differ from fp32 ones by {error:.1%}, more than "
                f"{MAX_FEATURE_ERROR:.0%}"
            )

    quantize_until(fp32, int8, batches(), check, may_keep_all=True, progress=progress)


_Results = Generator[tuple[Sequence[str], NDArray[np.float32]], None, None]
"""Hashes of some images, and their outputs, float32 (n, …)."""


def _results(missing: dict[str, Path], settings: Extraction, progress: Progress) -> _Results:
    """Prepare the layers; return an iterator over their outputs, computed here or on a cluster.

    `missing` are the images' paths by SHA-256.
    """
    if settings.cluster is not None:
        return _results_of_cluster(missing, settings, progress)
    if settings.runtime == "torch":
        return _results_of_torch(missing, settings)
    with _backbone_file(settings, progress) as path:
        backbone = OnnxBackbone(path, settings.preprocessing)
    return _computed_here(_Viewed(backbone, settings.view), missing, settings, BATCH_SIZE)


def _results_of_torch(missing: dict[str, Path], settings: Extraction) -> _Results:
    open_backbone = partial(
        TorchBackbone,
        settings.model,
        settings.preprocessing,
        settings.device,
        layers=settings.layers,
    )
    backbone = open_backbone(fp16=settings.precision == "fp16")
    if settings.precision == "fp16":
        few = load_few(list(missing.values())[:CHECK_IMAGES], settings.preprocessing)
        check_fp16(backbone(few), open_backbone()(few))
    viewed = _Viewed(backbone, settings.view)
    batch_size = gpu_batch_size(settings.device) if settings.device.type != "cpu" else BATCH_SIZE
    return _computed_here(viewed, missing, settings, batch_size)


def _results_of_cluster(
    missing: dict[str, Path], settings: Extraction, progress: Progress
) -> _Results:
    cluster, preprocessing = settings.cluster, settings.preprocessing
    assert cluster is not None
    with _backbone_file(settings, progress) as path:
        backbone = OnnxBackbone(path, preprocessing)
        data = path.read_bytes()
    paths = list(missing.values())
    few = load_few(paths[:PROBE_IMAGES], preprocessing)
    outputs = cluster.outputs(
        paths,
        partial(open_shared, cluster.connect().put(data), preprocessing, few, backbone(few)),
        preprocessing=preprocessing,
        batch_size=BATCH_SIZE,
        task_size=PART_SIZE,
        device="cpu" if settings.calibration else None,
    )
    return _computed_there(outputs, list(missing))


def _computed_there(
    outputs: Generator[tuple[range, NDArray[np.float32]], None, None], hashes: Sequence[str]
) -> _Results:
    with closing(outputs):
        for indices, values in outputs:
            yield [hashes[index] for index in indices], values


def _computed_here(
    backbone: Model, missing: dict[str, Path], settings: Extraction, batch_size: int
) -> _Results:
    plan = Plan("ahead", num_cores(), batch_size)
    images = [ImageRef.of_file(path, name=sha) for sha, path in missing.items()]
    results = run_images(
        backbone, images, preprocessing=settings.preprocessing, plan=plan, finish=readable
    )
    with closing(results):
        for outputs in results:
            yield [image.name for image in outputs.images], outputs.values


def _in_shards(results: _Results, total: int, title: str, progress: Progress) -> _Results:
    """Yield hashes and features, a shard at a time; an interrupt yields the partial shard first."""
    hashes: list[str] = []
    parts: list[NDArray[np.float32]] = []
    try:
        with progress.bar(title, total) as bar:
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
