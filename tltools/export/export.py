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
import torch
from numpy.typing import NDArray

from tltools.atomic import atomic_path
from tltools.calibration import fit_temperature
from tltools.card import (
    Calibration,
    Card,
    Confidence,
    ExportFacts,
    Format,
    Parity,
    Precision,
    Verified,
)
from tltools.errors import ArtifactError, ConfigError, DataError, DeviceError, ParityError
from tltools.evaluate import predict
from tltools.export.formats import (
    SUFFIXES,
    add_probabilities,
    set_card,
    write_onnx,
    write_torchscript,
    write_torchscript_fp16,
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
from tltools.runtime.predictor import ExportPredictor, Predictor, load_predictor
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
CPU_PICTURES = 256
"""Pictures that are compared on the CPU as well where a GPU has compared all."""
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
    run: Path,
    formats: Sequence[Format],
    output: Path,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    calibration_images: int | None = None,
    num_pictures: int | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Iterator[ExportResult]:
    """Export a run to `output`/RUN/RUN.PRECISION.SUFFIX, one file for each that is asked for.

    Args:
        run: The run folder.
        formats: `torchscript`, `onnx`.
        output: Where the exports go.
        precisions: `fp32`, `fp16`, `int8`; TorchScript has no int8, and fp16 with a GPU only.
        calibration_images: Pictures of the run's training split that int8's ranges are taken from
            and that fp16's are checked with; None: `CALIBRATION_IMAGES`.
        num_pictures: How many pictures of the run's validation split are compared; None: all.
        device: Where both sides of the comparison and the calibration run; TF32 is off. What is
            verified on a GPU is verified on the CPU too, and int8 on the CPU alone.
        progress: Shows the comparison.

    Raises:
        ArtifactError: If the folder is not a run, or an export is malformed.
        ConfigError: If only TorchScript is asked for, and only in int8.
        DataError: If the pictures of the run have gone.
        DeviceError: If the device is not usable here, or cannot run an export.
        ParityError: If an export misses the bar of its precision.

        An export that fails leaves no file; an earlier one of its name stays as it was.
    """
    wanted: list[tuple[Format, Precision]] = [
        (format_, precision)
        for format_ in formats
        for precision in precisions
        if precision != "int8" or format_ == "onnx"
    ]
    if not wanted:
        raise ConfigError(
            "TorchScript exports are fp32 or fp16; --precision int8 needs --format onnx"
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
            refusal = exporter.refusal(format_, precision)
            if refusal and len(wanted) == 1:
                raise DeviceError(refusal)
            if refusal:
                progress.say(refusal)
            else:
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
        self.trained: Predictor = open_run(run, device=device)
        self.progress = progress
        self.stack = stack
        self.paths = [Path(path) for path in self.val["path"]]

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class index of each validation picture, (N,)."""
        index = {name: number for number, name in enumerate(self.card.classes)}
        return np.array([index[name] for name in self.val["class"]], dtype=np.int64)

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

    def refusal(self, format_: Format, precision: Precision) -> str | None:
        """Return why a file cannot be made and verified here; None if it can."""
        if _is_for_gpus(format_, precision) and self.trained.device == "cpu":
            return (
                "TorchScript in fp16 is for GPUs and is verified on one, and the device is the CPU "
                f"({self.trained.choice.reason}); export it where there is a GPU, or take --format "
                "onnx"
            )
        return None

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
                gpu_only = _is_for_gpus(format_, precision)
                _seal(temporary, exported, self.paths, device=self.device if gpu_only else "cpu")
                if facts.verified[0].device != "cpu":
                    load_predictor(temporary, device=self.device)  # replays the self-test there
        except (ArtifactError, ParityError) as error:
            other = "--format" if precision == "fp32" else "--precision"
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

    def _write(self, format_: Format, precision: Precision, path: Path) -> ExportFacts:
        """Write and compare one file; its card is still the run's."""
        calibration: Calibration | None = None
        kept: list[str] = []
        passed: list[_Passed] = []

        def check(tried: Path) -> None:
            passed.append(self._verify(tried, format_, precision))

        if precision == "int8":
            self._tell_int8()
            calibration = Calibration(method="MinMax", num_pictures=len(self.calibration))
            kept = quantize_until(
                self.source,
                path,
                self._calibration_batches(),
                check,
                device=self.device,
                progress=self.progress,
            )
        else:
            kept = self._write_float(format_, precision, path)
            check(path)
        predictor, verified = passed[-1]
        return ExportFacts(
            format=format_,
            precision=precision,
            opset=OPSET if format_ == "onnx" else None,
            parity=verified[0].parity,
            verified=verified,
            fp16_exercised=predictor.device != "cpu" if precision == "fp16" else None,
            calibration=calibration,
            float_layers=tuple(kept),
            self_test=make_self_test(
                self.trained,
                predictor,
                precision=precision,
                num_parameters=sum(one.numel() for one in self.model.parameters()),
            ),
        )

    def _write_float(self, format_: Format, precision: Precision, path: Path) -> list[str]:
        """Write an fp32 or fp16 file; return the nodes that stay fp32 in an fp16 one."""
        if precision == "fp32":
            WRITERS[format_](self.model, self.card, path)
        elif format_ == "onnx":
            batches = self._calibration_batches()
            return write_fp16(self.source, path, batches, device=self.device)
        else:
            device = torch.device(self.trained.choice.name)
            write_torchscript_fp16(self.model, self.card, path, device=device)
        return []

    def _verify(self, path: Path, format_: Format, precision: Precision) -> "_Passed":
        """Compare a file with PyTorch where it will run: on the GPU, if there is one, and the CPU.

        int8 is for CPUs and TorchScript in fp16 for GPUs; they are compared there alone.

        Raises:
            ParityError: If it misses the bar of its precision on one of them.
        """
        device = "cpu" if precision == "int8" else self.device
        first = load_predictor(path, device=device, self_test=False)
        verified = [self._compare(first, precision, len(self.paths))]
        if first.device != "cpu" and not _is_for_gpus(format_, precision):
            on_cpu = load_predictor(path, device="cpu", self_test=False)
            verified.append(self._compare(on_cpu, precision, CPU_PICTURES))
        elif device != "cpu" and first.device != self.trained.device:
            self.progress.warn(
                f"{format_} {precision} is verified on the CPU alone: {first.choice.reason}"
            )
        return first, tuple(verified)

    def _compare(
        self, predictor: ExportPredictor, precision: Precision, num_pictures: int
    ) -> Verified:
        try:
            parity = compare(
                self.reference[:num_pictures],
                predictor,
                self.paths[:num_pictures],
                self.targets[:num_pictures],
                bar=BARS[precision],
                progress=self.progress,
            )
        except ParityError as error:
            if predictor.device == "cpu":
                raise
            raise ParityError(f"with {predictor.provider}, {error}") from error
        return Verified(device=predictor.choice.device, provider=predictor.provider, parity=parity)

    def _tell_int8(self) -> None:
        if self.trained.device != "cpu":
            self.progress.say(
                "int8 is verified on the CPU, for which it is meant: on the GPU it is slower than "
                "fp16 and leaves nodes on the CPU; --precision fp16 is for the GPU"
            )

    def _calibration_batches(self) -> Iterator[NDArray[np.uint8]]:
        rules = self.card.preprocessing
        with self.progress.bar("Calibrating", len(self.calibration)) as bar:
            for images in decode_batches(
                self.calibration, preprocessing=rules, batch_size=CALIBRATION_BATCH
            ):
                yield images
                bar.advance(len(images))


_Passed = tuple[ExportPredictor, tuple[Verified, ...]]
"""An export on the first device that it was verified on, and what came of it on each."""


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


def _is_for_gpus(format_: Format, precision: Precision) -> bool:
    """Tell whether CPUs are too slow for such a file to be run there."""
    return (format_, precision) == ("torchscript", "fp16")


def _seal(path: Path, card: Card, paths: Sequence[Path], *, device: Device) -> None:
    """Put probabilities and the whole card into the file; see that it is what it was, and right.

    Args:
        path: The file, which still has the run's card.
        card: The export's card.
        paths: Pictures; some are run.
        device: Where: the CPU where the file runs there, as its answers do not depend on what else
            is in the graph.

    Raises:
        ParityError: If the file answers differently than before, fails its self-test, or gives
            probabilities that are not softmax(logits / temperature).
    """
    few = paths[:8]
    before = predict(load_predictor(path, device=device, self_test=False), few)
    add_probabilities(path, card.temperature)
    set_card(path, card)
    sealed = load_predictor(path, device=device, self_test=False)
    atol = SEALED_ATOL if sealed.device == "cpu" else SEALED_GPU_ATOL
    if sealed.card != card or not np.allclose(predict(sealed, few), before, rtol=0, atol=atol):
        raise ParityError("the file changed its answers when its card was written")
    _check_probabilities(sealed, card, few, atol=atol)
    replay(sealed, path)


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
