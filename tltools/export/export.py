"""Export a run: write, load again with its own runtime, compare, and only then name the file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from tltools.atomic import atomic_path
from tltools.card import Card, ExportFacts, Format, Parity
from tltools.errors import ArtifactError, DataError, ParityError
from tltools.evaluate import predict
from tltools.export.formats import OPSET, SUFFIXES, set_card, write_onnx, write_torchscript
from tltools.export.parity import compare
from tltools.progress import SILENT, Progress
from tltools.runtime.device import Device
from tltools.runtime.predictor import load_predictor
from tltools.training.models import Classifier
from tltools.training.run import load_run, open_run, read_split

WRITERS: dict[str, Callable[[Classifier, Card, Path], None]] = {
    "torchscript": write_torchscript,
    "onnx": write_onnx,
}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """One verified export."""

    path: Path
    card: Card
    size_bytes: int
    replaced: bool
    """Whether an earlier export of the same run stood there."""

    @property
    def parity(self) -> Parity:
        """How far the export is from PyTorch."""
        assert self.card.export is not None
        return self.card.export.parity


def export_run(
    run: Path,
    formats: Sequence[Format],
    output: Path,
    *,
    num_pictures: int | None = None,
    device: Device = "cpu",
    progress: Progress = SILENT,
) -> Iterator[ExportResult]:
    """Export a run to `output`/RUN/RUN.PRECISION.SUFFIX, one file for each format.

    Args:
        run: The run folder.
        formats: `torchscript`, `onnx`.
        output: Where the exports go.
        num_pictures: How many pictures of the run's validation split are compared; None: all.
        device: Where both sides of the comparison run; TF32 is off.
        progress: Shows the comparison.

    Raises:
        ArtifactError: If the folder is not a run, or an export is malformed.
        DataError: If the validation pictures have gone.
        ParityError: If an export disagrees with the run.

        An export that fails leaves no file; an earlier one of its name stays as it was.
    """
    model, card = load_run(run)
    paths = _val_pictures(run, num_pictures)
    eager = open_run(run, device=device)
    reference = predict(eager, paths, progress=progress)
    for format_ in formats:
        path = output / card.run / f"{card.run}.fp32{SUFFIXES[format_]}"
        replaced = path.exists()
        progress.say(f"Exporting {card.run} to {path}" + (", replacing it" if replaced else ""))
        try:
            with atomic_path(path) as temporary:
                WRITERS[format_](model, card, temporary)
                predictor = load_predictor(temporary, device=device, tf32=False)
                parity = compare(reference, predictor, paths, progress=progress)
                facts = ExportFacts(
                    format=format_,
                    precision="fp32",
                    opset=OPSET if format_ == "onnx" else None,
                    parity=parity,
                )
                exported = msgspec.structs.replace(card, export=facts)
                _seal(temporary, exported, paths, device=device)
        except (ArtifactError, ParityError) as error:
            raise type(error)(
                f"{path} is not made: {error}; try the other --format, or other versions of torch "
                "and onnxruntime"
            ) from error
        yield ExportResult(
            path=path, card=exported, size_bytes=path.stat().st_size, replaced=replaced
        )


def _val_pictures(run: Path, num_pictures: int | None) -> list[Path]:
    frame = read_split(run)
    paths = [Path(path) for path in frame.loc[frame["split"] == "val", "path"]][:num_pictures]
    gone = [path for path in paths if not path.is_file()]
    if gone or not paths:
        what = f"{gone[0]} and {len(gone) - 1} more have gone" if gone else "it has none"
        raise DataError(
            f"run {run.name} cannot be verified on its validation pictures: {what}; an export "
            "is verified on real pictures or not made: put them back"
        )
    return paths


def _seal(path: Path, card: Card, paths: Sequence[Path], *, device: Device) -> None:
    """Put the parity figures into the file and see that they are still true of it.

    Raises:
        ParityError: If the file answers differently than before.
    """
    few = paths[:8]
    before = predict(load_predictor(path, device=device), few)
    set_card(path, card)
    sealed = load_predictor(path, device=device)
    if sealed.card != card or not np.allclose(predict(sealed, few), before, rtol=0, atol=1e-5):
        raise ParityError("the file changed its answers when its card was written")
