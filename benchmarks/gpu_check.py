"""Measure a machine with a GPU: its limits, tltools, the fastest loops, and their ratios.

    python benchmarks/gpu_check.py --images FOLDER --cnn cnn.fp32.onnx --vgg16 vgg16.fp32.onnx

Each step runs in separate processes with a time limit; the row of a step that fails says why. Rows
are appended to OUTPUT/rows.jsonl as they come; the tables go to OUTPUT/gpu.md and, at the end, to
standard output; everything goes to OUTPUT/gpu.json. The most important steps come first; steps
that do not fit into `--budget-s` are skipped with a note. Runs (for PyTorch's forms) are found in
runs/ beside exports/, other precisions and TorchScript beside the exports. `--device cpu --tiny`
tests all of this on a machine without a GPU.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import image_files
import msgspec
from asking import Asker, MeasurementError, classify_command, environment, say
from cores import COUNTS, core_counts, core_table, efficiency, over_cores
from loops import DECODERS, PILLOW, Setting, cuda_grid, loop_name, same_labels
from pages import rate_text, section
from steady import session_setting
from systems import CUDA_PEERS, PACKAGES, Job

from tltools.bench.machine import describe_machine, installed_versions
from tltools.parallel import num_cores

HERE = Path(__file__).resolve().parent
CPU_CORES_FACTOR = 10.0
"""Target for the CNN: speed on 16 CPU cores as a multiple of the speed on one."""
LEAST_STEP_S = 15.0
"""A step with less time left is not started, in seconds."""
LIMIT_SHARE = 0.9
"""Target: share of the smaller of decoding and the bare session that end-to-end speed reaches."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much to measure."""

    cnn: int = 100_000
    """Images of a CNN job on the GPU."""
    vgg16: int = 24_000
    loop: int = 16_000
    """Images of a loop with the CNN; loops with VGG16 use `vgg16`."""
    per_core: int = 2500
    """Images per core of a CNN job on the CPU."""
    seconds: float = 1.5
    """Duration of each limit."""
    decode_s: float = 3.0
    batches: tuple[int, ...] = (64, 128, 256)
    loop_batches: tuple[int, ...] = (64, 256)
    warmup: int = 1024
    turns: int = 2
    """Turns of each end-to-end job."""
    full: bool = False
    """Whether to try the whole grid of loops, and decoding in fewer processes."""


TINY = Sizes(
    cnn=48,
    vgg16=4,
    loop=32,
    per_core=24,
    seconds=0.02,
    decode_s=0.1,
    batches=(2,),
    loop_batches=(4,),
    warmup=4,
    turns=1,
)
PRESETS = {
    "full": Sizes(batches=(32, 64, 128, 256), seconds=3.0, turns=5, full=True),
    "quick": Sizes(turns=1, seconds=1.0, decode_s=2.0),
    "tiny": TINY,
}
"""For the gpu part of run.py."""


@dataclass
class Check:
    """One run of the measurements: its inputs, and the rows so far."""

    asker: Asker
    sizes: Sizes
    device: str
    exports: Mapping[str, Path]
    """By name: `cnn fp32`, `vgg16 fp32`, `vgg16 fp16`, `vgg16 int8`."""
    runs: Mapping[str, Path]
    """Existing runs, by model."""
    sources: Sequence[Path]
    """JPEGs on the file system of the asker's folder."""
    deadline: float
    """A reading of `time.perf_counter`."""
    output: Path
    rows: list[Row] = field(default_factory=list)
    core_rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def left_s(self, limit: float) -> float:
        """Return the time limit of a step, in seconds.

        Raises:
            MeasurementError: If too little time is left to start one.
        """
        left = self.deadline - time.perf_counter()
        if left < LEAST_STEP_S:
            raise MeasurementError("no time was left for it")
        return min(limit, left)

    def keep(self, group: str, rows: Sequence[Row], failure: str = "", name: str = "") -> None:
        """Keep the rows of a group; a failure of the whole group becomes a row too."""
        found = [{"group": group} | row for row in rows]
        if failure:
            found.append({"group": group, "name": name, "images_per_s": None, "failure": failure})
        with (self.output / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        for row in found:
            rate = (
                f"{rate_text(row['images_per_s'])}/s" if row.get("images_per_s") else row["failure"]
            )
            say(f"{group}: {row['name']}: {rate}")
        self.rows += found

    def folder(self, count: int) -> Path:
        """Return a folder of `count` hard-linked images."""
        folder = self.asker.work / f"images-{count}"
        if not folder.exists():
            image_files.links(self.sources, folder, count)
        return folder

    def job(self, name: str) -> dict[str, str]:
        """Return a system's job for an export, by name.

        Raises:
            MeasurementError: If there is no such export.
        """
        run = self.runs.get(name.split()[0])
        return asdict(Job(str(self.export(name)), str(run or ""), str(self.asker.work)))

    def export(self, name: str) -> Path:
        """Return an export by name.

        Raises:
            MeasurementError: If there is none.
        """
        if name not in self.exports:
            raise MeasurementError(f"there is no export of {name}")
        return self.exports[name]

    def rate(self, group: str, start: str) -> float | None:
        """Return the highest rate of a group's rows whose names start with `start`, or None."""
        return max(
            (
                row["images_per_s"]
                for row in self.rows
                if row["group"] == group
                and row["name"].startswith(start)
                and row.get("images_per_s")
            ),
            default=None,
        )


# --------------------------------------------------------------------------------- steps


def decode_step(check: Check) -> None:
    """Measure decoding in one process per core, the limit of every job, and in fewer."""
    cores = num_cores()
    few = [count for count in COUNTS if count < cores] if check.sizes.full else []
    counts = {"processes": [*few, cores], "threads": [*few, cores] if few else [min(8, cores)]}
    rows, failure = check.asker.ask_rows(
        "decoding",
        timeout_s=check.left_s(60),
        export=str(check.export("cnn fp32")),
        folder=str(check.folder(check.sizes.cnn)),
        seconds=check.sizes.decode_s,
        **counts,
    )
    check.keep("limit", rows, failure, "decoding")


def sessions_step(check: Check, name: str, **how: Any) -> None:
    """Measure the bare session of an export at each batch size."""
    settings = [session_setting(batch, device=check.device, **how) for batch in check.sizes.batches]
    rows, failure = check.asker.ask_rows(
        "bare_sessions",
        timeout_s=check.left_s(60),
        export=str(check.export(name)),
        model=name,
        settings=settings,
        seconds=check.sizes.seconds,
    )
    check.keep("limit", rows, failure, f"session {name}")


def classify_step(check: Check, name: str, *words: str) -> None:
    """Measure `tltools classify` end to end with an export, and keep the last turn's labels."""
    title = " ".join([f"classify {name}", *words])
    number = check.sizes.cnn if name.startswith("cnn") else check.sizes.vgg16
    rates: list[float] = []
    answer: dict[str, Any] = {}
    failure = ""
    try:
        for _ in range(check.sizes.turns):
            answer = classify_command(
                check.asker,
                check.folder(number),
                check.export(name),
                check.asker.work / f"{title.replace(' ', '-')}.csv",
                device=check.device,
                words=words,
                timeout_s=check.left_s(120),
            )
            rates.append(answer["images_per_s"])
    except MeasurementError as error:
        failure = str(error)
    row = answer | {"name": title, "turns": rates, "failure": failure}
    check.keep("tltools", [row | {"images_per_s": median(rates) if rates else None}])


def loops_step(check: Check, name: str, form: str, precision: str, *decoders: str) -> None:
    """Measure a form of the model in a `DataLoader` loop with one worker per core."""
    model = name.split()[0]
    number = check.sizes.loop if model == "cnn" else check.sizes.vgg16
    settings = _loop_settings(check, form, precision, decoders or (PILLOW,))
    expected = _labels_of_tltools(check, model, number)
    rows, failure = check.asker.ask_rows(
        "search_loops",
        timeout_s=check.left_s(300 if check.sizes.full else 75),
        job=check.job(name),
        settings=settings,
        folder=str(check.folder(number)),
        warmup=str(check.folder(check.sizes.warmup)),
        output=str(check.asker.work / "loop.csv"),
        expected=expected,
    )
    for row in rows:
        row["name"] = f"{model} {loop_name(row['setting'])}"
        row.setdefault("images_per_s", None)
    check.keep("loop", rows, failure, f"{model} {precision} loop: {form}")


def _loop_settings(
    check: Check, form: str, precision: str, decoders: Sequence[str]
) -> list[Setting]:
    if check.sizes.full and check.device == "cuda":
        return cuda_grid(num_cores(), precision)[form]
    base: Setting = {"form": form, "workers": num_cores(), "threads": 1, "device": check.device}
    base["precision"] = precision if check.device == "cuda" else "fp32"
    return [
        base | {"batch_size": batch} | ({"decoder": decoder} if decoder != PILLOW else {})
        for decoder in decoders
        for batch in check.sizes.loop_batches
    ]


def _labels_of_tltools(check: Check, model: str, number: int) -> str:
    """Return a CSV of tltools' labels for a folder of `number` images; empty if it failed.

    Images repeat in the same order in every folder, so the rows of a larger folder begin with
    those of a smaller one.
    """
    for path in sorted(check.asker.work.glob(f"classify-{model}-*.csv")):
        lines = path.read_text(encoding="utf-8").splitlines()[: number + 1]
        if len(lines) == number + 1:
            cut = check.asker.work / f"expected-{model}-{number}.csv"
            cut.write_text("\n".join(lines) + "\n", encoding="utf-8")
            return str(cut)
    return ""


def torch_step(check: Check, name: str, form: str, precision: str, *batches: int) -> None:
    """Measure the network alone in PyTorch, channels_last."""
    sizes = [batch for batch in check.sizes.batches if batch in batches] or check.sizes.batches
    precision = precision if check.device == "cuda" else "fp32"
    settings = [{"form": form, "precision": precision, "batch": batch} for batch in sizes]
    rows, failure = check.asker.ask_rows(
        "bare_torch",
        timeout_s=check.left_s(75),
        job=check.job(name),
        model=name.split()[0],
        settings=settings,
        seconds=check.sizes.seconds,
        device=check.device,
    )
    check.keep("limit", rows, failure, f"PyTorch {name} {form} {precision}")


def nvjpeg_step(check: Check) -> None:
    """Measure decoding on the GPU."""
    rows, failure = check.asker.ask_rows(
        "nvjpeg",
        timeout_s=check.left_s(45),
        folder=str(check.folder(check.sizes.cnn)),
        seconds=check.sizes.seconds,
        batches=[check.sizes.batches[-1]],
    )
    check.keep("limit", rows, failure, "nvJPEG")


def cores_step(check: Check) -> None:
    """Measure the CNN on the CPU with 1, 2, 4, 8 and 16 cores, fewest and most first."""
    counts = core_counts()
    order = sorted(counts, key=lambda count: (count not in (counts[0], counts[-1]), count))
    for count in order:
        (row,) = over_cores(
            check.asker,
            check.export("cnn fp32"),
            check.sources,
            counts=[count],
            images_per_core=check.sizes.per_core,
            seconds=check.sizes.decode_s / 2,
            timeout_s=check.left_s(60),
        )
        check.core_rows = sorted([*check.core_rows, row], key=lambda row: row["cores"])
        name = f"{row['cores']} core{'s' * (row['cores'] > 1)}"
        check.keep("cores", [row | {"name": name, "images_per_s": row["classify_per_s"]}])


def peer_step(check: Check, peer: str) -> None:
    """Measure a library with its documented setup for CUDA."""
    number = check.sizes.loop
    row: Row = {"name": peer, "images_per_s": None, "failure": ""}
    try:
        answer = check.asker.ask(
            "run_system",
            timeout_s=check.left_s(75),
            system=peer,
            job=check.job("cnn fp32"),
            folder=str(check.folder(number)),
            warmup=str(check.folder(check.sizes.warmup)),
            output=str(check.asker.work / "peer.csv"),
            settings={"device": check.device, "workers": num_cores()},
        )
        row |= answer | {"images_per_s": number / answer["seconds"]}
        expected = _labels_of_tltools(check, "cnn", number)
        if expected:
            row["same_labels"] = same_labels(check.asker.work / "peer.csv", Path(expected))
    except (MeasurementError, ValueError) as error:
        row["failure"] = str(error)
    check.keep("peer", [row])


def plan(check: Check) -> dict[str, Callable[[], None]]:
    """Return the steps by name, the most important first."""

    def of(step: Callable[..., None], *arguments: Any, **named: Any) -> Callable[[], None]:
        return lambda: step(check, *arguments, **named)

    both = DECODERS
    steps = {
        "decoding": of(decode_step),
        "classify cnn fp32": of(classify_step, "cnn fp32"),
        "session cnn fp32": of(sessions_step, "cnn fp32"),
        "classify vgg16 fp16": of(classify_step, "vgg16 fp16"),
        "session vgg16 fp16 nhwc": of(sessions_step, "vgg16 fp16", nhwc=True),
        "classify vgg16 fp32 --tf32": of(classify_step, "vgg16 fp32", "--tf32"),
        "session vgg16 fp32 tf32": of(sessions_step, "vgg16 fp32", tf32=True),
        "loop cnn ONNX": of(loops_step, "cnn fp32", "ONNX", "fp32", *both),
        "loop cnn TorchScript": of(loops_step, "cnn fp32", "TorchScript", "fp32"),
        "loop cnn eager": of(loops_step, "cnn fp32", "eager", "fp16"),
        "cores": of(cores_step),
        "session vgg16 fp16": of(sessions_step, "vgg16 fp16"),
        "session vgg16 fp32 tf32 nhwc": of(sessions_step, "vgg16 fp32", tf32=True, nhwc=True),
        "loop vgg16 eager fp16": of(loops_step, "vgg16 fp32", "eager", "fp16", both[1]),
        "loop vgg16 eager tf32": of(loops_step, "vgg16 fp32", "eager", "tf32", both[1]),
        "loop vgg16 ONNX fp16": of(loops_step, "vgg16 fp16", "ONNX", "fp16", both[1]),
        "nvJPEG": of(nvjpeg_step),
        "PyTorch vgg16 fp16": of(torch_step, "vgg16 fp32", "eager", "fp16", 128, 256),
        "PyTorch vgg16 tf32": of(torch_step, "vgg16 fp32", "eager", "tf32", 128),
        **{peer: of(peer_step, peer) for peer in CUDA_PEERS},
        "classify vgg16 int8": of(classify_step, "vgg16 int8"),
        "session vgg16 fp32": of(sessions_step, "vgg16 fp32"),
        "PyTorch vgg16 fp16 compiled": of(torch_step, "vgg16 fp32", "compiled", "fp16", 128),
        "loop cnn compiled": of(loops_step, "cnn fp32", "compiled", "fp16"),
        "session cnn fp32 from device": of(sessions_step, "cnn fp32", feed="device"),
        "session cnn fp32, 2 callers": of(sessions_step, "cnn fp32", callers=2),
    }
    if check.device != "cuda":  # what the CPU cannot do
        del steps["nvJPEG"]
        steps["classify vgg16 fp32"] = of(classify_step, "vgg16 fp32")
        del steps["classify vgg16 fp32 --tf32"]
    return steps


def measure(check: Check, only: Sequence[str] = (), leave_out: Sequence[str] = ()) -> None:
    """Run all steps, or those whose names start with one of `only`; record failures."""
    for name, step in plan(check).items():
        if name in leave_out or (only and not name.startswith(tuple(only))):
            continue
        begun = time.perf_counter()
        try:
            check.left_s(0)
            step()
        except (MeasurementError, OSError) as error:
            check.skipped[name] = str(error)
            say(f"{name}: not measured: {error}")
        say(f"  ({name}: {time.perf_counter() - begun:.0f} s)")


# --------------------------------------------------------------------------------- verdicts


def checks(check: Check) -> list[list[str]]:
    """Return the targets: name, measured value, target, and verdict."""
    decoding = check.rate("limit", f"decoding, {num_cores()} process")
    loop = check.rate("loop", "cnn ")
    cnn = check.rate("tltools", "classify cnn fp32")
    found = [
        _demand("CNN end to end, images/s", cnn, 25_000),
        _demand("CNN to the best DataLoader loop" + _best_loop(check), _per(cnn, loop), 4),
    ]
    models = [
        ("CNN fp32", cnn, "session cnn fp32", 0),
        ("VGG16 fp16", check.rate("tltools", "classify vgg16 fp16"), "session vgg16 fp16", 6600),
        ("VGG16 TF32", check.rate("tltools", "classify vgg16 fp32 --tf32"), "tf32", 4300),
    ]
    for name, rate, session, least in models:
        limit = _tf32_rate(check) if session == "tf32" else check.rate("limit", session)
        if least:
            found.append(_demand(f"{name} end to end, images/s", rate, least))
        both = min(decoding, limit) if decoding and limit else None
        facts = f" ({rate_text(decoding)} and {rate_text(limit)})" if decoding and limit else ""
        title = f"{name} to the smaller of decoding and the bare session{facts}"
        found.append(_demand(title, _per(rate, both), LIMIT_SHARE))
    sixteen = next((row for row in check.core_rows if row["cores"] == 16), None)
    factor = efficiency(check.core_rows, sixteen, "classify_per_s") if sixteen else None
    found.append(_demand("CNN on the CPU, 16 cores to one", factor, CPU_CORES_FACTOR))
    return found


def _tf32_rate(check: Check) -> float | None:
    rates = [
        row["images_per_s"]
        for row in check.rows
        if row["group"] == "limit" and row.get("tf32") and row.get("images_per_s")
    ]
    return max(rates, default=None)


def _best_loop(check: Check) -> str:
    good = [
        row
        for row in check.rows
        if row["group"] == "loop" and row["name"].startswith("cnn ") and row["images_per_s"]
    ]
    best = max(good, key=lambda row: row["images_per_s"], default=None)
    return (
        f" ({best['name'].removeprefix('cnn ')}: {rate_text(best['images_per_s'])})" if best else ""
    )


def _per(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator and denominator else None


def _demand(name: str, value: float | None, least: float) -> list[str]:
    if value is None or math.isnan(value):
        return [name, "not measured", f"≥ {least:,g}", "-"]
    text = rate_text(value) if value >= 100 else f"{value:.2f}"
    return [name, text, f"≥ {least:,g}", "pass" if value >= least else "**FAIL**"]


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return the tables of saved results as Markdown."""
    machine = results["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    parts = [
        f"Measured {results['created']} on {machine['cores']} cores of {machine['cpu']}, {gpus}; "
        + ", ".join(f"{name} {text}" for name, text in results["packages"].items())
        + f". {results['took_s']:.0f} s in all, device {results['device']}."
    ]
    parts += section("What must hold", ["", "measured", "demanded", ""], results["checks"])
    if results["cores"]:
        parts += section("CNN on the CPU alone, by cores", *core_table(results["cores"]))
    titles = {"tltools": "tltools classify, end to end", "limit": "Limits"}
    titles |= {"loop": "DataLoader loops", "peer": "Libraries"}
    for group, title in titles.items():
        rows = [row for row in results["rows"] if row["group"] == group]
        rows.sort(key=lambda row: -(row.get("images_per_s") or 0) if group != "tltools" else 0)
        parts += section(title, ["", "images/s", "same labels"], [_line(row) for row in rows])
    skipped = [[name, reason] for name, reason in results["skipped"].items()]
    return "\n\n".join([*parts, *section("Not measured", ["", "why"], skipped)]) + "\n"


def _line(row: Mapping[str, Any]) -> list[str]:
    rate, failure = row.get("images_per_s"), row.get("failure")
    text = rate_text(rate) if rate else f"failed: {failure}"
    if len(row.get("turns", ())) > 1:
        text += " (" + ", ".join(map(rate_text, row["turns"])) + ")"
    same = row.get("same_labels")
    return [row["name"], text, "" if same is None else f"{same:.2%}"]


def to_json(check: Check, took_s: float) -> dict[str, Any]:
    """Return all measurements, for JSON."""
    versions = ("torch", "torchvision", "onnxruntime-gpu", *PACKAGES)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": msgspec.to_builtins(describe_machine()),
        "packages": installed_versions(versions),
        "device": check.device,
        "sizes": asdict(check.sizes),
        "rows": check.rows,
        "cores": check.core_rows,
        "checks": checks(check),
        "skipped": check.skipped,
        "took_s": took_s,
    }


# --------------------------------------------------------------------------------- command


def find_exports(cnn: Path, vgg16: Path | None) -> dict[str, Path]:
    """Return exports by name: those given, and VGG16's other precisions beside it."""
    found = {"cnn fp32": cnn.resolve()}
    if vgg16 is not None:
        found["vgg16 fp32"] = vgg16.resolve()
        for precision in ("fp16", "int8"):
            other = vgg16.with_name(vgg16.name.replace(".fp32.", f".{precision}."))
            if other.is_file() and other != vgg16:
                found[f"vgg16 {precision}"] = other.resolve()
    return found


def run_beside(export: Path) -> Path | None:
    """Return the run of an export in tltools' own layout, runs/NAME beside exports/NAME."""
    folder = export.resolve().parent
    beside = folder.parents[1] / "runs" / folder.name
    return beside if beside.is_dir() else None


def open_check(
    *,
    images: Path,
    cnn: Path,
    vgg16: Path | None,
    runs: Mapping[str, Path | None],
    work: Path,
    output: Path,
    device: str,
    sizes: Sizes,
    budget_s: float,
) -> Check:
    """Prepare a check: copy the images, and find the runs and exports beside those given.

    Args:
        images: A folder of JPEGs.
        cnn: An ONNX export.
        vgg16: An ONNX export in fp32.
        runs: By model; None to look beside the export.
        work: An empty folder for this check alone.
        output: Folder for the rows.
        device: `cpu` or `cuda`.
        sizes: How much to measure.
        budget_s: Time limit of all steps together, in seconds.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "rows.jsonl").unlink(missing_ok=True)
    found = image_files.find_jpegs(images)
    copied = image_files.copies(found, work / "copied", min(len(found), sizes.cnn))
    given = {"cnn": runs.get("cnn") or run_beside(cnn)}
    if vgg16 is not None:
        given["vgg16"] = runs.get("vgg16") or run_beside(vgg16)
    return Check(
        asker=Asker(work, environment=environment(YOLO_CONFIG_DIR=str(work / "yolo"))),
        sizes=sizes,
        device=device,
        exports=find_exports(cnn, vgg16),
        runs={name: path.resolve() for name, path in given.items() if path is not None},
        sources=image_files.find_jpegs(copied),
        deadline=time.perf_counter() + budget_s,
        output=output,
    )


def finish(check: Check, begun: float) -> dict[str, Any]:
    """Write everything and return it; `begun` is a reading of `time.perf_counter`."""
    results = to_json(check, time.perf_counter() - begun)
    text = json.dumps(results, indent=1)
    (check.output / "gpu.json").write_text(text + "\n", encoding="utf-8")
    (check.output / "gpu.md").write_text(to_markdown(results), encoding="utf-8")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables; the exit code is 1 if a target is missed."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of JPEGs")
    add("--cnn", type=Path, required=True, help="fp32 ONNX export of the CNN")
    add(
        "--vgg16", type=Path, help="fp32 ONNX export; its fp16 and int8 exports are found beside it"
    )
    add("--cnn-run", type=Path, help="run of the CNN, for PyTorch's forms")
    add("--vgg16-run", type=Path, help="run of VGG16, for PyTorch's forms")
    add("--output", type=Path, default=HERE / "results", help="folder for the results")
    add("--budget-s", type=float, default=330, help="time limit in seconds (default: 330)")
    add("--only", nargs="+", default=(), help="steps to run, by the start of their names")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tests the script")
    add("--tiny", action="store_true", help="use a few images, to test the script")
    add("--work", type=Path, help="parent of the folder for images; must allow hard links")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="tltools-gpu-") as work:
        check = open_check(
            images=options.images,
            cnn=options.cnn,
            vgg16=options.vgg16,
            runs={"cnn": options.cnn_run, "vgg16": options.vgg16_run},
            work=Path(work),
            output=options.output,
            device=options.device,
            sizes=TINY if options.tiny else Sizes(),
            budget_s=options.budget_s,
        )
        try:
            measure(check, options.only)
        finally:
            results = finish(check, begun)
    print(to_markdown(results))
    return int(any("FAIL" in line[3] for line in results["checks"]))


if __name__ == "__main__":
    sys.exit(main())
