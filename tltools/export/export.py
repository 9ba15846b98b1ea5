"""Export a run: write a file, reload it in its own runtime, compare, and only then keep it."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from tltools.atomic import atomic_path
from tltools.card import Card, Distances, ExportFacts, Parity, Precision, Verified
from tltools.created import no_empty_folders
from tltools.errors import (
    ArtifactError,
    DeviceError,
    ParityError,
    TltoolsError,
    problem_of,
    raise_all,
)
from tltools.evaluate import predict
from tltools.export.parity import BARS, DISTANCE_RTOL, compare, compare_distances, wanted_images
from tltools.export.selftest import make_self_test
from tltools.export.settings import ExportSettings
from tltools.export.trained import NUM_DISTANCES, TrainedRun
from tltools.metrics import softmax
from tltools.progress import SILENT, Progress
from tltools.run_folder import load_card, other_run_of
from tltools.runtime import Device, load_predictor, read_card
from tltools.runtime.model_formats import ModelFormat, Written
from tltools.runtime.pipeline import decode_batches
from tltools.runtime.predictor import ExportPredictor
from tltools.runtime.selftest import replay

SEALED_BATCH = 8
"""Images that a sealed file is checked on, and in a batch of those whose distances are compared."""
CPU_IMAGES = 256
"""Images that are also compared on the CPU, after a GPU has compared all."""
SEALED_ATOL = 1e-5
"""Largest change of the logits when probabilities are added, and largest error of these; for
logits beyond 1, as a fraction of the largest one."""
SEALED_GPU_ATOL = 1e-3
"""The same for fp16 on a GPU, where PyTorch recompiles the graph during the first calls."""
SEALED_CPU_FP16_ATOL = 1e-2
"""The same for fp16 on the CPU, where onnxruntime computes a chain of nodes in fp32 and rounds
where it is left, now also for the distance. Largest change that was seen: 0.0022, of
EfficientNet-B0."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """One verified export."""

    path: Path
    card: Card
    size_bytes: int
    replaced: bool
    """Whether it replaced an earlier export of the same run."""

    @property
    def facts(self) -> ExportFacts:
        """The facts that the export adds to the run's card."""
        assert self.card.export is not None
        return self.card.export

    @property
    def parity(self) -> Parity:
        """Parity of the export with PyTorch."""
        return self.facts.parity


def export_run(
    run: Path, settings: ExportSettings, *, progress: Progress = SILENT
) -> Iterator[ExportResult]:
    """Export a run, one file after the other; what fails is raised once the others are written.

    Args:
        run: The run folder.
        settings: Files to write, and how to verify them.
        progress: Shows the comparison.

    Raises:
        ArtifactError: If the folder is not a run, or an export is malformed.
        ConfigError: As for `ExportSettings.files`.
        DataError: If images of the run are missing.
        DeviceError: If the device is not available, or cannot run an export.
        ParityError: If an export exceeds the parity limits of its precision.

        An export that fails leaves no file; an earlier export at its path stays unchanged.
    """
    files = settings.files()
    failures: list[TltoolsError] = []
    with ExitStack() as stack:
        stack.enter_context(no_empty_folders(settings.output / load_card(run).run))
        trained = TrainedRun(
            run,
            settings.output,
            device=settings.device,
            num_images=settings.num_images,
            calibration_images=settings.calibration_images,
            opset=settings.opset,
            progress=progress,
            stack=stack,
        )
        for format_, precision in files:
            refusal = _refusal(trained, format_, precision)
            if refusal and len(files) == 1:
                raise DeviceError(refusal)
            if refusal:
                progress.say(f"Skipped {refusal}")
            else:
                try:
                    result = _File(trained, format_, precision).export()
                except (ArtifactError, DeviceError, ParityError) as error:
                    failures.append(error)
                else:
                    yield result
    raise_all(failures)


def _refusal(trained: TrainedRun, format_: ModelFormat, precision: Precision) -> str | None:
    """Return why a file cannot be exported and verified here, after its name; None if it can."""
    if format_.is_for_gpus(precision) and trained.predictor.device == "cpu":
        return (
            f"{_file_name(trained.card, format_, precision)}: {format_.title} in {precision} runs "
            f"on GPUs and must be verified on one, but the device is the CPU: "
            f"{trained.predictor.choice.reason}; export it on a machine with a GPU, or use "
            "`formats=onnx`"
        )
    return None


def _file_name(card: Card, format_: ModelFormat, precision: Precision) -> str:
    """Return the name of a run's export."""
    return f"{card.run}.{precision}{format_.suffix}"


@dataclass
class _File:
    """An export in progress, and the results of verifying it."""

    trained: TrainedRun
    format: ModelFormat
    precision: Precision
    predictor: ExportPredictor = field(init=False)
    """The file verified last, on the first device that it was verified on."""
    verified: tuple[Verified, ...] = ()
    """Results by device."""

    def export(self) -> ExportResult:
        """Write the file, verify it, and rename it to its final path."""
        card, progress = self.trained.card, self.trained.progress
        path = self.trained.folder / _file_name(card, self.format, self.precision)
        replaced = path.exists()
        _check_owner(path, card, self.trained.run)
        progress.say(f"Exporting {card.run} to {path}" + (", replacing it" if replaced else ""))
        self._tell_int8()
        self._tell_unsupported()
        try:
            with atomic_path(path) as temporary:
                written = self.format.load_writer().write(
                    self.trained, self.precision, temporary, self.verify
                )
                exported = msgspec.structs.replace(
                    card, confidence=self.trained.confidence, export=self._facts(written)
                )
                exported = self._with_distances(temporary, exported)
                self._seal(temporary, exported)
        except (ArtifactError, ParityError) as error:
            other = "format" if self.precision == "fp32" else "precision"
            raise type(error)(
                f"{path} was not written: {error}; try another {other}, or other versions of torch "
                "and onnxruntime"
            ) from error
        except DeviceError as error:
            reason = problem_of(error)
            raise DeviceError(
                f"{path} was not written: {reason}; free memory on the device, or verify only on "
                "the CPU with `device=cpu`"
            ) from error
        return ExportResult(
            path=path, card=exported, size_bytes=path.stat().st_size, replaced=replaced
        )

    def verify(self, path: Path) -> None:
        """Compare a file with PyTorch on the CPU and, if there is one, on the GPU.

        int8 is for CPUs, and some formats in fp16 are for GPUs; these are compared only there.

        Raises:
            ParityError: If it exceeds the parity limits of its precision on one of the devices.
        """
        trained = self.trained
        device = "cpu" if self.precision == "int8" else trained.device
        self.predictor = load_predictor(path, device=device, self_test=False)
        self.verified = (self._compare(self.predictor),)
        if self.predictor.device != "cpu" and not self.format.is_for_gpus(self.precision):
            on_cpu = load_predictor(path, device="cpu", self_test=False)
            self.verified += (self._compare(on_cpu, CPU_IMAGES),)
        elif device != "cpu" and self.predictor.device != trained.predictor.device:
            trained.progress.warn(
                f"{_file_name(trained.card, self.format, self.precision)} is verified only on the "
                f"CPU: {self.predictor.choice.reason}"
            )

    def _compare(self, predictor: ExportPredictor, num_images: int | None = None) -> Verified:
        trained, bar = self.trained, BARS[self.precision]
        paths = trained.compared(wanted_images(bar))[:num_images]
        try:
            parity = compare(
                trained.reference_of(paths),
                predictor,
                paths,
                trained.targets[:num_images],
                bar=bar,
                exact=trained.exact,
                progress=trained.progress,
            )
        except ParityError as error:
            if predictor.device == "cpu":
                raise
            raise ParityError(f"with {predictor.provider}, {error}") from error
        return Verified(device=predictor.choice.device, provider=predictor.provider, parity=parity)

    def _facts(self, written: Written) -> ExportFacts:
        """Return the facts about the file for the export's card."""
        is_fp16 = self.precision == "fp16"
        return ExportFacts(
            format=self.format.name,
            precision=self.precision,
            opset=written.opset,
            parity=self.verified[0].parity,
            verified=self.verified,
            fp16_exercised=self.predictor.device != "cpu" if is_fp16 else None,
            calibration=written.calibration,
            float_layers=written.float_layers,
            self_test=make_self_test(
                self.trained.predictor,
                self.predictor,
                precision=self.precision,
                num_parameters=self.trained.num_parameters,
            ),
        )

    def _with_distances(self, path: Path, card: Card) -> Card:
        """Return the card with the facts about the output `distance`, measured on a sealed copy.

        Raises:
            ParityError: If distances in fp32 are not PyTorch's.
        """
        if self.trained.distance is None:
            return card
        distance, facts = self.trained.distance
        copy = path.with_name(f".distance.{path.name}")
        try:
            shutil.copyfile(path, copy)
            self.format.load_writer().seal(copy, _with_facts(card, facts), distance)
            predictor = load_predictor(copy, device=self._sealing_device, self_test=False)
            few = self.trained.paths[:NUM_DISTANCES]
            rules = card.preprocessing
            found = [
                predictor.distances(images)
                for images in decode_batches(few, preprocessing=rules, batch_size=SEALED_BATCH)
            ]
        finally:
            copy.unlink(missing_ok=True)
        difference = compare_distances(
            self.trained.distances, np.concatenate(found), few, precision=self.precision
        )
        return _with_facts(
            card,
            msgspec.structs.replace(
                facts,
                max_diff=difference,
                rtol=DISTANCE_RTOL[self.precision],
                num_compared=len(few),
            ),
        )

    @property
    def _sealing_device(self) -> Device:
        """Where a sealed file is checked: on the CPU, if it can run there."""
        return self.trained.device if self.format.is_for_gpus(self.precision) else "cpu"

    def _seal(self, path: Path, card: Card) -> None:
        """Add the outputs and the complete card to the file, and check that it still agrees.

        The check runs on the CPU if the file can, because its outputs there do not depend on the
        rest of the graph, except in fp16; then the self-test is replayed on the GPU, if there is
        one.

        Raises:
            ParityError: If the logits changed, the self-test fails, or the probabilities are not
                softmax(logits / temperature).
        """
        device, distance = self._sealing_device, self.trained.distance
        few = self.trained.paths[:SEALED_BATCH]
        before = predict(load_predictor(path, device=device, self_test=False), few)
        self.format.load_writer().seal(path, card, distance and distance[0])
        sealed = load_predictor(path, device=device, self_test=False)
        if sealed.device == "cpu":
            atol = SEALED_CPU_FP16_ATOL if self.precision == "fp16" else SEALED_ATOL
        else:
            atol = SEALED_GPU_ATOL
        atol *= max(1.0, float(np.abs(before).max()))
        change = float(np.abs(predict(sealed, few) - before).max())
        if sealed.card != card or not change <= atol:
            raise ParityError(
                f"writing the card into the file changed its logits by up to {change:.1e}, more "
                f"than {atol:.1e}"
            )
        _check_probabilities(sealed, card, few, atol=atol)
        replay(sealed, path)
        if self.verified[0].device != "cpu":
            load_predictor(path, device=self.trained.device)  # replays the self-test there

    def _tell_unsupported(self) -> None:
        since = self.format.unsupported_from
        if since is not None and sys.version_info >= since:
            self.trained.progress.warn(
                f"PyTorch does not support {self.format.title} on Python {since[0]}.{since[1]} and "
                "later; the file is verified here, but use `formats=pt2` or `formats=onnx` for "
                "something that lasts"
            )

    def _tell_int8(self) -> None:
        if self.precision == "int8" and self.trained.predictor.device != "cpu":
            self.trained.progress.say(
                "int8 is verified on the CPU, where it is meant to run: on a GPU it is slower than "
                "fp16 and leaves nodes on the CPU; for GPUs use `precisions=fp16`"
            )


def _with_facts(card: Card, distances: Distances) -> Card:
    assert card.export is not None
    export = msgspec.structs.replace(card.export, distances=distances)
    return msgspec.structs.replace(card, export=export)


def _check_owner(path: Path, card: Card, run: Path) -> None:
    """Check that an existing export is one of this run, or of an earlier one on the same data.

    Args:
        path: The export.
        card: The card of the run.
        run: Its folder.

    Raises:
        ArtifactError: If it is another run's.
    """
    if not path.exists():
        return
    try:
        other = read_card(path)
    except ArtifactError:  # it is damaged, and of no use to anybody
        return
    is_earlier = other.created != card.created  # a copy of the run may make it, too
    if is_earlier and (other_run := other_run_of(other, run)):
        raise ArtifactError(
            f"{path} is of {other_run}, perhaps as it was before, and not of {run}, which has the "
            "same name; choose another `output=`"
        )
    if other.owner == card.owner and other.created > card.created:
        raise ArtifactError(
            f"{path} is of a later training than {run}; delete it, or choose another `output=`"
        )
    if other.owner != card.owner:
        raise ArtifactError(
            f"{path} is an export of another run named {card.run} ({other.model}, trained on "
            f"{other.data.name}); delete it, or choose another `output=`"
        )


def _check_probabilities(
    sealed: ExportPredictor, card: Card, paths: Sequence[Path], *, atol: float
) -> None:
    rules = card.preprocessing
    (images,) = decode_batches(paths, preprocessing=rules, batch_size=len(paths))
    logits = sealed(images)
    expected = softmax(logits, temperature=card.temperature)
    # Large logits are rounded when they are divided by the temperature.
    atol += float(np.finfo(np.float32).eps * np.abs(logits).max() / card.temperature)
    difference = float(np.abs(sealed.probabilities(images) - expected).max())
    if not difference <= atol:
        raise ParityError(
            f"the probabilities differ from softmax(logits / {card.temperature:g}) by "
            f"{difference:.1e}, more than {atol:g}"
        )
