"""The frozen backbone's features: computed once per picture, kept on disk."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tltools.atomic import atomic_path
from tltools.card import Preprocessing
from tltools.data.images import load_images
from tltools.errors import DataError
from tltools.progress import SILENT, Bar, Progress
from tltools.training.models import Classifier

BATCH_SIZE = 16
"""Pictures per forward pass; larger ones are no faster on a CPU (benchmarks/LOG.md)."""
SHARD_SIZE = 512
"""Pictures per file of the cache: what an interrupted extraction loses at most."""
_DECODING = 1
"""Part of the key; goes up when `load_image` changes the pixels that it returns."""


def default_cache_dir() -> Path:
    """Return where features are kept when nobody says otherwise: the user's cache folder."""
    return user_cache_path("tltools", appauthor=False) / "features"


class FeatureCache:
    """Features of one backbone under one preprocessing, by the SHA-256 of the picture's bytes.

    A folder of shards that are written once and never changed; its name is a hash of all that
    the features depend on. Two processes may use one cache at a time.
    """

    def __init__(
        self, folder: Path, *, weights_sha256: str, head: str, preprocessing: Preprocessing
    ) -> None:
        """Open or make the cache.

        Args:
            folder: Parent of all caches.
            weights_sha256: Of the backbone's weights file.
            head: `last-layer` or `pooled`: where the features are taken.
            preprocessing: What the pictures go through before the backbone.
        """
        parts = [weights_sha256, head, repr(preprocessing), str(_DECODING)]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.folder = folder / key[:16]

    def load(self) -> dict[str, NDArray[np.float32]]:
        """Return all features, float32 (F,), by hexadecimal SHA-256.

        A shard that cannot be read is removed: its features are computed again.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = load_file(path)
                hashes, features = shard["sha256"], shard["features"]
            except (SafetensorError, KeyError, OSError):
                path.unlink(missing_ok=True)
                continue
            found.update(zip((row.tobytes().hex() for row in hashes), features, strict=True))
        return found

    def add(self, hashes: Sequence[str], features: NDArray[np.float32]) -> None:
        """Keep features, float32 (N, F), of the pictures with these SHA-256 values."""
        digests = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        with atomic_path(self.folder / f"{name}.safetensors") as temporary:
            save_file({"sha256": digests.copy(), "features": features}, temporary)


def extract_features(
    model: Classifier,
    paths: Sequence[Path],
    hashes: Sequence[str],
    *,
    preprocessing: Preprocessing,
    cache: FeatureCache,
    device: torch.device,
    progress: Progress = SILENT,
) -> NDArray[np.float32]:
    """Return the backbone's features of all pictures, from the cache where it has them.

    Args:
        model: Its backbone is used, in eval mode.
        paths: The pictures.
        hashes: SHA-256 of each picture's bytes, hexadecimal.
        preprocessing: Size and resize rule.
        cache: Where features come from and go to.
        device: Where the backbone runs.
        progress: Shows the extraction.

    Returns:
        Float32 (N, F), in the order of `paths`.

    Raises:
        DataError: If a picture cannot be read.
    """
    known = cache.load()
    missing = {sha: path for path, sha in zip(paths, hashes, strict=True) if sha not in known}
    if known and (reused := len(set(hashes)) - len(missing)):
        progress.say(f"Features of {reused} pictures come from the cache {cache.folder}")
    if missing:
        model = model.to(device).to(memory_format=torch.channels_last).eval()
        batches = load_images(
            list(missing.values()),
            size=preprocessing.size,
            resize=preprocessing.resize,
            batch_size=BATCH_SIZE,
        )
        with progress.bar("Extracting features", len(missing)) as bar:
            for shard, features in _in_shards(model, batches, list(missing), device, bar):
                cache.add(shard, features)
                known.update(zip(shard, features, strict=True))
    return np.stack([known[sha] for sha in hashes])


def _in_shards(
    model: Classifier,
    batches: Iterator[NDArray[np.uint8]],
    hashes: Sequence[str],
    device: torch.device,
    bar: Bar,
) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
    """Yield hashes and features, a shard at a time; what is done when interrupted comes last."""
    first, parts, interrupted = 0, [], None
    while True:
        try:
            images = next(batches, None)
            if images is not None:
                with torch.inference_mode():
                    features = model.features(torch.from_numpy(images).to(device))
                parts.append(features.float().cpu().numpy())
                bar.advance(len(images))
        except (KeyboardInterrupt, DataError) as error:
            images, interrupted = None, error
        num = sum(map(len, parts))
        if num and (images is None or num >= SHARD_SIZE):
            yield hashes[first : first + num], np.concatenate(parts)
            first, parts = first + num, []
        if interrupted:
            raise interrupted
        if images is None:
            return
