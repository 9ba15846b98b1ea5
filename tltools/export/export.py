"""Export a run: write, load again with its own runtime, compare, and only then name the file."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from tltools.atomic import atomic_path
from tltools.card import Card, ExportFacts, Parity, Precision, Verified
from tltools.errors import ArtifactError, DeviceError, ParityError
from tltools.evaluate import predict
from tltools.export.parity import BARS, compare
from tltools.export.selftest import make_self_test
from tltools.export.settings import ExportSettings
from tltools.export.trained import TrainedRun
from tltools.metrics import softmax
from tltools.progress import SILENT, Progress
from tltools.runtime import load_predictor
from tltools.runtime.formats import ModelFormat, Written
from tltools.runtime.pipeline import decode_batches
from tltools.runtime.predictor import ExportPredictor
from tltools.runtime.selftest import replay

CPU_IMAGES = 256
"""Images that are compared on the CPU as well where a GPU has compared all."""
SEALED_ATOL = 1e-5
"""How far logits may move when probabilities are added, and these be from what the logits give."""
SEALED_GPU_ATOL = 1e-3
"""The same of fp16 on a GPU, where PyTorch compiles a graph anew in the first calls."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """One verified export."""

    path: Path
    card: Card
    size_bytes: int
    replaced: bool
    """Whether an earlier export of the same run stood there."""

    @property
    def facts(self) -> ExportFacts:
        """What the export adds to the run's card."""
        assert self.card.export is not None
        return self.card.export

    @property
    def parity(self) -> Parity:
        """How far the export is from PyTorch."""
        return self.facts.parity


def export_run(
    run: Path, settings: ExportSettings, *, progress: Progress = SILENT
) -> Iterator[ExportResult]:
    """Export a run, one file after the other.

    Args:
        run: The run folder.
        settings: Which files to make, and how to verify them.
        progress: Shows the comparison.

    Raises:
        ArtifactError: If the folder is not a run, or an export is malformed.
        ConfigError: As `ExportSettings.files`.
        DataError: If the images of the run are gone.
        DeviceError: If the device is not usable here, or cannot run an export.
        ParityError: If an export misses the bar of its precision.

        An export that fails leaves no file; an earlier one of its name stays as it was.
    """
    files = settings.files()
    with ExitStack() as stack:
        trained = TrainedRun(
            run,
            settings.output,
            device=settings.device,
            num_images=settings.num_images,
            calibration_images=settings.calibration_images,
            progress=progress,
            stack=stack,
        )
        for format_, precision in files:
            refusal = _refusal(trained, format_, precision)
            if refusal and len(files) == 1:
                raise DeviceError(refusal)
            if refusal:
                progress.say(refusal)
            else:
                yield _File(trained, format_, precision).export()


def _refusal(trained: TrainedRun, format_: ModelFormat, precision: Precision) -> str | None:
    """Return why a file cannot be made and verified here; None if it can."""
    if format_.is_for_gpus(precision) and trained.predictor.device == "cpu":
        return (
            f"{format_.title} in {precision} is for GPUs and is verified on one, and the device is "
            f"the CPU ({trained.predictor.choice.reason}); export it where there is a GPU, or take "
            "--format onnx"
        )
    return None


@dataclass
class _File:
    """One file on its way; what came of verifying it."""

    trained: TrainedRun
    format: ModelFormat
    precision: Precision
    predictor: ExportPredictor = field(init=False)
    """The file that passed last, on the first device that it was verified on."""
    verified: tuple[Verified, ...] = ()
    """What came of it on each device."""

    def export(self) -> ExportResult:
        """Write the file, verify it and give it its name."""
        card, progress = self.trained.card, self.trained.progress
        path = self.trained.folder / f"{card.run}.{self.precision}{self.format.suffix}"
        replaced = path.exists()
        progress.say(f"Exporting {card.run} to {path}" + (", replacing it" if replaced else ""))
        self._tell_int8()
        try:
            with atomic_path(path) as temporary:
                written = self.format.load_writer().write(
                    self.trained, self.precision, temporary, self.verify
                )
                exported = msgspec.structs.replace(
                    card, confidence=self.trained.confidence, export=self._facts(written)
                )
                self._seal(temporary, exported)
        except (ArtifactError, ParityError) as error:
            other = "--format" if self.precision == "fp32" else "--precision"
            raise type(error)(
                f"{path} is not made: {error}; try the other {other}, or other versions of torch "
                "and onnxruntime"
            ) from error
        except DeviceError as error:
            reason = str(error).partition(";")[0]
            raise DeviceError(
                f"{path} is not made: {reason}; free some of the device's memory, or verify on the "
                "CPU alone with --device cpu"
            ) from error
        return ExportResult(
            path=path, card=exported, size_bytes=path.stat().st_size, replaced=replaced
        )

    def verify(self, path: Path) -> None:
        """Compare a file with PyTorch where it will run: on the GPU, if there is one, and the CPU.

        int8 is for CPUs and some formats in fp16 are for GPUs; they are compared there alone.

        Raises:
            ParityError: If it misses the bar of its precision on one of them.
        """
        trained = self.trained
        device = "cpu" if self.precision == "int8" else trained.device
        self.predictor = load_predictor(path, device=device, self_test=False)
        self.verified = (self._compare(self.predictor, len(trained.paths)),)
        if self.predictor.device != "cpu" and not self.format.is_for_gpus(self.precision):
            on_cpu = load_predictor(path, device="cpu", self_test=False)
            self.verified += (self._compare(on_cpu, CPU_IMAGES),)
        elif device != "cpu" and self.predictor.device != trained.predictor.device:
            trained.progress.warn(
                f"{self.format.name} {self.precision} is verified on the CPU alone: "
                f"{self.predictor.choice.reason}"
            )

    def _compare(self, predictor: ExportPredictor, num_images: int) -> Verified:
        trained = self.trained
        try:
            parity = compare(
                trained.reference[:num_images],
                predictor,
                trained.paths[:num_images],
                trained.targets[:num_images],
                bar=BARS[self.precision],
                progress=trained.progress,
            )
        except ParityError as error:
            if predictor.device == "cpu":
                raise
            raise ParityError(f"with {predictor.provider}, {error}") from error
        return Verified(device=predictor.choice.device, provider=predictor.provider, parity=parity)

    def _facts(self, written: Written) -> ExportFacts:
        """Return what the export's card says of the file."""
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

    def _seal(self, path: Path, card: Card) -> None:
        """Put probabilities and the whole card into the file; see that it answers as before.

        On the CPU where the file runs there, as its answers do not depend on what else is in the
        graph; then the self-test is replayed on the GPU, if there is one.

        Raises:
            ParityError: If the file answers differently than before, fails its self-test, or gives
                probabilities that are not softmax(logits / temperature).
        """
        device = self.trained.device if self.format.is_for_gpus(self.precision) else "cpu"
        few = self.trained.paths[:8]
        before = predict(load_predictor(path, device=device, self_test=False), few)
        self.format.load_writer().seal(path, card)
        sealed = load_predictor(path, device=device, self_test=False)
        atol = SEALED_ATOL if sealed.device == "cpu" else SEALED_GPU_ATOL
        if sealed.card != card or not np.allclose(predict(sealed, few), before, rtol=0, atol=atol):
            raise ParityError("the file changed its answers when its card was written")
        _check_probabilities(sealed, card, few, atol=atol)
        replay(sealed, path)
        if self.verified[0].device != "cpu":
            load_predictor(path, device=self.trained.device)  # replays the self-test there

    def _tell_int8(self) -> None:
        if self.precision == "int8" and self.trained.predictor.device != "cpu":
            self.trained.progress.say(
                "int8 is verified on the CPU, for which it is meant: on the GPU it is slower than "
                "fp16 and leaves nodes on the CPU; --precision fp16 is for the GPU"
            )


def _check_probabilities(
    sealed: ExportPredictor, card: Card, paths: Sequence[Path], *, atol: float
) -> None:
    rules = card.preprocessing
    (images,) = decode_batches(paths, preprocessing=rules, batch_size=len(paths))
    expected = softmax(sealed(images), temperature=card.temperature)
    difference = float(np.abs(sealed.probabilities(images) - expected).max())
    if not difference <= atol:
        raise ParityError(
            f"its probabilities differ from softmax(logits / {card.temperature:g}) by "
            f"{difference:.1e}, more than {atol:g}"
        )
