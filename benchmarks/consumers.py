"""Open every export in other runtimes, without tltools, and compare their answers with tltools'.

    python benchmarks/consumers.py --venv .venv-consumers --runs runs/cnn runs/vgg16

Prints a table for each run as Markdown. The exit code is 1 if a runtime that opens a file differs
by more than its card allows, or if one opens no file at all. Without runs, it trains a small CNN
(and VGG16, if weights are given) on the drawn sample set, or on `--data`. Images are those of a
run's validation split, decoded once by tltools: the runtimes are compared, not the decoders, but
for `predict.py`, which decodes the files itself.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from asking import MeasurementError, environment, run_limited, say
from numpy.typing import NDArray
from pages import section, with_results
from runtimes import OUTPUTS

from tltools.artifacts import PRECISIONS, open_predictor, read_artifact
from tltools.bench.machine import describe_machine
from tltools.card import Card
from tltools.data.images import load_image
from tltools.export.parity import BARS, DISTANCE_FLOOR, DISTANCE_RTOL, ParityBar
from tltools.layouts import Layout, lay_out
from tltools.metrics import softmax
from tltools.run_folder import read_split
from tltools.runtime.model_formats import format_of, is_export_name

HERE = Path(__file__).resolve().parent
BLOCK = "consumers"
BATCH_SIZE = 8
TIMEOUT_S = 3600.0
COLUMNS = ("opened by", "file", "logits", "probabilities", "distance", "labels changed", "allowed")


class Answer(NamedTuple):
    """What a model gives for N images."""

    logits: NDArray[np.float64]
    """(N, C)."""
    probabilities: NDArray[np.float64]
    """(N, C)."""
    distances: NDArray[np.float64] | None = None
    """From the training images, (N,); None if the model does not give it."""


@dataclass(frozen=True)
class Consumer:
    """A runtime that opens files of one kind."""

    title: str
    """Name in the table, before the version."""
    runtime: str
    """One of `runtimes.RUNTIMES`, `predict.py`, `triton`, or `web`."""
    suffix: str
    """Ending of the files that it opens; empty for a run folder."""
    labels_only: bool = False
    """Whether it rounds more, or decodes differently, so that logits are not judged."""
    detail: str = ""
    """What the table says after the version."""
    layout: Layout | None = None
    """The layout of the export that it opens, in place of the file."""
    needs_torch: bool = False
    """Whether it needs PyTorch, which only tltools' own environment has."""


CONSUMERS = (
    Consumer("onnxruntime", "onnxruntime", ".onnx"),
    Consumer("OpenVINO", "openvino-fp32", ".onnx", detail=", f32 hint"),
    Consumer("OpenVINO", "openvino", ".onnx", True, ", its defaults"),
    Consumer("OpenCV dnn", "opencv", ".onnx"),
    Consumer("onnxruntime-web", "web", ".onnx", detail=" in Node"),
    Consumer("Pillow", "predict.py", ".onnx", True, " and onnxruntime: predict.py", "python"),
    Consumer("tritonclient", "triton", ".onnx", layout="triton"),
    Consumer("PyTorch", "torchscript", ".pt", needs_torch=True),
    Consumer("PyTorch", "pt2", ".pt2", needs_torch=True),
    Consumer("torchvision", "torchvision", "", detail=", its vgg16", needs_torch=True),
)


@dataclass(frozen=True)
class Row:
    """How one runtime's answer for one file compares with tltools'."""

    consumer: Consumer
    file: str
    fits: bool = False
    """Whether it is within the limits."""
    logits: float | None = None
    """Largest difference; None if the file was not run."""
    probabilities: float | None = None
    distances: float | None = None
    """Largest difference of a distance, as a fraction of it; None if there is none."""
    num_changed: int | None = None
    """Number of images with another label."""
    num_images: int = 0
    failure: str = ""
    """Why the file was not opened."""
    version: str = ""
    note: str = ""
    """What the limits are, or what else was found."""

    @property
    def is_compared(self) -> bool:
        """Whether the runtime opened the file."""
        return not self.failure

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        title = f"{self.consumer.title} {self.version}".strip() + self.consumer.detail
        verdict = self.note if self.fits else f"**more than {self.note}**"
        if self.failure:
            verdict = f"cannot open it: {self.failure[:200]}"
        if self.logits is None or self.probabilities is None:
            return title, self.file, "", "", "", "", verdict
        distances = "" if self.distances is None else f"{self.distances:.1e}"
        differences = (f"{self.logits:.1e}", f"{self.probabilities:.1e}", distances)
        changed = f"{self.num_changed} of {self.num_images}"
        return title, self.file, *differences, changed, verdict


def answer_of(outputs: dict[str, Any]) -> Answer:
    """Return a model's answer by its outputs, as a runtime has written them."""
    found = (outputs.get(name) for name in OUTPUTS)
    answer = Answer(*(None if one is None else np.array(one, float) for one in found))
    if answer.distances is not None and answer.distances.shape[1:] == (1,):  # (N,) if it is older
        answer = answer._replace(distances=answer.distances[:, 0])
    return answer


def compared(row: Row, found: Answer, expected: Answer, bar: ParityBar) -> Row:
    """Complete a row with the differences of an answer from tltools' for the same images."""
    shapes, wanted = ([None if one is None else one.shape for one in x] for x in (found, expected))
    if shapes != wanted:
        return replace(row, note=f"outputs of {wanted}: {shapes}")
    logits, probs = (
        float(np.abs(mine - theirs).max())
        for mine, theirs in zip(found[:2], expected[:2], strict=True)
    )
    num_changed = int((found.logits.argmax(axis=1) != expected.logits.argmax(axis=1)).sum())
    number = len(expected.logits)
    limit, note = np.inf, f"{1 - bar.min_top1_agreement:.1%} of labels"
    if bar.atol is not None:
        limit = max(bar.atol, bar.rtol * float(np.abs(expected.logits).max()))
        note = f"{limit:.1e} in logits, no label"
    distances, far = _difference_of_distances(found, expected), 0.0
    if distances is not None:
        far = DISTANCE_RTOL["int8" if bar.atol is None else "fp32"]
        note += f", {far:.1%} of a distance"
    return replace(
        row,
        fits=bool(np.isfinite([logits, probs, distances or 0.0]).all())
        and logits <= limit
        and (distances or 0.0) <= far
        and 1 - num_changed / number >= bar.min_top1_agreement,
        logits=logits,
        probabilities=probs,
        distances=distances,
        num_changed=num_changed,
        num_images=number,
        note=note,
    )


def _difference_of_distances(found: Answer, expected: Answer) -> float | None:
    if found.distances is None or expected.distances is None:
        return None
    scale = np.maximum(expected.distances, DISTANCE_FLOOR)
    return float((np.abs(found.distances - expected.distances) / scale).max())


def bar_of(card: Card, *, labels_only: bool) -> ParityBar:
    """Return the limits that an export's card names; those of fp32 for a run.

    Args:
        card: The card of the file.
        labels_only: Do not judge logits, and let as many labels change as in fp16.
    """
    facts = card.export
    bar = BARS["fp32"]
    if facts is not None:
        parity = facts.parity
        bar = ParityBar(
            atol=parity.atol, rtol=parity.rtol, min_top1_agreement=parity.min_top1_agreement
        )
    if not labels_only:
        return bar
    smallest = min(bar.min_top1_agreement, BARS["fp16"].min_top1_agreement)
    return replace(bar, atol=None, min_top1_agreement=smallest)


class Comparison:
    """One run's exports, their images and tltools' own answers."""

    def __init__(self, run: Path, exports: Path, venv: Path, work: Path, count: int) -> None:
        """Decode `count` images of the run's validation split, and open nothing yet."""
        self.run, self.exports, self.venv, self.work = run, exports, venv, work
        self.card = read_artifact(run).card
        frame = read_split(run)
        paths = list(frame.loc[frame["split"] == "val", "path"])
        picked = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
        self.paths = [Path(paths[i]) for i in picked]
        rules = self.card.preprocessing
        self.pixels = np.stack([load_image(path, rules) for path in self.paths])
        self.smallest, self.largest = np.inf, -np.inf
        np.save(work / "images.npy", self.pixels)
        (work / "images.json").write_text(json.dumps(list(map(str, self.paths))), encoding="utf-8")

    def rows(self) -> Iterator[Row]:
        """Yield a row for each runtime and each file that it is meant for."""
        exports = self.exports / self.card.run
        files = [read_artifact(path) for path in exports.iterdir() if is_export_name(path)]
        for file in sorted(files, key=lambda one: PRECISIONS.index(one.card.export.precision)):
            yield from self._rows_of(file.path, file.path.suffix)
        if self.card.model == "vgg16":
            yield from self._rows_of(self.run, "")

    def title(self) -> str:
        """Return the title of the table; `rows` must have been yielded."""
        return (
            f"{self.card.model}, {len(self.paths)} images of {self.card.data.name}, logits from "
            f"{self.smallest:.2g} to {self.largest:.2g}"
        )

    def _rows_of(self, path: Path, suffix: str) -> Iterator[Row]:
        expected = self.expected(path)
        if not suffix:  # a checkpoint is only the network
            expected = expected._replace(distances=None)
        for consumer in CONSUMERS:
            if consumer.suffix == suffix:
                row = self.row(consumer, path, expected)
                say(" | ".join(row.cells()))
                yield row

    def expected(self, path: Path) -> Answer:
        """Return tltools' own answer, on the CPU."""
        predictor = open_predictor(path, "cpu")
        parts = [self.pixels[i : i + BATCH_SIZE] for i in range(0, len(self.pixels), BATCH_SIZE)]
        logits = np.concatenate([predictor(part) for part in parts])
        self.smallest = min(self.smallest, float(logits.min()))
        self.largest = max(self.largest, float(logits.max()))
        confidence = predictor.card.confidence
        probs = softmax(logits / (confidence.temperature if confidence else 1.0))
        facts, distances = predictor.card.export, None
        if facts is not None and facts.distances is not None:
            distances = np.concatenate([predictor.distances(part) for part in parts])
            distances = np.asarray(distances, np.float64)
        return Answer(np.asarray(logits, np.float64), np.asarray(probs, np.float64), distances)

    def row(self, consumer: Consumer, path: Path, expected: Answer) -> Row:
        """Run a file in a runtime and compare its answer."""
        card = read_artifact(path).card
        facts = card.export
        file = f"{format_of(path).title} {facts.precision}" if facts else "checkpoint"
        row = Row(consumer, file)
        try:
            answer = self.ask(consumer, self._opened(consumer, path))
        except MeasurementError as error:
            return replace(row, failure=str(error))
        row = replace(row, version=answer["version"])
        if "mismatch" in answer:
            note = answer["mismatch"] or "config.pbtxt fits the model; no server ran"
            return replace(row, fits=not answer["mismatch"], note=note)
        found = answer_of(answer)
        return compared(row, found, expected, bar_of(card, labels_only=consumer.labels_only))

    def _opened(self, consumer: Consumer, path: Path) -> Path:
        if consumer.layout:
            return lay_out(consumer.layout, path, self.work).folder
        return path

    def ask(self, consumer: Consumer, path: Path) -> dict[str, Any]:
        """Run a runtime in a process that cannot import tltools, and return its answer.

        Raises:
            MeasurementError: If it fails; the message is the last line that it printed.
        """
        answer, log = self.work / "answer.json", self.work / "log.txt"
        answer.unlink(missing_ok=True)
        images = "images.json" if consumer.runtime == "predict.py" else "images.npy"
        words = (str(path.resolve()), str(self.work / images), str(answer))
        env = environment(NODE_PATH=str(self.venv / "node_modules"))
        env.pop("PYTHONPATH")  # it names tltools
        with log.open("w", encoding="utf-8") as file:
            try:
                code = run_limited(
                    [*self._program(consumer), *words], TIMEOUT_S, env=env, stdout=file, stderr=file
                )
            except OSError as error:
                raise MeasurementError(str(error)) from error
        if code != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = f"ended with {code}" if code is not None else f"no answer in {TIMEOUT_S:.0f} s"
            raise MeasurementError(lines[-1] if lines else reason)
        return json.loads(answer.read_text(encoding="utf-8"))

    def _program(self, consumer: Consumer) -> list[str]:
        if consumer.runtime == "web":
            return [str(self.venv / "bin" / "node"), str(HERE / "runtimes.cjs")]
        python = sys.executable if consumer.needs_torch else str(self.venv / "bin" / "python")
        return [python, "-I", str(HERE / "runtimes.py"), consumer.runtime]


def problems(rows: Sequence[Row]) -> list[str]:
    """Return what makes the comparison fail: files beyond the limits, and runtimes without any."""
    found = [
        f"{' '.join(row.cells()[:2])} is beyond the limits"
        for row in rows
        if row.is_compared and not row.fits
    ]
    opened = {row.consumer for row in rows if row.is_compared}
    silent = {row.consumer: row for row in rows if row.consumer not in opened}
    return found + [f"{one.title} opens no file: {row.failure}" for one, row in silent.items()]


def prepare(options: argparse.Namespace, work: Path) -> tuple[list[Path], Path]:
    """Train the runs that are not given, and export them in every format and precision."""
    runs = [run.resolve() for run in options.runs]
    if not runs:
        data = options.data or work / "sample"
        if options.data is None:
            _tltools("sample", data)
        models = [("--model", "cnn")]
        if options.weights is not None:
            models.append(("--model", "vgg16", "--weights", options.weights))
        for words in models:
            _tltools("train", data, *words, "--run-dir", work / "runs")
        runs = sorted((work / "runs").iterdir())
    if options.exports is not None:
        return runs, options.exports
    words = ("--format", "all", "--precision", "all", "--device", "cpu")
    _tltools("export", *runs, *words, "--output", work / "exports")
    return runs, work / "exports"


def _tltools(*words: str | Path) -> None:
    command = [sys.executable, "-m", "tltools", *map(str, words)]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)


def to_markdown(tables: dict[str, Sequence[Row]]) -> str:
    """Return the tables, with the day and the machine."""
    machine = describe_machine()
    names = ("tltools", "torch", "onnxruntime-gpu")
    versions = ", ".join(f"{name} {machine.versions.get(name, '-')}" for name in names)
    day = datetime.now(UTC).date().isoformat()
    lines = [
        f"Measured on {day} by `benchmarks/consumers.py`: {machine.cores} cores of {machine.cpu}, "
        f"{versions}. Differences are the largest from tltools' own answers for the same file.",
    ]
    for title, rows in tables.items():
        lines += section(title, COLUMNS, [row.cells() for row in rows])
    return "\n\n".join(lines) + "\n"


def parser_of_options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--venv", type=Path, required=True, help="environment with the runtimes of consumers.txt")
    add("--runs", type=Path, nargs="+", default=[], help="runs; default: they are trained")
    add("--exports", type=Path, help="folder of these runs' exports; default: they are made")
    add("--data", type=Path, help="labeled images to train on; default: the sample set is drawn")
    add("--weights", type=Path, help="VGG16's weights; default: VGG16 is left out")
    add("--num-images", type=int, default=150, help="images for the CNN")
    add("--num-vgg16", type=int, default=30, help="images for VGG16")
    add("--readme", action="store_true", help="also write the tables into benchmarks/README.md")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare all runtimes, print the tables, and return the exit code."""
    options = parser_of_options().parse_args(arguments)
    venv = options.venv.resolve()
    tables: dict[str, Sequence[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="tltools-consumers-") as name:
        work = Path(name)
        runs, exports = prepare(options, work)
        for run in runs:
            model = read_artifact(run).card.model
            count = options.num_vgg16 if model == "vgg16" else options.num_images
            comparison = Comparison(run, exports, venv, work, count)
            rows = sorted(comparison.rows(), key=lambda row: CONSUMERS.index(row.consumer))
            tables[comparison.title()] = rows
    text = to_markdown(tables)
    print(text, end="")
    if options.readme:
        page = HERE / "README.md"
        page.write_text(
            with_results(page.read_text(encoding="utf-8"), text, BLOCK), encoding="utf-8"
        )
    found = problems([row for rows in tables.values() for row in rows])
    for problem in found:
        say(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
