"""benchmarks/: what needs no peer. The measurements themselves have no right answer."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    """A dozen pictures, each of another shade."""
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
    """Results with round numbers: 100 pictures, three turns."""
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "run.py",
        "machine": {"cpu": "a chip", "cores": 2, "memory_bytes": 2**33, "os": "an OS", "gpus": []}
        | {"versions": {"python": "3"}},
        "packages": {},
        "inputs": ["pictures: drawn"],
        "runs": 3,
        "skipped": {"vgg16": "no --vgg16 given"},
        "comparisons": {
            "peers": {
                "title": "Peers",
                "num_pictures": 100,
                "rows": [
                    row("tltools", [1.0, 2.0, 1.0], same_labels=1.0),
                    row("DataLoader, 0 workers", [9.0, 9.0, 9.0]),
                    row("DataLoader, 2 workers", [3.0, 10.0, 4.0], same_labels=0.98),
                    row("timm", [], failure="ModuleNotFoundError: No module named 'timm'"),
                ],
            },
            "limits": {
                "title": "Limits",
                "num_pictures": 100,
                "rows": [
                    row("tltools", [1.0, 1.0, 1.0]),
                    row("decoding alone", [0.5, 0.25, 0.25]),
                    row("session: 2 callers", [0.5, 0.5, 0.5]),
                    row("session: 1 caller", [0.75, 0.75, 0.75]),
                ],
            },
        },
        "memory": [
            {"num_pictures": 10, "peak_bytes": [100e6, 100e6]},
            {"num_pictures": 1000, "peak_bytes": [112e6, 112e6]},
        ],
    }


def test_the_combined_limit_is_that_of_two_kinds_of_work_in_a_row():
    from limits import combined

    assert 1 / combined(1 / 4000, 1 / 2000) == pytest.approx(1 / (1 / 4000 + 1 / 2000))


def test_ratios_compare_what_was_measured_in_the_same_turn(results):
    import report

    found = {figure.name: figure for figure in report.figures(results)}
    loop = found["CNN: tltools to the best loop (DataLoader, 2 workers)"]  # best by its median
    assert loop[1:] == ("4.00 (3.00 to 5.00)", "≥ 4", True)  # 3/1, 10/2 and 4/1
    limit = found["CNN: tltools to the combined limit"]
    assert limit[1:] == ("0.75 (0.75 to 1.00)", "≥ 0.9", False)  # .5+.5, .25+.5 and .25+.5
    memory = found["Peak memory, 1,000 pictures to 10"]
    assert memory[1:] == ("1.120", "< 1.1", False)
    assert len(found) == 3  # nothing is said about what was not measured


def test_the_tables_show_failures_and_what_was_left_out(results):
    import report

    text = report.to_markdown(results)
    assert "| timm | failed: ModuleNotFoundError: No module named 'timm' |" in text
    assert "| DataLoader, 2 workers | 25.0 | 4.00 (3.00 to 5.00) | 0.5 s | 98.00% |" in text
    assert "| combined limit | 133 | 0.75 (0.75 to 1.00) |" in text
    assert "Not measured: vgg16: no --vgg16 given" in text


def test_the_plot_is_a_picture(results, tmp_path):
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
            id="label of another picture",
        ),
    ],
)
def test_what_became_of_a_broken_picture(tmp_path, rows, expected):
    from run import what_became

    with (tmp_path / "output.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "confidence", "error"), *rows])
    outcome = what_became(tmp_path / "output.csv", "b.jpg", 3)
    assert outcome.startswith(f"{len(rows)} of 3 rows")
    assert expected in outcome


def test_one_picture_among_the_broken_ones_is_broken(jpegs, tmp_path):
    import pictures

    folder, broken = pictures.with_broken(pictures.find_jpegs(jpegs), tmp_path / "broken", 5)
    unreadable = []
    for path in pictures.find_jpegs(folder):
        try:
            Image.open(io.BytesIO(path.read_bytes())).load()
        except OSError:
            unreadable.append(path.name)
    assert unreadable == [broken]


def test_links_are_spread_over_folders(jpegs, tmp_path):
    import pictures

    sources = pictures.find_jpegs(jpegs)
    folder = pictures.link_tree(sources, tmp_path / "tree", 25, folders=3)
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
    from run import MARKS, with_results

    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    once = with_results(readme, "new tables")
    assert with_results(once, "new tables") == once
    assert once.split(MARKS[0])[0] == readme.split(MARKS[0])[0]
    assert "new tables" in once


def test_help_names_every_part():
    from run import PARTS

    command = [sys.executable, str(BENCHMARKS / "run.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(part in result.stdout for part in PARTS)


def test_limits_from_pictures_to_plot(jpegs, onnx_path, tmp_path):
    import run

    output = tmp_path / "results"
    run.main(
        [
            *("--pictures", str(jpegs), "--cnn", str(onnx_path), "--only", "limits"),
            *("--num-pictures", "12", "--runs", "1", "--output", str(output)),
            *("--work", str(tmp_path)),
        ]
    )
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    rows = results["comparisons"]["limits"]["rows"]
    assert [row["name"] for row in rows] == ["tltools", run.DECODING, *run.SMALL_SESSIONS]
    assert all(row["failure"] == "" and row["seconds"][0] > 0 for row in rows)
    assert "combined limit" in (output / "results.md").read_text(encoding="utf-8")
    assert (output / "results.png").stat().st_size > 1000
    assert not list(tmp_path.glob("tltools-bench-*"))  # pictures do not stay behind


def test_a_peer_that_is_missing_costs_its_own_row_only(jpegs, onnx_path, tmp_path, monkeypatch):
    import run

    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "timm.py").write_text("raise ModuleNotFoundError('no timm here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    monkeypatch.setattr(run, "PEERS", ("timm",))
    output = tmp_path / "results"
    run.main(
        [
            *("--pictures", str(jpegs), "--cnn", str(onnx_path), "--only", "peers", "broken"),
            *("--num-pictures", "12", "--runs", "2", "--output", str(output)),
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
