"""Measure tltools beside other tools and beside the machine's limits, with one command.

    python benchmarks/run.py --images FOLDER --cnn EXPORT.onnx --vgg16 EXPORT.onnx

Writes results.json (every sample), results.md and results.png into the output folder, after each
part. Without images, it draws tltools' sample set; without an export, it trains a small CNN on it.
"""

import argparse
import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_check
import image_files
import loops
import msgspec
import ordering
import report
import scaling
from asking import Asker, MeasurementError, environment, say
from cores import core_counts, over_cores
from limits import DECODING, LARGE_SESSIONS, LOADERS, SMALL_SESSIONS
from pages import SPEED, SPEED_PAGES, speed_table, with_results
from systems import PACKAGES, PEERS, Job, images_in, read_rows

from tltools.bench.machine import describe_machine, installed_versions
from tltools.parallel import num_cores

HERE = Path(__file__).resolve().parent
SMALL_FOLDER = 10_000
"""Images of a folder; the scaling part classifies larger folders only once."""
TREE_FOLDERS = 1000
COMMAND_S = 600
"""Time limit of one command over some of the cores."""
MIDDLE_FOLDER = 100_000
"""Images of a folder; larger folders run only on all cores and with the local engine."""


@dataclass(frozen=True)
class Entry:
    """One row of a comparison."""

    name: str
    system: str
    job: Job
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the system, besides the job."""


class Bench:
    """One run of this program: its settings, its images and its results so far."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        """Create the images and exports that are not given, in `work`."""
        self.options = options
        self.work = work
        self.under: list[str] = shlex.split(options.under)
        self.environment = environment(
            YOLO_CONFIG_DIR=str(work / "yolo"), HF_HOME=str(work / "huggingface")
        )
        inputs = self._find_inputs()
        self.results: dict[str, Any] = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": options.command,
            "machine": msgspec.to_builtins(describe_machine()),
            "packages": installed_versions(PACKAGES),
            "inputs": inputs,
            "runs": options.runs,
            "comparisons": {},
            "skipped": {},
        }

    def _find_inputs(self) -> list[str]:
        options = self.options
        sources = options.images
        if sources is None or options.cnn is None:
            sample = self.work / "sample"
            self._tltools("sample", sample)
            sources = sources or sample / "images"
        self.sources = image_files.find_jpegs(sources)
        cnn, cnn_run = options.cnn, options.cnn_run
        if cnn is None:
            train = ("train", self.work / "sample", "--model", "cnn", "--epochs", "2")
            self._tltools(*train, "--run-dir", self.work / "runs")
            cnn_run = self.work / "runs" / "cnn"
            self._tltools("export", cnn_run, "--format", "all", "--output", self.work / "exports")
            cnn = self.work / "exports" / "cnn" / "cnn.fp32.onnx"
        self.cnn = self._job(cnn, cnn_run or gpu_check.run_beside(cnn))
        number = options.num_images
        self.images = image_files.copies(self.sources, self.work / "images", number)
        self.copied = image_files.find_jpegs(self.images)
        self.warmup = image_files.links(self.copied, self.work / "warmup", min(128, number))
        drawn = "drawn by tltools sample" if options.images is None else "given"
        trained = "trained here for two epochs" if options.cnn is None else "given"
        return [
            f"images: {number:,} files, copies of {min(number, len(self.sources)):,} JPEGs "
            f"({drawn})",
            f"CNN: {Path(cnn).name}, {trained}",
        ]

    def _tltools(self, *words: str | Path) -> None:
        command = [sys.executable, "-m", "tltools", *map(str, words)]
        subprocess.run(command, check=True, env=self.environment, stdout=subprocess.DEVNULL)

    def _job(self, export: Path, run: Path | None = None) -> Job:
        scratch = self.work / "scratch"
        scratch.mkdir(exist_ok=True)
        return Job(str(Path(export).resolve()), str(run.resolve()) if run else "", str(scratch))

    def ask(self, task: str, **request: Any) -> Any:
        """Run one task of worker.py in a new process.

        Raises:
            MeasurementError: If it fails.
        """
        with_peers = task == "run_system" or request.get("part_size")
        return self.asker(with_peers=bool(with_peers)).ask(task, **request)

    def asker(self, *, with_peers: bool) -> Asker:
        """Return an asker that starts processes with or without the peers installed."""
        python = sys.executable if with_peers else self.options.python
        return Asker(self.work, python, self.environment, self.under)

    def ask_for(self, entry: Entry, folder: Path, warmup: Path | None, output: Path) -> Any:
        """Run a system's job in a new process; return its start-up time and its seconds."""
        return self.ask(
            "run_system",
            system=entry.system,
            job=asdict(entry.job),
            folder=str(folder),
            warmup=str(warmup) if warmup else "",
            output=str(output),
            settings=entry.settings,
        )

    def compare(
        self, name: str, title: str, entries: Sequence[Entry], folder: Path, warmup: Path
    ) -> None:
        """Measure all entries in alternating turns; keep times, and how many labels agree."""
        number = len(images_in(folder))
        rows: dict[str, dict[str, Any]] = {
            entry.name: {"name": entry.name, "seconds": [], "start_up_s": [], "failure": ""}
            for entry in entries
        }
        self.results["comparisons"][name] = {
            "title": f"{title}, {number:,} images",
            "num_images": number,
            "rows": list(rows.values()),
        }
        expected: dict[str, str] = {}
        for turn in range(self.options.runs):
            for entry in entries:
                row = rows[entry.name]
                if row["failure"]:
                    continue
                output = self.work / "output.csv"
                output.unlink(missing_ok=True)
                try:
                    answer = self.ask_for(entry, folder, warmup, output)
                except MeasurementError as error:
                    row["failure"] = str(error)
                    say(f"{name}, turn {turn + 1}: {entry.name}: failed: {error}")
                    continue
                row["seconds"].append(answer["seconds"])
                row["start_up_s"].append(answer["start_up_s"])
                say(f"{name}, turn {turn + 1}: {entry.name}: {number / answer['seconds']:,.1f}/s")
                if output.exists():
                    labels = {path: found["label"] for path, found in read_rows(output).items()}
                    expected = expected or labels
                    same = sum(labels.get(path) == label for path, label in expected.items())
                    row["same_labels"] = same / len(expected)
        self.save()

    def save(self) -> None:
        """Write all results so far."""
        folder = self.options.output
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.results, indent=1)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        for block, text in report.blocks(self.results).items():
            (folder / f"{block}.md").write_text(text, encoding="utf-8")
        if any(job["seconds"] for job in self.results.get("scaling", {}).get("jobs", ())):
            (folder / "scaling.md").write_text(scaling.to_markdown(self.results), encoding="utf-8")
        if any(row["seconds"] for c in self.results["comparisons"].values() for row in c["rows"]):
            report.draw(self.results, folder / "results.png")

    # ---------------------------------------------------------------------- parts, by name

    def peers(self) -> None:
        """Compare with the peers, on the CNN."""
        entries = [Entry(name, name, self.cnn) for name in ("tltools", *loops.DATALOADERS, *PEERS)]
        self.compare("peers", "CNN beside its peers", entries, self.images, self.warmup)

    def limits(self) -> None:
        """Compare with the limits, on the CNN."""
        names = ("tltools", DECODING, *SMALL_SESSIONS)
        entries = [Entry(name, name, self.cnn) for name in names]
        self.compare("limits", "CNN beside its limits", entries, self.images, self.warmup)

    def vgg16(self) -> None:
        """Compare VGG16 in fp32 with the bare session and with int8."""
        fp32 = self.options.vgg16
        if fp32 is None:
            raise MeasurementError("no --vgg16 given")
        entries = [Entry("tltools, fp32", "tltools", self._job(fp32))]
        entries += [Entry(name, name, self._job(fp32)) for name in LARGE_SESSIONS]
        int8 = self._vgg16_exports("VGG16 in int8").get("VGG16 int8")
        if int8 is not None:
            entries.append(Entry("tltools, int8", "tltools", self._job(Path(int8))))
        number = min(self.options.num_vgg16, len(self.copied))
        folder = image_files.links(self.copied, self.work / "vgg16", number)
        warmup = image_files.links(self.copied, self.work / "vgg16-warmup", min(8, number))
        self.compare("vgg16", "VGG16", entries, folder, warmup)

    def large(self) -> None:
        """Compare ways to decode and resize images of 12 megapixels."""
        entries = [Entry(name, name, self.cnn) for name in (*LOADERS, "tltools")]
        for quality in image_files.LARGE_QUALITIES:
            name = f"large-{quality}"
            folder = image_files.large(
                self.sources, self.work / name, self.options.num_large, quality=quality
            )
            sizes = [path.stat().st_size for path in folder.iterdir()]
            mean = sum(sizes) / len(sizes) / 1e6
            title = f"JPEGs of 4,000x3,000, quality {quality} ({mean:.1f} MB on average)"
            self.compare(name, title, entries, folder, self.warmup)

    def broken(self) -> None:
        """Record what each system does with a truncated JPEG."""
        folder, broken = image_files.with_broken(self.sources, self.work / "broken", 12)
        rows = self.results["broken"] = []
        for name in ("tltools", *loops.DATALOADERS, *PEERS):
            output = self.work / "output.csv"
            output.unlink(missing_ok=True)
            try:
                self.ask_for(Entry(name, name, self.cnn), folder, None, output)
                outcome = what_became(output, broken, 12)
            except MeasurementError as error:
                kept = len(read_rows(output)) if output.exists() else 0
                outcome = f"the job died with {kept} of 12 rows: {error}"
            rows.append({"name": name, "outcome": outcome})
            say(f"broken: {name}: {outcome}")

    def memory(self) -> None:
        """Compare the peak memory of a short job with that of a long one."""
        peaks: dict[int, list[int]] = {number: [] for number in self.options.memory}
        folders = {
            number: image_files.links(self.copied, self.work / f"links-{number}", number)
            for number in peaks
        }
        for _ in range(self.options.memory_runs):
            for number, folder in folders.items():
                request = {"folder": str(folder), "output": str(self.work / "memory.csv")}
                answer = self.ask("peak_memory", export=self.cnn.export, **request)
                peaks[number].append(answer["peak_bytes"])
                say(f"memory: {number:,} images: {answer['peak_bytes'] / 1e6:.0f} MB")
        self.results["memory"] = [
            {"num_images": number, "peak_bytes": values} for number, values in peaks.items()
        ]
        for folder in folders.values():
            shutil.rmtree(folder)

    def listing(self) -> None:
        """Time the first row of a long list, flat and nested."""
        rows = self.results["listing"] = []
        number = self.options.names
        for layout, folders in (("one folder", 0), ("1,000 folders", 1000)):
            folder = self.work / "names"
            image_files.link_tree(self.copied, folder, number, folders=folders)
            request = {"export": self.cnn.export, "folder": str(folder)}
            answers = [self.ask("first_row", **request) for _ in range(self.options.runs)]
            times = [answer["seconds"] for answer in answers]
            rows.append({"layout": layout, "num_names": number, "seconds": times})
            say(f"listing: {layout}: {[round(value, 2) for value in times]} s")
            shutil.rmtree(folder)

    def startup(self) -> None:
        """Time whole processes that classify one image."""
        runs = max(11, self.options.runs)
        request = {"export": self.cnn.export, "image": str(self.copied[0]), "runs": runs}
        self.results["startup"] = self.ask("start_up", **request)
        say(f"startup: {[round(value, 2) for value in self.results['startup']['seconds']]} s")

    def stability(self) -> None:
        """Compare the results of several settings."""
        rows = self.results["stability"] = []
        for model, export, number in (
            ("CNN", Path(self.cnn.export), 500),
            ("VGG16 fp32", self.options.vgg16, 48),
        ):
            if export is not None:
                number = min(number, len(self.copied))
                folder = image_files.links(self.copied, self.work / f"stability-{model}", number)
                answer = self.ask("stability", export=str(export.resolve()), folder=str(folder))
                rows.append({"model": model} | answer)
                say(f"stability: {rows[-1]}")

    def scaling(self) -> None:
        """Time whole jobs on folders of several sizes, and their stages."""
        cores = num_cores()
        sizes = [path.stat().st_size for path in self.copied]
        found = self.results["scaling"] = {
            "cores": cores,
            "image_bytes": sum(sizes) / len(sizes),
            "jobs": [],
            "listing": [],
            "stages": {},
        }
        jobs: list[dict[str, Any]] = found["jobs"]
        jobs += [*self._cnn_jobs(cores), *self._vgg16_jobs(cores)]
        folders: dict[tuple[int, int], Path] = {}
        for job in jobs:
            key = (job["num_images"], job["folders"])
            if key not in folders:
                folders[key] = self.work / f"scaling-{key[0]}-{key[1]}"
                image_files.link_tree(self.copied, folders[key], key[0], folders=key[1])
        largest = max(self.options.sizes)
        for num_folders in (0, TREE_FOLDERS):
            answer = self.ask("list_names", folder=str(folders[largest, num_folders]))
            found["listing"].append({"folders": num_folders} | answer)
            say(f"scaling: {answer['num_names']:,} names listed in {answer['seconds']:.2f} s")
        for model, export in {job["model"]: job["export"] for job in jobs}.items():
            request = {"folder": str(self.warmup), "seconds": 6.0}
            found["stages"][model] = self.ask("stages", export=export, **request)
        for turn in range(self.options.runs):
            for job in jobs:
                if not turn or job["num_images"] <= SMALL_FOLDER:
                    self._time_job(job, turn, folders[job["num_images"], job["folders"]])
            self.save()
        for folder in folders.values():
            shutil.rmtree(folder)

    def loops(self) -> None:
        """Try loops in every form and many settings; compare the fastest with tltools."""
        job, number = self._job_in_all_forms(), min(self.options.num_search, len(self.copied))
        folder = image_files.links(self.copied, self.work / "search", number)
        asker = self.asker(with_peers=True)
        request = {"job": asdict(job), "folder": str(folder), "warmup": str(self.warmup)}
        request["output"] = str(self.work / "search.csv")
        rows = self.results["loops_search"] = []
        for form, settings in loops.cpu_grid(num_cores(), quick=self.options.quick).items():
            found, failure = asker.ask_rows(
                "search_loops", timeout_s=self.options.form_s, settings=settings, **request
            )
            rows += found
            if failure:
                rows.append({"name": f"loop: {form}, the rest of its settings", "failure": failure})
            say(f"loops: {form}: {len(found)} settings tried {failure}")
            self.save()
        entries = [Entry("tltools", "tltools", self.cnn)]
        entries += [
            Entry(row["name"], "loop", job, dict(row["setting"])) for row in loops.fastest(rows)
        ]
        title = "CNN beside the fastest DataLoader loops"
        self.compare("loops", title, entries, self.images, self.warmup)

    def _job_in_all_forms(self) -> Job:
        """Return the CNN's job with a TorchScript export beside the ONNX one."""
        given = Path(self.cnn.export)
        if given.with_suffix(".pt").is_file() or not self.cnn.run:
            return self.cnn
        folder = self.work / "forms"
        self._tltools("export", self.cnn.run, "--format", "torchscript", "--output", folder)
        (script,) = folder.glob("*/*.pt")
        shutil.copyfile(given, script.with_suffix(".onnx"))
        return self._job(script.with_suffix(".onnx"), Path(self.cnn.run))

    def cores(self) -> None:
        """Measure the command on the CPU and decoding alone on 1, 2, 4, 8 and 16 cores."""
        rows = self.results["cores"] = []
        for row in over_cores(
            self.asker(with_peers=False),
            Path(self.cnn.export),
            self.copied,
            counts=core_counts(),
            images_per_core=self.options.num_per_core,
            seconds=self.options.limit_s,
            timeout_s=COMMAND_S,
        ):
            rows.append(row)
            say(f"cores: {row['cores']}: {row['classify_per_s'] or 0:,.0f}/s {row['failure']}")
            self.save()

    def ordering(self) -> None:
        """Measure the CPU time of ordering and writing a row."""
        sizes = (self.options.num_images // 3, self.options.num_images // 3 * 4)
        found = ordering.ordering_us(
            Path(self.cnn.export),
            self.images,
            sizes=sizes,
            workers=2,
            rounds=self.options.runs,
            work=self.work / "ordering",
        )
        self.results["ordering"] = {"us_per_image": found, "sizes": sizes}

    def gpu(self) -> None:
        """Measure limits, tltools, loops and libraries on the GPU."""
        options = self.options
        if options.gpu_device == "cuda" and not self.results["machine"]["gpus"]:
            raise MeasurementError("there is no NVIDIA GPU here")
        begun = time.perf_counter()
        (self.work / "gpu").mkdir()
        runs = {"cnn": Path(self.cnn.run) if self.cnn.run else None}
        check = gpu_check.open_check(
            images=self.images,
            cnn=Path(self._job_in_all_forms().export),
            vgg16=options.vgg16,
            runs=runs,
            work=self.work / "gpu",
            output=options.output,
            device=options.gpu_device,
            sizes=gpu_check.PRESETS[options.preset],
            budget_s=options.gpu_s,
        )
        try:
            gpu_check.measure(check, leave_out=("cores",))
        finally:
            self.results["gpu"] = gpu_check.to_json(check, time.perf_counter() - begun)

    def _cnn_jobs(self, cores: int) -> list[dict[str, Any]]:
        has_ray = importlib.util.find_spec("ray") is not None
        if not has_ray:
            self.results["skipped"]["scaling, Ray"] = f"{sys.executable} has no Ray"
        jobs: list[dict[str, Any]] = []
        for number in sorted(self.options.sizes):
            jobs.append(_job_of("CNN", self.cnn.export, number, cores))
            if number <= MIDDLE_FOLDER and cores > 1:
                jobs.append(_job_of("CNN", self.cnn.export, number, 1))
            for part_size in (scaling.RAY_PART, 256) if has_ray else ():
                if number <= (MIDDLE_FOLDER if part_size == scaling.RAY_PART else SMALL_FOLDER):
                    job = _job_of("CNN", self.cnn.export, number, cores, part_size=part_size)
                    jobs.append(job)
        largest = max(self.options.sizes)
        return [*jobs, _job_of("CNN", self.cnn.export, largest, cores, folders=TREE_FOLDERS)]

    def _vgg16_jobs(self, cores: int) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = []
        for model, export in self._vgg16_exports("scaling, VGG16 int8").items():
            number = self.options.num_vgg16 * (3 if "int8" in model else 1)
            parts = (max(1, number // 5), number)
            jobs += [_job_of(model, export, part, cores) for part in parts]
        return jobs

    def _vgg16_exports(self, part: str) -> dict[str, str]:
        """Return VGG16's exports; if int8 is missing, record the named part as skipped."""
        fp32 = self.options.vgg16
        if fp32 is None:
            self.results["skipped"]["scaling, VGG16"] = "no --vgg16 given"
            return {}
        exports = gpu_check.find_exports(Path(self.cnn.export), fp32)
        found = {f"VGG16 {p}": exports.get(f"vgg16 {p}") for p in ("fp32", "int8")}
        if found["VGG16 int8"] is None:
            self.results["skipped"][part] = f"there is no int8 export beside {fp32.name}"
        return {name: str(path) for name, path in found.items() if path is not None}

    def _time_job(self, job: dict[str, Any], turn: int, folder: Path) -> None:
        """Time one job; a job that fails is recorded as skipped and not retried."""
        name = f"scaling: {scaling.job_name(job)}, {scaling.images_of(job)}"
        if name in self.results["skipped"]:
            return
        output = self.work / ("scaling-parts" if job["part_size"] else "scaling.csv")
        request = {"folder": str(folder), "output": str(output), "workers": job["workers"]}
        request |= {"export": job["export"], "part_size": job["part_size"]}
        try:
            answer = self.ask("whole_job", **request)
        except MeasurementError as error:
            self.results["skipped"][name] = str(error)
            say(f"{name}: failed: {error}")
            return
        job["seconds"].append(answer["seconds"])
        job["output_bytes"] = answer["output_bytes"]
        if "peak_bytes" in answer:
            job["peak_bytes"].append(answer["peak_bytes"])
        say(f"{name}, turn {turn + 1}: {answer['seconds']:.2f} s")


PARTS: dict[str, Callable[[Bench], None]] = {
    "peers": Bench.peers,
    "limits": Bench.limits,
    "vgg16": Bench.vgg16,
    "large": Bench.large,
    "broken": Bench.broken,
    "memory": Bench.memory,
    "listing": Bench.listing,
    "startup": Bench.startup,
    "stability": Bench.stability,
    "scaling": Bench.scaling,
    "loops": Bench.loops,
    "cores": Bench.cores,
    "ordering": Bench.ordering,
    "gpu": Bench.gpu,
}


def what_became(output: Path, broken: str, total: int) -> str:
    """Describe what a CSV of predictions contains for a damaged image among `total`."""
    rows = read_rows(output)
    count = f"{len(rows)} of {total} rows"
    if broken not in rows:
        return f"{count}, none for it, and nothing in the results says so"
    row = rows.pop(broken)
    if row.get("error"):
        return f"{count}; its row has the error: {row['error']}"
    twins = [name for name in rows if rows[name]["confidence"] == row["confidence"]]
    origin = f", which is that of {twins[0]}" if twins else ""
    return f"{count}; its row has the label {row['label']!r}{origin}, and no error"


def _job_of(
    model: str, export: str, number: int, workers: int, *, part_size: int = 0, folders: int = 0
) -> dict[str, Any]:
    """Describe a job of the scaling part; `part_size` is Ray's, `folders` 0 for a flat folder."""
    job = {"model": model, "export": export, "engine": "ray" if part_size else "local"}
    job |= {"num_images": number, "folders": folders, "workers": workers, "part_size": part_size}
    return job | {"seconds": [], "peak_bytes": [], "output_bytes": 0}


PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "quick": {
        "only": ["ordering", "cores", "gpu", "loops"],
        "runs": 1,
        "num_images": 3000,
        "num_search": 600,
        "form_s": 30,
        "limit_s": 1.0,
        "gpu_s": 150,
    },
    "tiny": {
        "runs": 1,
        "num_images": 24,
        "num_vgg16": 2,
        "num_large": 1,
        "memory": [12, 24],
        "memory_runs": 1,
        "names": 1000,
        "sizes": [12, 24],
        "num_search": 12,
        "num_per_core": 12,
        "limit_s": 0.1,
        "gpu_device": "cpu",
    },
}
"""Defaults of the options by preset: quick takes under six minutes on 16 cores with a GPU, tiny
only tests the program."""


def parser_of_options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="Measure tltools.", formatter_class=formatter)
    add = parser.add_argument
    add("--images", type=Path, help="folder of JPEGs; if omitted, the sample set is drawn")
    add("--cnn", type=Path, help="ONNX export; if omitted, a CNN is trained")
    add("--cnn-run", type=Path, help="its run, for the peers; by default runs/ beside exports/")
    add(
        "--vgg16", type=Path, help="fp32 ONNX export; its fp16 and int8 exports are found beside it"
    )
    add("--preset", choices=PRESETS, default="full", help="set of defaults for these options")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    add("--runs", type=int, default=5, help="turns of each comparison")
    add("--output", type=Path, default=HERE / "results", help="folder for the results")
    add("--num-images", type=int, default=4500, help="images for the CNN")
    add("--num-vgg16", type=int, default=150, help="images for VGG16")
    add("--num-large", type=int, default=48, help="images of 12 megapixels")
    add("--memory", type=int, nargs=2, default=[5_000, 100_000], help="images of the two jobs")
    add("--memory-runs", type=int, default=3, help="turns of the two jobs")
    add("--names", type=int, default=1_000_000, help="names in the long list")
    sizes_help = "images in the folders of the scaling part; full results go up to 1000000"
    add("--sizes", type=int, nargs="+", default=[1_000, 10_000], help=sizes_help)
    add("--num-search", type=int, default=1000, help="images for each setting of a loop")
    add("--form-s", type=float, default=600, help="time limit of one form's settings, in seconds")
    add("--num-per-core", type=int, default=2500, help="images per core in the cores part")
    add("--limit-s", type=float, default=3.0, help="duration of decoding alone, in seconds")
    add("--gpu-s", type=float, default=1500, help="time limit of the gpu part, in seconds")
    add("--gpu-device", choices=("cuda", "cpu"), default="cuda", help="cpu only tests the gpu part")
    add("--readme", action="store_true", help="also write the results into the pages")
    add(
        "--python",
        default=sys.executable,
        help="interpreter without the peers for measuring whole processes, because tltools' "
        "libraries import some of the peers'",
    )
    add("--work", type=Path, help="parent of the folder for images; must allow hard links")
    add("--under", default="", help="command that starts each process, such as 'taskset -c 0'")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of_options()
    preset = parser.parse_args(arguments).preset
    parser.set_defaults(**PRESETS[preset])
    options = parser.parse_args(arguments)
    options.quick = preset != "full"
    options.command = shlex.join(["benchmarks/run.py", *arguments])
    return options


def write_pages(options: argparse.Namespace, results: report.Results) -> None:
    """Write each measured block of results into its page; keep the other blocks.

    README and the chapter on benchmarks repeat some of these figures.
    """
    pages = dict.fromkeys(report.blocks(results), HERE / "README.md")
    if "results" in pages and (options.output / "results.png").is_file():
        shutil.copyfile(options.output / "results.png", HERE / "results.png")
    texts = {block: (page, block) for block, page in pages.items()}
    if "scaling" in results:
        texts["scaling"] = (scaling.PAGE, "results")
    for name, (page, block) in texts.items():
        text = (options.output / f"{name}.md").read_text(encoding="utf-8")
        old = page.read_text(encoding="utf-8")
        page.write_text(with_results(old, text, block), encoding="utf-8")
    speed = speed_table((HERE / "README.md").read_text(encoding="utf-8"))
    for name in SPEED_PAGES:
        page = HERE.parent / name
        old = page.read_text(encoding="utf-8")
        page.write_text(with_results(old, speed, SPEED), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the requested parts; record a part that fails, and continue with the others."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="tltools-bench-") as name:
        bench = Bench(options, Path(name))
        for part in options.only:
            try:
                PARTS[part](bench)
            except (MeasurementError, OSError) as error:
                bench.results["skipped"][part] = str(error)
                say(f"{part}: not measured: {error}")
            bench.save()
    say(f"Written: {options.output}/results.json, .md and .png")
    if options.readme:
        write_pages(options, bench.results)


if __name__ == "__main__":
    main()
