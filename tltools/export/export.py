"""Export a run: write, load again with its own runtime, compare, and only then name the file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tltools.atomic import atomic_path
from tltools.calibration import fit_temperature
from tltools.card import Calibration, Card, Confidence, ExportFacts, Format, Parity, Precision
from tltools.errors import ArtifactError, ConfigError, DataError, ParityError
from tltools.evaluate import predict
from tltools.export.formats import (
    SUFFIXES,
    add_probabilities,
    set_card,
    write_onnx,
    write_torchscript,
)
from tltools.export.parity import BARS, compare
from tltools.export.selftest import make_self_test
from tltools.graphs.onnx_file import OPSET
from tltools.graphs.precision import quantize_until, write_fp16
from tltools.metrics import softmax
from tltools.progress import SILENT, Progress
from tltools.run_folder import read_split
from tltools.runtime.device import Device
from tltools.runtime.pipeline import decode_batches
from tltools.runtime.predictor import (
    OnnxPredictor,
    Predictor,
    TorchScriptPredictor,
    load_predictor,
)
from tltools.runtime.selftest import replay
from tltools.training.models import Classifier
from tltools.training.run import load_run, open_run

WRITERS: dict[str, Callable[[Classifier, Card, Path], None]] = {
    "torchscript": write_torchscript,
    "onnx": write_onnx,
}
CALIBRATION_IMAGES = 128
"""Pictures that int8's ranges are taken from: more change little (benchmarks/LOG.md)."""
CALIBRATION_BATCH = 16
PROBABILITY_ATOL = 1e-5
"""How far a graph's probabilities may be from what its own logits give."""


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
    run: Path,
    formats: Sequence[Format],
    output: Path,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    calibration_images: int | None = None,
    num_pictures: int | None = None,
    device: Device = "cpu",
    progress: Progress = SILENT,
) -> Iterator[ExportResult]:
    """Export a run to `output`/RUN/RUN.PRECISION.SUFFIX, one file for each that is asked for.

    Args:
        run: The run folder.
        formats: `torchscript`, `onnx`.
        output: Where the exports go.
        precisions: `fp32`, `fp16`, `int8`; TorchScript has fp32 only.
        calibration_images: Pictures of the run's training split that int8's ranges are taken from
            and that fp16's are checked with; None: `CALIBRATION_IMAGES`.
        num_pictures: How many pictures of the run's validation split are compared; None: all.
        device: Where both sides of the comparison run; TF32 is off.
        progress: Shows the comparison.

    Raises:
        ArtifactError: If the folder is not a run, or an export is malformed.
        ConfigError: If only TorchScript is asked for, and not in fp32.
        DataError: If the pictures of the run have gone.
        ParityError: If an export misses the bar of its precision.

        An export that fails leaves no file; an earlier one of its name stays as it was.
    """
    wanted: list[tuple[Format, Precision]] = [
        (format_, precision)
        for format_ in formats
        for precision in precisions
        if precision == "fp32" or format_ == "onnx"
    ]
    if not wanted:
        raise ConfigError(
            f"TorchScript exports are fp32 only; --precision {precisions[0]} needs --format onnx"
        )
    with ExitStack() as stack:
        exporter = _Exporter(
            run,
            output,
            calibration_images or CALIBRATION_IMAGES,
            num_pictures,
            device,
            progress,
            stack=stack,
        )
        for format_, precision in wanted:
            yield exporter.export(format_, precision)


class _Exporter:
    """One run on its way to several files; what they share is made once, when it is needed."""

    def __init__(
        self,
        run: Path,
        output: Path,
        calibration_images: int,
        num_pictures: int | None,
        device: Device,
        progress: Progress,
        *,
        stack: ExitStack,
    ) -> None:
        self.model, self.card = load_run(run)
        self.folder = output / self.card.run
        self.frame = read_split(run)
        self.val = _part(self.frame, "val", run)[:num_pictures]
        self.run = run
        self.calibration_images = calibration_images
        self.device: Device = device
        self.progress = progress
        self.stack = stack
        self.paths = [Path(path) for path in self.val["path"]]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class index of each validation picture, (N,)."""
        index = {name: number for number, name in enumerate(self.card.classes)}
        return np.array([index[name] for name in self.val["class"]], dtype=np.int64)

    @cached_property
    def trained(self) -> Predictor:
        """The run's own PyTorch model."""
        return open_run(self.run, device=self.device)

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """PyTorch's logits of the validation pictures, (N, C)."""
        return predict(self.trained, self.paths, progress=self.progress)

    @cached_property
    def confidence(self) -> Confidence:
        """The run's calibration; one that was trained before there was any gets it here."""
        return self.card.confidence or fit_temperature(self.reference, self.targets)

    @cached_property
    def source(self) -> Path:
        """An fp32 ONNX file that the reduced precisions are made from; goes when all are done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix=".source.", suffix=".tmp", dir=self.folder)
        path = Path(self.stack.enter_context(temporary)) / "fp32.onnx"
        WRITERS["onnx"](self.model, self.card, path)
        return path

    @cached_property
    def calibration(self) -> list[Path]:
        """Pictures of the training split, from all classes alike as far as they go."""
        frame = _part(self.frame, "train", self.run)
        shuffled = frame.sample(frac=1.0, random_state=0)
        rank = shuffled.groupby("class").cumcount()
        chosen = shuffled.loc[rank.sort_values(kind="stable").index[: self.calibration_images]]
        return [Path(path) for path in chosen["path"]]

    def export(self, format_: Format, precision: Precision) -> ExportResult:
        """Write one file, verify it and give it its name."""
        path = self.folder / f"{self.card.run}.{precision}{SUFFIXES[format_]}"
        replaced = path.exists()
        self.progress.say(
            f"Exporting {self.card.run} to {path}" + (", replacing it" if replaced else "")
        )
        try:
            with atomic_path(path) as temporary:
                facts = self._write(format_, precision, temporary)
                exported = msgspec.structs.replace(
                    self.card, confidence=self.confidence, export=facts
                )
                _seal(temporary, exported, self.paths, device=self.device)
        except (ArtifactError, ParityError) as error:
            other = "--format" if precision == "fp32" else "--precision"
            raise type(error)(
                f"{path} is not made: {error}; try the other {other}, or other versions of torch "
                "and onnxruntime"
            ) from error
        return ExportResult(
            path=path, card=exported, size_bytes=path.stat().st_size, replaced=replaced
        )

    def _write(self, format_: Format, precision: Precision, path: Path) -> ExportFacts:
        """Write and compare one file; its card is still the run's."""
        calibration: Calibration | None = None
        kept: list[str] = []
        passed: list[Parity] = []

        def check(tried: Path) -> None:
            passed.append(self._compare(tried, precision))

        if precision == "int8":
            calibration = Calibration(method="MinMax", num_pictures=len(self.calibration))
            kept = quantize_until(
                self.source, path, self._calibration_batches(), check, progress=self.progress
            )
        else:
            if precision == "fp16":
                kept = write_fp16(self.source, path, self._calibration_batches())
            else:
                WRITERS[format_](self.model, self.card, path)
            check(path)
        exported = load_predictor(path, device=self.device, self_test=False)
        return ExportFacts(
            format=format_,
            precision=precision,
            opset=OPSET if format_ == "onnx" else None,
            parity=passed[-1],
            calibration=calibration,
            float_layers=tuple(kept),
            self_test=make_self_test(
                self.trained,
                exported,
                precision=precision,
                num_parameters=sum(one.numel() for one in self.model.parameters()),
            ),
        )

    def _compare(self, path: Path, precision: Precision) -> Parity:
        predictor = load_predictor(path, device=self.device, self_test=False)
        return compare(
            self.reference,
            predictor,
            self.paths,
            self.targets,
            bar=BARS[precision],
            progress=self.progress,
        )

    def _calibration_batches(self) -> Iterator[NDArray[np.uint8]]:
        rules = self.card.preprocessing
        with self.progress.bar("Calibrating", len(self.calibration)) as bar:
            for images in decode_batches(
                self.calibration, preprocessing=rules, batch_size=CALIBRATION_BATCH
            ):
                yield images
                bar.advance(len(images))


def _part(frame: pd.DataFrame, split: str, run: Path) -> pd.DataFrame:
    """Return the rows of a split, whose pictures must all be there.

    Raises:
        DataError: If it has no picture, or some have gone.
    """
    part = frame.loc[frame["split"] == split]
    gone = [path for path in part["path"] if not Path(path).is_file()]
    if gone or not len(part):
        name = {"val": "validation", "train": "training"}[split]
        what = f"{gone[0]} and {len(gone) - 1} more have gone" if gone else "it has none"
        need = "verified" if split == "val" else "calibrated"
        raise DataError(
            f"run {run.name} cannot be {need} on its {name} pictures: {what}; an export "
            f"is {need} on real pictures or not made: put them back"
        )
    return part


def _seal(path: Path, card: Card, paths: Sequence[Path], *, device: Device) -> None:
    """Put probabilities and the whole card into the file; see that it is what it was, and right.

    Raises:
        ParityError: If the file answers differently than before, fails its self-test, or gives
            probabilities that are not softmax(logits / temperature).
    """
    few = paths[:8]
    before = predict(load_predictor(path, device=device, self_test=False), few)
    add_probabilities(path, card.temperature)
    set_card(path, card)
    sealed = load_predictor(path, device=device, self_test=False)
    if sealed.card != card or not np.allclose(predict(sealed, few), before, rtol=0, atol=1e-5):
        raise ParityError("the file changed its answers when its card was written")
    _check_probabilities(sealed, card, few)
    replay(sealed, path)


def _check_probabilities(sealed: Predictor, card: Card, paths: Sequence[Path]) -> None:
    assert isinstance(sealed, OnnxPredictor | TorchScriptPredictor)
    rules = card.preprocessing
    (images,) = decode_batches(paths, preprocessing=rules, batch_size=len(paths))
    expected = softmax(sealed(images), temperature=card.temperature)
    difference = float(np.abs(sealed.probabilities(images) - expected).max())
    if not difference <= PROBABILITY_ATOL:
        raise ParityError(
            f"its probabilities differ from softmax(logits / {card.temperature:g}) by "
            f"{difference:.1e}, more than {PROBABILITY_ATOL:g}"
        )
