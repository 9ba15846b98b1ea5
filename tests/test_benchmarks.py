"""benchmarks/, as far as it needs no peers. Measured times have no right answer to test."""

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def benchmarks() -> Iterator[None]:
    """Make the folder's modules importable: its scripts are run from there, it is no package."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield
    for name in {path.stem for path in BENCHMARKS.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """A dozen images, each in a different shade."""
    folder = tmp_path / "jpegs"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 20 * (number + 1), (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def row(name: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    start_up = [0.5] * len(seconds)
    return {"name": name, "seconds": seconds, "start_up_s": start_up, "failure": ""} | more


@pytest.fixture
def results() -> dict[str, Any]:
    """Results with round numbers: 100 images, three turns."""
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "run.py",
        "machine": {"cpu": "a chip", "cores": 2, "memory_bytes": 2**33, "os": "an OS", "gpus": []}
        | {"versions": {"python": "3"}},
        "packages": {},
        "inputs": ["images: drawn"],
        "runs": 3,
        "skipped": {"vgg16": "no --vgg16 given"},
        "comparisons": {
            "peers": {
                "title": "Peers",
                "num_images": 100,
                "rows": [
                    row("tltools", [1.0, 2.0, 1.0], same_labels=1.0),
                    row("DataLoader, 0 workers", [9.0, 9.0, 9.0]),
                    row("DataLoader, 2 workers", [3.0, 10.0, 4.0], same_labels=0.98),
                    row("timm", [], failure="ModuleNotFoundError: No module named 'timm'"),
                ],
            },
            "limits": {
                "title": "Limits",
                "num_images": 100,
                "rows": [
                    row("tltools", [1.0, 1.0, 1.0]),
                    row("decoding alone", [0.5, 0.25, 0.25]),
                    row("session: 2 callers", [0.5, 0.5, 0.5]),
                    row("session: 1 caller", [0.75, 0.75, 0.75]),
                ],
            },
        },
        "memory": [
            {"num_images": 10, "peak_bytes": [100e6, 100e6]},
            {"num_images": 1000, "peak_bytes": [112e6, 112e6]},
        ],
    }


def test_the_combined_limit_adds_the_times_of_both_kinds_of_work():
    from limits import combined

    assert 1 / combined(1 / 4000, 1 / 2000) == pytest.approx(1 / (1 / 4000 + 1 / 2000))


def test_ratios_compare_times_from_the_same_turn(results):
    import report

    found = {figure.name: figure for figure in report.figures(results)}
    name = "CNN: tltools to the best eager loop (DataLoader, 2 workers)"  # best by its median
    loop = found[name]
    assert loop[1:] == ("4.00 (3.00 to 5.00)", "≥ 4", True)  # 3/1, 10/2 and 4/1
    limit = found["CNN: tltools to the combined limit"]
    assert limit[1:] == ("0.75 (0.75 to 1.00)", "≥ 0.9", False)  # .5+.5, .25+.5 and .25+.5
    memory = found["Peak memory, 1,000 images to 10"]
    assert memory[1:] == ("1.120", "< 1.1", False)
    assert len(found) == 3  # nothing is said about what was not measured


def test_the_tables_show_failures_and_skipped_parts(results):
    import report

    text = report.to_markdown(results)
    assert "| timm | failed: ModuleNotFoundError: No module named 'timm' |" in text
    assert "| DataLoader, 2 workers | 25.0 | 4.00 (3.00 to 5.00) | 0.5 s | 98.00% |" in text
    assert "| combined limit | 133 | 0.75 (0.75 to 1.00) |" in text
    assert "Not measured: vgg16: no --vgg16 given" in text


def test_the_plot_is_an_image(results, tmp_path):
    import report

    report.draw(results, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 300


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([("a.jpg", "x", "0.9", "")], "none for it", id="no row"),
        pytest.param([("b.jpg", "", "", "cut off")], "has the error: cut off", id="error"),
        pytest.param([("b.jpg", "x", "0.9", "")], "the label 'x', and no error", id="label"),
        pytest.param(
            [("b.jpg", "x", "0.9", ""), ("c.jpg", "x", "0.9", "")],
            "the label 'x', which is that of c.jpg, and no error",
            id="label of another image",
        ),
    ],
)
def test_the_outcome_for_a_broken_image_is_described(tmp_path, rows, expected):
    from run import what_became

    with (tmp_path / "output.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "confidence", "error"), *rows])
    outcome = what_became(tmp_path / "output.csv", "b.jpg", 3)
    assert outcome.startswith(f"{len(rows)} of 3 rows")
    assert expected in outcome


def test_one_image_among_the_broken_ones_is_broken(jpegs, tmp_path):
    import image_files

    folder, broken = image_files.with_broken(image_files.find_jpegs(jpegs), tmp_path / "broken", 5)
    unreadable = []
    for path in image_files.find_jpegs(folder):
        try:
            Image.open(io.BytesIO(path.read_bytes())).load()
        except OSError:
            unreadable.append(path.name)
    assert unreadable == [broken]


def test_hard_links_are_spread_over_folders(jpegs, tmp_path):
    import image_files

    sources = image_files.find_jpegs(jpegs)
    folder = image_files.link_tree(sources, tmp_path / "tree", 25, folders=3)
    assert [len(list(child.iterdir())) for child in sorted(folder.iterdir())] == [9, 8, 8]


def test_import_times_are_summed_by_package():
    from processes import import_times

    lines = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       100 |        100 |   numpy._core\n"
        "import time:       250 |        350 | numpy\n"
        "import time:        50 |         50 | json.decoder\n"
        "import time:        20 |         20 | re\n"
    )
    assert import_times(lines) == [("numpy", 350e-6), ("Python's own", 70e-6)]


def test_results_replace_those_in_the_readme():
    from pages import marks, with_results

    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for block in ("results", "cores", "gpu"):
        first, last = marks(block)
        once = with_results(readme, "new tables", block)
        assert with_results(once, "new tables", block) == once
        assert once.split(first)[0] == readme.split(first)[0]
        assert once.split(last)[1] == readme.split(last)[1]
        assert "new tables" in once
    with pytest.raises(ValueError, match="lacks its marks"):
        with_results("a page", "new tables")


def scaling_job(number: int, seconds: list[float], **more: Any) -> dict[str, Any]:
    job = {"model": "CNN", "engine": "local", "workers": 2, "folders": 0, "part_size": 0}
    job |= {"num_images": number, "seconds": seconds, "peak_bytes": [80e6]}
    return job | {"output_bytes": 60 * number} | more


@pytest.fixture
def scaling_results(results) -> dict[str, Any]:
    """Jobs that cost 1 s plus 1 ms per image; on Ray 8 s, 0.5 s per part and 1 ms per image."""
    ray = {"engine": "ray", "peak_bytes": [], "part_size": 4096}
    results["scaling"] = {
        "cores": 2,
        "image_bytes": 10_000,
        "jobs": [
            scaling_job(1_000, [2.0, 3.0, 1.0]),
            scaling_job(10_000, [11.0]),
            scaling_job(10_000, [22.0], folders=1000),
            scaling_job(1_000, [9.5], **ray),
            scaling_job(10_000, [19.5], **ray),
            scaling_job(10_000, [38.0], **ray | {"part_size": 256}),
            scaling_job(40, [], model="VGG16 fp32"),
        ],
        "listing": [{"folders": 0, "num_names": 1000, "seconds": 0.002, "bytes": 100_000}],
        "stages": {"CNN": {"read_s": 1e-4, "decode_s": 2e-4, "infer_s": 6e-4, "write_s": 1e-4}},
    }
    return results


def test_fitted_costs_equal_those_that_generated_the_jobs(scaling_results):
    from scaling import costs

    found = costs(scaling_results["scaling"])
    assert set(found) == {("CNN", "local", 2), ("CNN", "ray", 2)}
    local, ray = found.values()
    assert (local.fixed_s, local.part_s, local.image_s) == pytest.approx((1, 0, 1e-3))
    assert (ray.fixed_s, ray.part_s, ray.image_s) == pytest.approx((8, 0.5, 1e-3))
    assert ray.seconds(10_000, 3) == pytest.approx(19.5)


def test_a_cost_is_never_negative():
    from scaling import fit

    found = fit([(10, 0, 1.0), (20, 0, 4.0)])  # a line through both begins below zero
    assert (found.fixed_s, found.part_s) == (0, 0)
    assert 0.1 < found.image_s < 0.2


def test_without_a_cost_per_image_nothing_is_projected(scaling_results):
    from scaling import to_markdown

    jobs = [scaling_job(20, [0.4]), scaling_job(60, [0.4])]
    text = to_markdown(scaling_results | {"scaling": scaling_results["scaling"] | {"jobs": jobs}})
    assert "No projection" in text
    assert "### What 10^8" not in text


def test_machines_and_prices_follow_from_core_seconds(monkeypatch):
    import scaling

    monkeypatch.setattr(scaling, "INSTANCE_USD_H", 2.0)
    small = scaling.need(32 * 3600, core_s=1.0)  # an hour of a machine of 32 cores
    assert (small.core_hours, small.machines, small.hours) == (32, 1, 1)
    assert (small.compute_usd, small.num_jobs, small.images_per_s) == (2, 16, 32)
    large = scaling.need(32 * 3600 * 20, core_s=1.0)  # 20 hours: three machines end in a night
    assert (large.machines, large.num_jobs) == (3, 48)
    assert large.hours == pytest.approx(20 / 3)
    assert large.compute_usd == pytest.approx(40)


def test_the_scaling_page_has_measured_and_projected_figures(scaling_results):
    from pages import MARKS, with_results
    from scaling import PAGE, to_markdown

    text = to_markdown(scaling_results)
    assert "| CNN, local, 2 workers | 10,000 in 1,000 folders | 22.0 s (1) |" in text
    assert "| CNN, local, 2 workers | 1.00 s |  | 1.000 ms | 1,000.0 |" in text
    assert "| 10^9, CNN | 2.00 ms | 556 | 17.4 | 3 for 5.8 h |" in text
    assert "100 million GET $40.00, 100,000 LIST $0.50" in text
    assert "VGG16" not in text.partition("### Assumptions")[0].partition("### Measured")[2]
    page = with_results(PAGE.read_text(encoding="utf-8"), text)
    assert page.partition(MARKS[0])[2].startswith("\n\nMeasured 2026-01-01")


def test_help_names_every_part():
    from run import PARTS

    command = [sys.executable, str(BENCHMARKS / "run.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(part in result.stdout for part in PARTS)


def test_the_limits_part_runs_from_images_to_plot(jpegs, onnx_path, tmp_path):
    import run

    output = tmp_path / "results"
    run.main(
        [
            *("--images", str(jpegs), "--cnn", str(onnx_path), "--only", "limits"),
            *("--num-images", "12", "--runs", "1", "--output", str(output)),
            *("--work", str(tmp_path)),
        ]
    )
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    rows = results["comparisons"]["limits"]["rows"]
    assert [row["name"] for row in rows] == ["tltools", run.DECODING, *run.SMALL_SESSIONS]
    assert all(row["failure"] == "" and row["seconds"][0] > 0 for row in rows)
    assert "combined limit" in (output / "results.md").read_text(encoding="utf-8")
    assert (output / "results.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".tltools-*"))  # images do not stay behind


@pytest.mark.slow
def test_the_scaling_part_runs_from_images_to_tables(jpegs, onnx_path, tmp_path, monkeypatch):
    import run

    # As where Ray is not installed: to start it takes longer than all the rest.
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda _name: None)
    output = tmp_path / "results"
    run.main(
        [
            *("--images", str(jpegs), "--cnn", str(onnx_path), "--only", "scaling"),
            *("--num-images", "12", "--runs", "2", "--sizes", "20", "60"),
            *("--output", str(output), "--work", str(tmp_path)),
        ]
    )
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    jobs = results["scaling"]["jobs"]
    flat = [job["num_images"] for job in jobs if not job["folders"]]
    assert sorted(set(flat)) == [20, 60]
    assert [job["num_images"] for job in jobs if job["folders"]] == [60]
    assert all(len(job["seconds"]) == len(job["peak_bytes"]) == 2 for job in jobs)
    assert set(results["skipped"]) == {"scaling, Ray", "scaling, VGG16"}
    assert "has no Ray" in (output / "scaling.md").read_text(encoding="utf-8")


def test_a_missing_peer_costs_only_its_own_row(jpegs, onnx_path, tmp_path, monkeypatch):
    import run

    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "timm.py").write_text("raise ModuleNotFoundError('no timm here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    monkeypatch.setattr(run, "PEERS", ("timm",))
    monkeypatch.setattr(run.loops, "DATALOADERS", {})
    output = tmp_path / "results"
    run.main(
        [
            *("--images", str(jpegs), "--cnn", str(onnx_path), "--only", "peers", "broken"),
            *("--num-images", "12", "--runs", "2", "--output", str(output)),
        ]
    )
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    tltools, timm = results["comparisons"]["peers"]["rows"]
    assert len(tltools["seconds"]) == 2
    assert tltools["same_labels"] == 1.0
    assert timm["failure"] == "ModuleNotFoundError: no timm here"
    outcomes = {row["name"]: row["outcome"] for row in results["broken"]}
    assert outcomes["timm"] == ("the job died with 0 of 12 rows: ModuleNotFoundError: no timm here")
    assert outcomes["tltools"].startswith("12 of 12 rows; its row has the error: cannot read")


def test_every_preset_changes_existing_options():
    import gpu_check
    from run import PRESETS, parse

    assert set(PRESETS) == set(gpu_check.PRESETS)
    for preset, changed in PRESETS.items():
        options = vars(parse(["--preset", preset]))
        assert {name: options[name] for name in changed} == changed
    assert parse(["--preset", "tiny", "--runs", "7"]).runs == 7  # what is given counts


def loop_row(form: str, rate: float | None, **more: Any) -> dict[str, Any]:
    setting = {"form": form, "workers": 2, "threads": 1, "batch_size": 16}
    failure = "" if rate else "RuntimeError: no"
    return {"name": form, "setting": setting, "images_per_s": rate, "failure": failure} | more


def test_the_fastest_loops_and_the_fastest_eager_loop_are_measured():
    from loops import fastest

    rows = [loop_row("eager", 2.0), loop_row("ONNX", 9.0), loop_row("compiled", None)]
    rows += [loop_row("eager", 3.0), loop_row("TorchScript", 7.0), loop_row("TorchScript", 8.0)]
    found = [(row["name"], row["images_per_s"]) for row in fastest(rows)]
    assert found == [("ONNX", 9), ("TorchScript", 8), ("TorchScript", 7), ("eager", 3)]
    assert fastest([loop_row("eager", 1.0)]) == [loop_row("eager", 1.0)]  # and not twice


def test_the_ratio_to_the_best_loop_names_the_loop(results):
    import report

    results["comparisons"]["loops"] = {
        "title": "Loops",
        "num_images": 100,
        "rows": [
            row("tltools", [1.0, 2.0, 1.0]),
            row("loop: eager", [9.0, 9.0, 9.0]),
            row("loop: TorchScript, 2 workers", [2.0, 3.0, 2.0]),
        ],
    }
    results["loops_search"] = [loop_row("ONNX", 5.0), loop_row("compiled", None)]
    text = report.blocks(results)["cores"]
    assert (
        "tltools is 2.00 (1.50 to 2.00) times as fast as the best loop "
        "(loop: TorchScript, 2 workers)." in text
    )
    assert "| compiled | failed: RuntimeError: no |" in text
    assert "### Loops" not in report.blocks(results)["results"]


def test_efficiency_is_the_speedup_divided_by_the_cores():
    from cores import core_table

    rows = [{"cores": 1, "classify_per_s": 100.0, "decoding_per_s": 200.0, "failure": ""}]
    rows += [{"cores": 4, "classify_per_s": 300.0, "decoding_per_s": 800.0, "failure": ""}]
    rows += [{"cores": 8, "classify_per_s": None, "decoding_per_s": None, "failure": "too slow"}]
    _, table = core_table(rows)
    assert table[1] == ["4", "300", "3.00", "75%", "800", "4.00"]
    assert table[2] == ["8", "failed: too slow", "", "", "", ""]


def test_one_thread_of_each_physical_core_is_used_first(tmp_path, monkeypatch):
    import asking

    for cpu, siblings in enumerate(("0-1", "0-1", "2,3", "2,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(asking, "CPUS", tmp_path)
    allowed = {0, 1, 2, 3}
    monkeypatch.setattr(asking.os, "sched_getaffinity", lambda _pid: allowed, raising=False)
    chosen: list[Any] = []

    def choose(_pid: int, cores: Any) -> None:
        chosen.append(list(cores))

    monkeypatch.setattr(asking.os, "sched_setaffinity", choose, raising=False)
    assert asking.spread_cores() == [0, 2, 1, 3]
    with asking.only_cores(2) as used:
        assert used == [0, 2]
    assert [chosen[0], sorted(chosen[1])] == [[0, 2], [0, 1, 2, 3]]
    with (
        pytest.raises(asking.MeasurementError, match="8 cores asked for, 4 allowed"),
        asking.only_cores(8),
    ):
        pytest.fail("it went on with fewer cores")


def test_the_summary_of_classify_is_read():
    from asking import MeasurementError, read_summary

    summary = {"images_per_s": 12.5, "num_images": 3, "num_failed": 1, "plan": "p"}
    assert read_summary(summary) == {
        "images_per_s": 12.5,
        "num_images": 3,
        "num_failed": 1,
        "plan": "p",
        "layout": None,
        "tf32": None,
        "seconds": None,
    }
    with pytest.raises(MeasurementError, match="lacks images_per_s"):
        read_summary({"num_failed": 0})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_measurement_beyond_its_time_limit_is_killed_with_its_children(tmp_path):
    from asking import run_limited

    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    assert run_limited([sys.executable, "-c", script], 5, cwd=tmp_path) is None
    stat = Path("/proc") / (tmp_path / "pid").read_text() / "stat"

    def lives() -> bool:
        try:  # dead, it may wait for the process that inherited it
            return not stat.read_text().rpartition(") ")[2].startswith("Z")
        except (FileNotFoundError, ProcessLookupError):
            return False

    end = time.monotonic() + 60
    while lives():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_rows_written_before_a_failure_are_kept(jpegs, tmp_path):
    from asking import Asker

    request = {"folder": str(jpegs), "seconds": 0.01, "export": str(tmp_path / "missing.onnx")}
    rows, failure = Asker(tmp_path).ask_rows("decoding", processes=[1], **request)
    assert rows == []
    assert "missing.onnx" in failure


def test_a_failed_loop_is_a_row_and_the_others_give_the_same_labels(jpegs, onnx_path, tmp_path):
    import run
    from asking import Asker

    expected, output = tmp_path / "expected.csv", tmp_path / "loop.csv"
    command = ["classify", str(jpegs), "--model", str(onnx_path), "-o", str(expected)]
    subprocess.run([sys.executable, "-m", "tltools", *command], check=True, env=run.environment())
    base = {"workers": 1, "threads": 1, "batch_size": 5}
    rows, failure = Asker(tmp_path).ask_rows(
        "search_loops",
        job={"export": str(onnx_path), "run": "", "scratch": str(tmp_path)},
        settings=[base | {"form": "eager"}, base | {"form": "ONNX"}],
        folder=str(jpegs),
        warmup=str(jpegs),
        output=str(output),
        expected=str(expected),
    )
    eager, onnx = rows
    assert failure == ""
    assert eager["failure"].startswith("FileNotFoundError: needs the run")
    assert onnx["failure"] == ""
    assert onnx["num_images"] == 12
    assert onnx["same_labels"] == 1.0


def test_the_plain_loop_is_found_among_the_peers(jpegs, onnx_path, tmp_path):
    from asking import Asker, MeasurementError
    from loops import DATALOADERS

    assert list(DATALOADERS) == [f"DataLoader, {n}" for n in ("0 workers", "1 worker", "2 workers")]
    job = {"export": str(onnx_path), "run": "", "scratch": str(tmp_path)}
    for system in DATALOADERS:
        with pytest.raises(MeasurementError, match="needs the run that the export was made from"):
            Asker(tmp_path).ask(
                "run_system",
                system=system,
                job=job,
                folder=str(jpegs),
                warmup="",
                output=str(tmp_path / "output.csv"),
            )


@pytest.mark.slow
def test_the_gpu_check_runs_on_the_cpu_from_images_to_verdicts(jpegs, onnx_path, tmp_path):
    import gpu_check

    output = tmp_path / "results"
    code = gpu_check.main(
        [
            *("--images", str(jpegs), "--cnn", str(onnx_path), "--device", "cpu", "--tiny"),
            *("--output", str(output), "--work", str(tmp_path)),
            *("--only", "decoding", "classify", "session", "loop cnn ONNX", "cores", "timm"),
        ]
    )
    results = json.loads((output / "gpu.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in results["rows"]}
    kept = (output / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in kept] == results["rows"]
    assert rows["classify cnn fp32"]["num_images"] == gpu_check.TINY.cnn
    assert rows["session cnn fp32, batch 2"]["images_per_s"] > 0
    loops = [row for row in results["rows"] if row["group"] == "loop"]
    assert [row["failure"] for row in loops] == ["", ""]
    assert all(row["same_labels"] == 1.0 for row in loops)
    assert rows["timm"]["failure"]
    assert results["skipped"]["session vgg16 fp16"] == "there is no export of vgg16 fp16"
    verdicts = {line[0]: line[3] for line in results["checks"]}
    assert verdicts["CNN end to end, images/s"] == "**FAIL**"  # the machine has no GPU
    assert code == 1
    text = (output / "gpu.md").read_text(encoding="utf-8")
    assert "### CNN on the CPU alone, by cores" in text
    assert not list(tmp_path.glob("tltools-gpu-*"))


def test_a_check_without_time_left_skips_its_steps_with_a_reason(jpegs, onnx_path, tmp_path):
    import gpu_check

    words = ["--images", str(jpegs), "--cnn", str(onnx_path), "--tiny", "--budget-s", "0"]
    code = gpu_check.main([*words, "--output", str(tmp_path / "results")])
    results = json.loads((tmp_path / "results" / "gpu.json").read_text(encoding="utf-8"))
    assert results["rows"] == []
    assert results["skipped"]["classify cnn fp32"] == "no time was left for it"
    assert {line[3] for line in results["checks"]} == {"-"}
    assert code == 0


def test_verdicts_compare_with_the_smaller_limit(tmp_path, monkeypatch):
    import gpu_check
    from asking import Asker

    monkeypatch.setattr(gpu_check, "num_cores", lambda: 16)
    rates = {
        "limit": {
            "decoding, 16 processes": 30_000.0,
            "decoding, 8 threads": 90_000.0,
            "session cnn fp32, batch 64": 50_000.0,
            "session cnn fp32, batch 128": 100_000.0,
            "session vgg16 fp16, batch 64, nhwc": 7000.0,
        },
        "tltools": {"classify cnn fp32": 27_000.0, "classify vgg16 fp16": 6200.0},
        "loop": {"cnn loop: ONNX": 6000.0, "cnn loop: eager": 9000.0, "vgg16 loop: eager": 1e5},
    }
    check = gpu_check.Check(
        asker=Asker(tmp_path),
        sizes=gpu_check.TINY,
        device="cuda",
        exports={},
        runs={},
        sources=[],
        deadline=0,
        output=tmp_path,
        rows=[
            {"group": group, "name": name, "images_per_s": rate, "failure": ""}
            for group, named in rates.items()
            for name, rate in named.items()
        ],
        core_rows=[{"cores": 1, "classify_per_s": 500.0}, {"cores": 16, "classify_per_s": 6e3}],
    )
    found = {name: (measured, verdict) for name, measured, _, verdict in gpu_check.checks(check)}
    assert found["CNN end to end, images/s"] == ("27,000", "pass")
    assert found["CNN to the best DataLoader loop (loop: eager: 9,000)"] == ("3.00", "**FAIL**")
    limit = "to the smaller of decoding and the bare session"
    assert found[f"CNN fp32 {limit} (30,000 and 100,000)"] == ("0.90", "pass")
    assert found[f"VGG16 fp16 {limit} (30,000 and 7,000)"] == ("0.89", "**FAIL**")
    assert found[f"VGG16 TF32 {limit}"] == ("not measured", "-")
    assert found["CNN on the CPU, 16 cores to one"] == ("12.00", "pass")


def test_the_ordering_process_takes_cpu_time_and_a_lower_limit_fails(
    jpegs, onnx_path, tmp_path, capsys
):
    import ordering

    words = ["--model", str(onnx_path), "--images", str(jpegs), "--work", str(tmp_path)]
    words += ["--rounds", "1", "--sizes", "20", "420", "--json"]
    assert ordering.main([*words, "--max-us", "1e9"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["sizes"] == [20, 420]
    assert len(first["us_per_image"]) == 1
    assert ordering.main([*words, "--max-us=-1e9"]) == 1


def test_a_load_on_the_service_is_answered_and_fills_its_table(jpegs, onnx_path, capsys):
    import serve

    words = ["--model", str(onnx_path), "--images", str(jpegs), "--clients", "1", "2"]
    serve.main([*words, "--seconds", "0.2", "--rounds", "1", "--bare-images", "20"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["| 1", "| 2", "| 2, HTTP alone"]
    for row in rows[2:]:
        assert float(row[1].replace(",", "")) > 0
        assert float(row[3]) <= float(row[4]) <= float(row[5])
        assert row[6] == "200 |"


def test_a_tiny_run_of_cores_and_ordering_fills_its_tables(jpegs, onnx_path, tmp_path):
    import run

    output = tmp_path / "results"
    words = ["--preset", "tiny", "--images", str(jpegs), "--cnn", str(onnx_path)]
    run.main([*words, "--only", "cores", "ordering", "--output", str(output)])
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [row["failure"] for row in results["cores"]] == [""] * len(results["cores"])
    assert results["cores"][0]["cores"] == 1
    text = (output / "cores.md").read_text(encoding="utf-8")
    assert "us of CPU per image" in text
    assert "### CNN on the CPU alone, by cores" in text
    assert not (output / "results.md").exists()


@pytest.mark.slow
def test_a_tiny_run_of_loops_measures_the_fastest_beside_tltools(cnn_run, cnn_exports, tmp_path):
    import run

    jpegs = tmp_path / "jpegs"
    jpegs.mkdir()
    for number in range(12):
        level = (50, 200)[number % 2] + number  # as dark and bright as what the CNN was trained on
        Image.new("RGB", (224, 224), (level, level, level)).save(jpegs / f"{number}.jpg")

    output = tmp_path / "results"
    exports = {path.suffix: path for path in (result.path for result in cnn_exports.values())}
    words = ["--preset", "tiny", "--images", str(jpegs), "--cnn", str(exports[".onnx"])]
    words += ["--cnn-run", str(cnn_run), "--only", "loops", "gpu"]
    run.main([*words, "--output", str(output), "--gpu-s", "20"])
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    tried = {row["setting"]["form"]: row for row in results["loops_search"] if "setting" in row}
    assert set(tried) == {"eager", "compiled", "TorchScript", "ONNX"}
    # What compiles needs a C++ compiler, which not every machine has.
    assert [tried[form]["failure"] for form in ("eager", "TorchScript", "ONNX")] == [""] * 3
    tltools, *loops = results["comparisons"]["loops"]["rows"]
    assert tltools["same_labels"] == 1.0
    assert [row["failure"] for row in loops] == [""] * len(loops)
    assert all(row["same_labels"] == 1.0 for row in loops)
    assert any(row["name"].startswith("loop: eager") for row in loops)
    text = (output / "cores.md").read_text(encoding="utf-8")
    assert "times as fast as the best loop (loop: " in text
    assert "### What must hold" in (output / "gpu.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------- other runtimes


LOGITS = np.array([[2.0, -1.0], [-3.0, 4.0], [0.5, 0.0]])


@pytest.mark.parametrize(
    ("factor", "difference", "precision", "fits"),
    [
        pytest.param(1, 9e-5, "fp32", True, id="within the absolute limit"),
        pytest.param(1, 2e-4, "fp32", False, id="beyond it"),
        pytest.param(1e4, 0.3, "fp32", True, id="within the limit for large logits"),
        pytest.param(1e4, 0.5, "fp32", False, id="beyond that"),
        pytest.param(1, 0.4, "fp16", True, id="fp16 may differ if labels are the same"),
        pytest.param(1, -0.6, "fp16", False, id="a third of the labels changed"),
        pytest.param(1, -0.6, "int8", False, id="in int8 too"),
        pytest.param(1, np.nan, "int8", False, id="not a number"),
    ],
)
def test_an_answer_is_held_to_the_limits_of_its_card(factor, difference, precision, fits):
    import consumers

    from tltools.export.parity import BARS

    found = LOGITS * factor
    found[2, 0] += difference  # the third image's label is the first class by 0.5
    probs = np.full((3, 2), 0.5)
    row = consumers.Row(consumers.CONSUMERS[0], f"ONNX {precision}")
    expected = consumers.Answer(LOGITS * factor, probs)
    done = consumers.compared(row, consumers.Answer(found, probs), expected, BARS[precision])
    assert done.fits is fits
    assert done.num_changed == (1 if difference == -0.6 else 0)
    assert bool(consumers.problems([done])) is not fits
    assert ("**more than" in done.cells()[-1]) is not fits


def test_where_labels_alone_are_judged_the_limit_is_the_looser_of_two(cnn_exports):
    import consumers

    from tltools.artifacts import read_artifact

    card = read_artifact(cnn_exports["onnx"].path).card
    assert consumers.bar_of(card, labels_only=False).atol == 1e-4
    assert consumers.bar_of(card, labels_only=False).min_top1_agreement == 1.0
    assert consumers.bar_of(card, labels_only=True).atol is None
    assert consumers.bar_of(card, labels_only=True).min_top1_agreement == 0.995
    parity = msgspec.structs.replace(card.export.parity, min_top1_agreement=0.99)
    int8 = msgspec.structs.replace(card, export=msgspec.structs.replace(card.export, parity=parity))
    assert consumers.bar_of(int8, labels_only=True).min_top1_agreement == 0.99


def test_outputs_of_another_shape_are_beyond_the_limits():
    import consumers

    from tltools.export.parity import BARS

    row = consumers.Row(consumers.CONSUMERS[0], "ONNX fp32")
    expected = consumers.Answer(LOGITS, LOGITS, LOGITS[:, 0])
    other = consumers.Answer(LOGITS.T, LOGITS.T, LOGITS[:, 0])
    for found in (other, expected._replace(distances=None)):
        assert not consumers.compared(row, found, expected, BARS["fp32"]).fits
    done = consumers.compared(row, other, expected, BARS["fp32"])
    assert done.cells()[-1] == (
        "**more than outputs of [(3, 2), (3, 2), (3,)]: [(2, 3), (2, 3), (3,)]**"
    )


@pytest.mark.parametrize("distance", [[[1.0], [2.0]], [1.0, 2.0]], ids=["new", "older"])
def test_distances_are_read_from_new_and_older_exports(distance):
    import consumers

    outputs = {"logits": [[1, 2], [3, 4]], "probabilities": [[0.5, 0.5]] * 2}
    assert consumers.answer_of(outputs).distances is None
    found = consumers.answer_of(outputs | {"distance": distance}).distances
    np.testing.assert_array_equal(found, [1.0, 2.0])


@pytest.mark.parametrize(
    ("factor", "precision", "fits"),
    [(1.0005, "fp32", True), (1.01, "fp32", False), (1.01, "int8", True), (1.3, "int8", False),
     (np.nan, "int8", False)],
)  # fmt: skip
def test_distances_are_held_to_the_limits_of_an_export(factor, precision, fits):
    import consumers

    from tltools.export.parity import BARS

    expected = consumers.Answer(LOGITS, LOGITS, np.array([1.0, 2.0, 0.9]))
    found = expected._replace(distances=expected.distances * [1, factor, 1])
    row = consumers.Row(consumers.CONSUMERS[0], f"ONNX {precision}")
    done = consumers.compared(row, found, expected, BARS[precision])
    assert done.fits is fits
    assert done.distances == pytest.approx(factor - 1, nan_ok=True)


def test_a_runtime_may_refuse_a_file_but_not_all_of_them():
    import consumers

    first, second = consumers.CONSUMERS[:2]
    good = consumers.Row(first, "ONNX fp32", fits=True)
    refused = consumers.Row(first, "ONNX int8", failure="no such operator")
    absent = consumers.Row(second, "ONNX fp32", failure="it is not installed")
    assert consumers.problems([good, refused]) == []
    assert consumers.problems([good, absent]) == ["OpenVINO opens no file: it is not installed"]
    assert refused.cells()[-1] == "cannot open it: no such operator"


@pytest.fixture
def comparison(cnn_run, cnn_exports, tmp_path):
    """Of the small CNN's exports, in this environment, which has only two of the runtimes."""
    import consumers

    return consumers.Comparison(
        cnn_run, cnn_run.parents[1] / "exports", Path(sys.prefix), tmp_path, count=9
    )


def test_runtimes_that_are_installed_agree_and_the_others_have_the_reason(comparison, monkeypatch):
    import consumers

    names = ("onnxruntime", "predict.py", "torchscript", "absent", "web")
    chosen = [one for one in consumers.CONSUMERS if one.runtime in names]
    absent = consumers.Consumer("a runtime", "absent", ".onnx")
    monkeypatch.setattr(consumers, "CONSUMERS", (*chosen, absent))
    rows = {row.consumer.runtime: row for row in comparison.rows()}
    assert set(rows) == set(names)
    for name in ("onnxruntime", "predict.py", "torchscript"):
        assert rows[name].failure == ""
        assert rows[name].fits
        assert (rows[name].num_changed, rows[name].num_images) == (0, len(comparison.paths))
        assert rows[name].distances is not None
    assert rows["absent"].failure == "KeyError: 'absent'"
    assert "node" in rows["web"].failure


def test_what_opens_a_file_cannot_import_tltools(comparison, tmp_path):
    import consumers
    from asking import MeasurementError

    (tmp_path / "predict.py").write_text("import tltools\n", encoding="utf-8")
    (program,) = (one for one in consumers.CONSUMERS if one.runtime == "predict.py")
    with pytest.raises(MeasurementError, match="import of tltools halted"):
        comparison.ask(program, tmp_path)


def test_only_measured_blocks_are_replaced_in_the_readme(results, tmp_path, monkeypatch):
    import report
    import run
    from pages import SPEED_PAGES, marks, speed_table

    pages = tmp_path / "pages"
    pages.mkdir()
    for name in SPEED_PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((BENCHMARKS.parent / name).read_text(encoding="utf-8"))
    before = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    (pages / "README.md").write_text(before, encoding="utf-8")
    monkeypatch.setattr(run, "HERE", pages)
    measured = {name: value for name, value in results.items() if name != "memory"}
    measured["comparisons"] = {}
    measured["ordering"] = {"us_per_image": [11.0, 13.0, 12.0], "sizes": [10, 20]}
    for block, text in report.blocks(measured).items():
        (tmp_path / f"{block}.md").write_text(text, encoding="utf-8")
    run.write_pages(run.parse(["--output", str(tmp_path)]), measured)
    after = (pages / "README.md").read_text(encoding="utf-8")
    assert "takes 12.0 us of CPU per image (11.0 to 13.0; target: at most 15)" in after
    start, end = marks("cores")
    assert after.split(start)[0] == before.split(start)[0]
    assert after.split(end)[1] == before.split(end)[1]
    speed = speed_table(before).splitlines()
    for name in SPEED_PAGES:  # what was not measured this time is not shown, and the rest stays
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert next(row for row in speed if row.startswith("| CNN, GPU | ")) in page
        assert "CPU cores | - | - | - |" in page


def test_other_pages_repeat_the_measured_speed():
    from pages import SPEED, SPEED_PAGES, marks, speed_table

    table = speed_table((BENCHMARKS / "README.md").read_text(encoding="utf-8"))
    assert "| CNN, 2 CPU cores | 2,128 | 1,090 | - |" in table
    for name in SPEED_PAGES:
        first, last = marks(SPEED)
        page = (BENCHMARKS.parent / name).read_text(encoding="utf-8")
        assert page.partition(first)[2].partition(last)[0].strip() == table.strip()


def test_the_speed_table_is_made_from_the_measured_tables():
    from pages import speed_table

    page = """<!-- cores -->
- 4 cores of some CPU
### CNN beside the fastest DataLoader loops, 10 images
|  | images/s | time relative to tltools |
| --- | --- | --- |
| tltools | 1,000 | 1 |
| loop: eager, 2 workers | 200 | 5.00 |
| loop: ONNX, 2 workers | 400.5 | 2.50 |
| loop: compiled | failed: no compiler | |
<!-- end of cores -->
<!-- gpu -->
### CNN on the CPU alone, by cores
| cores | classify, images/s |
| --- | --- |
| 8 | 900 |
| 16 | 1,700 |
### tltools classify, end to end
|  | images/s | same labels |
| --- | --- | --- |
| classify cnn fp32 | 30,000 (29,000, 31,000) | |
### Limits
|  | images/s | same labels |
| --- | --- | --- |
| session cnn fp32, batch 1 | 10 | |
| session cnn fp32, batch 8 | 50,000 | |
| decoding, 16 processes | 60,000 | |
| decoding, 8 threads | 5,000 | |
<!-- end of gpu -->"""
    assert speed_table(page).splitlines()[2:] == [
        "| CNN, 4 CPU cores | 1,000 | 400 | - |",
        "| CNN, 16 CPU cores | 1,700 | - | - |",
        "| CNN, GPU | 30,000 | - | 50,000 |",
        "| VGG16 fp16, GPU | - | - | 60,000 |",
        "| VGG16 TF32, GPU | - | - | 60,000 |",
    ]


def test_the_table_of_backbones_has_a_row_for_each_file(monkeypatch, capsys):
    import backbones
    import torch

    threads = torch.get_num_threads()
    words = ["cnn", "--size", "32", "--images", "30", "--threads", "1", "--seconds", "0.1"]
    monkeypatch.setattr(sys, "argv", ["backbones.py", *words])
    try:
        backbones.main()
    finally:
        torch.set_num_threads(threads)
    _, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    files = ["PyTorch fp32", *(" ".join(one) for one in backbones.FILES)]
    assert [one[:2] for one in rows] == [["cnn", file] for file in files]
    for _, file, labels, *_, latency in rows:
        assert float(latency) > 0
        assert file == "PyTorch fp32" or labels.endswith("%")
