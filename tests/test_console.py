import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len

from tltools.console import (
    RichProgress,
    duration,
    from_here,
    in_options,
    print_markdown,
    print_table,
    printable,
    printable_json,
    rate,
    remember_typed,
)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("x exists; pass `overwrite=True`", "x exists; pass --overwrite"),
        ("`batch_size=` must be at least 1, got 0", "--batch-size must be at least 1, got 0"),
        ("use `device=cpu`, or `image_timeout_s=60`", "use --device cpu, or --image-timeout 60"),
        ("the file `a b` has 1 == 2 rows", "the file `a b` has 1 == 2 rows"),
    ],
)
def test_parameters_of_the_library_become_options(message, expected):
    assert in_options(message) == expected


def visible(text):
    """Return `text` without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_without_a_terminal_a_bar_is_an_occasional_line_and_a_last_one():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock=clock).bar("Classify", 4000) as bar:
        for _ in range(25):  # a second and 100 images each
            clock.now += 1
            bar.advance(100, note="cat.jpg")
    assert stream.getvalue().splitlines() == [
        "Classify: 1,000/4,000 images, 100 images/s, 30 s left, cat.jpg",
        "Classify: 2,000/4,000 images, 100 images/s, 20 s left, cat.jpg",
        "Classify: 2,500/4,000 images, done in 25 s, 100 images/s",
    ]


def test_a_training_counts_the_images_of_its_epoch():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock=clock).bar("Train", 100, epochs=range(3, 6)) as bar:
        for _ in range(10):  # 25 images in 5 seconds each
            clock.now += 5
            bar.advance(25, note="loss 0.1")
    assert stream.getvalue().splitlines() == [
        "Train: epoch 3 of 5, 50/100 images, 5.0 images/s, 50 s left, loss 0.1",
        "Train: epoch 3 of 5, 100/100 images, 5.0 images/s, 40 s left, loss 0.1",
        "Train: epoch 4 of 5, 50/100 images, 5.0 images/s, 30 s left, loss 0.1",
        "Train: epoch 4 of 5, 100/100 images, 5.0 images/s, 20 s left, loss 0.1",
        "Train: epoch 5 of 5, 50/100 images, 5.0 images/s, 10 s left, loss 0.1",
        "Train: epoch 5 of 5, 50/100 images, done in 50 s, 5.0 images/s",
    ]


def test_a_training_counts_the_images_of_its_epoch_on_a_terminal(terminal):
    with RichProgress(terminal).bar("Train", 216, epochs=range(1, 16)) as bar:
        bar.advance(216)
        bar.advance(100)
    assert "epoch 2 of 15, 100/216" in visible(terminal.getvalue())


def test_the_rate_on_a_terminal_is_that_of_the_last_seconds_and_an_early_time_is_marked(terminal):
    clock = Clock()
    with RichProgress(terminal, clock=clock).bar("Classify", 100_000) as bar:
        for number in (1000, 4000, 50_000):  # in ten seconds each
            clock.now += 10
            bar.advance(number)
            bar._bars.refresh()
    shown = visible(terminal.getvalue())
    assert "1,000/100,000, 100 images/s, about 16:30 min left" in shown
    assert "5,000/100,000, 400 images/s, 3:58 min left" in shown
    assert "55,000/100,000, 5,000 images/s, 9.0 s left" in shown
    assert "55,000/100,000, 30 s, 1,833 images/s" in shown


@pytest.mark.parametrize("took", [0.5, 1.5])
def test_quick_work_leaves_nothing_behind(terminal, took):
    clock, plain = Clock(), io.StringIO()
    for stream in (terminal, plain):
        with RichProgress(stream, clock=clock).bar("Check", 10) as bar:
            bar.advance(10)
            clock.now += took
    assert bool(plain.getvalue()) is (took > 1)
    # A bar that goes is erased: its line is cleared again.
    assert terminal.getvalue().endswith("\x1b[2K") is (took < 1)


def test_a_single_image_is_not_plural():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock=clock).bar("Explain", 1) as bar:
        clock.now += 2
        bar.advance()
    assert stream.getvalue() == "Explain: 1/1 image, done in 2.0 s, 30.0 images/min\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("{here}/a b/c.jpg is missing", "a b/c.jpg is missing"),
        ("2 images ({here}/a.jpg: cut; '{here}/b.jpg')", "2 images (a.jpg: cut; 'b.jpg')"),
        ("classes from the folders in {here}", "classes from the folders in {here}"),
        ("/mnt{here}/a.jpg", "/mnt{here}/a.jpg"),
        ("file://{here}/a.jpg", "file://{here}/a.jpg"),
        ("{here}s/a.jpg", "{here}s/a.jpg"),
        ("{here}/", "{here}/"),
    ],
)
def test_paths_below_the_current_folder_are_shown_from_there(
    message, shown, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    message, shown = message.format(here=tmp_path), shown.format(here=tmp_path)
    assert from_here(message) == shown
    stream = io.StringIO()
    RichProgress(stream).say(message)
    assert stream.getvalue() == f"{shown}\n"
    print_table("", ("path",), [(message,)])
    assert " ".join(shown.split()) in " ".join(capsys.readouterr().out.split())


def test_in_a_deleted_folder_paths_stay_as_they_are(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert from_here(f"{gone}/a.jpg") == f"{gone}/a.jpg"


def test_rates_are_those_of_the_last_seconds_and_an_early_estimate_is_marked():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock=clock).bar("Classify", 10_000) as bar:
        for number in (100, 900, 2000):  # in ten seconds each
            clock.now += 10
            bar.advance(number)
    assert stream.getvalue().splitlines() == [
        "Classify: 100/10,000 images, 10.0 images/s, about 16:30 min left (early estimate)",
        "Classify: 1,000/10,000 images, 90.0 images/s, 1:40 min left",
        "Classify: 3,000/10,000 images, 200 images/s, 35 s left",
        "Classify: 3,000/10,000 images, done in 30 s, 100 images/s",
    ]


def test_a_bar_without_a_total_shows_count_and_rate():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock=clock).bar("Look", None, unit="files") as bar:
        clock.now += 100
        bar.advance(30)
    assert stream.getvalue().splitlines() == [
        "Look: 30 files, 18.0 files/min",
        "Look: 30 files, done in 1:40 min, 18.0 files/min",
    ]


def test_a_bar_that_ends_with_an_error_says_where_it_stopped():
    stream, clock = io.StringIO(), Clock()
    bar = RichProgress(stream, clock=clock).bar("Train", 10, unit="epochs")

    def fail():
        with bar as open_bar:
            open_bar.advance(3)
            clock.now += 6
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        fail()
    assert stream.getvalue() == "Train: 3/10 epochs, stopped after 6.0 s, 30.0 epochs/min\n"


def test_a_bar_without_items_says_so():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock=clock).bar("Classify", 0):
        clock.now += 2
    assert stream.getvalue() == "Classify: 0/0 images, done in 2.0 s\n"


def test_warnings_are_labeled_as_warnings():
    stream = io.StringIO()
    progress = RichProgress(stream)
    progress.say("hello [bold]you[/bold]")
    progress.warn("two copies")
    assert stream.getvalue() == "hello [bold]you[/bold]\nwarning: two copies\n"


def test_a_dumb_terminal_gets_plain_text(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    progress = RichProgress(terminal)
    progress.warn("careful")
    with progress.bar("Work", 1):
        pass
    assert "\x1b" not in terminal.getvalue()


def test_a_terminal_gets_a_bar_with_rate_time_and_note(terminal):
    with RichProgress(terminal).bar("Classify", 2000) as bar:
        bar.advance(1500, note="cat\x1b[31m[red].jpg")
        bar._bars.refresh()
    shown = visible(terminal.getvalue())
    assert "Classify ━" in shown
    assert "1,500/2,000" in shown
    assert "cat\\x1b[31m[red].jpg" in shown
    assert "\x1b[31m" not in terminal.getvalue()


def test_a_long_note_does_not_push_the_figures_off_the_line(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    clock = Clock()
    with RichProgress(terminal, clock=clock).bar("Benchmark", 9, unit="rounds") as bar:
        clock.now += 60
        bar.advance(2, note="n" * 300)
        bar._bars.refresh()
    lines = visible(terminal.getvalue()).replace("\r", "\n").splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert any("2/9, 2.0 rounds/min, 3:30 min left" in line and "nnn…" in line for line in lines)


def test_bars_can_be_nested_with_lines_between_them(terminal):
    progress = RichProgress(terminal)
    with progress.bar("Outer", 2, unit="runs") as outer:
        for _ in range(2):
            with progress.bar("Inner", 3) as inner:
                inner.advance(3)
            progress.warn("between")
            outer.advance()
    with progress.bar("Next", 1) as bar:
        bar.advance()
    shown = visible(terminal.getvalue())
    assert shown.count("warning: between\n") == 2
    assert "Inner" in shown
    assert "Inner" not in shown[shown.rindex("Outer") :]  # an inner bar goes when it is done


def test_a_bar_does_not_touch_standard_output(terminal, capsys):
    with RichProgress(terminal).bar("Classify", 1):
        print("cat.jpg,cat")
    assert capsys.readouterr().out == "cat.jpg,cat\n"
    assert "cat.jpg" not in terminal.getvalue()


def test_a_warning_is_yellow_unless_no_color_is_set(terminal, monkeypatch):
    RichProgress(terminal).warn("careful")
    assert "\x1b[33mwarning: \x1b[0mcareful\n" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    RichProgress(plain).warn("careful")
    assert plain.getvalue() == "warning: careful\n"


def test_a_long_line_is_not_broken(terminal):
    path = "/very/long/" + "x" * 200
    RichProgress(terminal).say(path)
    assert path in terminal.getvalue()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("cat.jpg", "cat.jpg", id="plain"),
        pytest.param("Überholspur 写真 😀 a\u200db", "Überholspur 写真 😀 a\u200db", id="letters"),
        pytest.param("\x1b]0;owned\x07", "\\x1b]0;owned\\x07", id="escape sequence"),
        pytest.param("a\nerror: b\tc\r", "a\\nerror: b\\tc\\r", id="line breaks"),
        pytest.param("\x9b31m", "\\x9b31m", id="C1 control"),
        pytest.param("gpj.\u202etac", "gpj.\\u202etac", id="right to left override"),
        pytest.param("caf\udce9", "caf\\udce9", id="a byte that is no text"),
    ],
)
def test_names_cannot_control_the_terminal(name, shown):
    assert printable(name) == shown


def test_characters_that_the_encoding_lacks_are_escaped():
    assert printable("é写", "latin-1") == "é\\u5199"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    RichProgress(stream).say("写")
    stream.seek(0)
    assert stream.read() == "\\u5199\n"


def test_a_table_without_a_terminal_keeps_long_names_whole(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    path = "/data/" + "abcdefghij" * 12
    print_table("Findings [1]", ("check", "detail"), [("ok", path), ("fail", "[red]no\x1b[0m")])
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "…" not in out
    assert any(line.split() == ["ok", path] for line in out.splitlines())
    assert "[red]no\\x1b[0m" in out
    assert "Findings [1]" in out


EXPORTS = [
    ("exports/cnn/cnn.fp32.onnx", "1.3", "cpu", "100.0%", "+0.0", "1.2e-06", "153"),
    ("exports/vgg16-2/vgg16-2.fp16.onnx", "268.6", "cuda", "99.3%", "+0.7", "5.5e-03", "153"),
]
TABLES = {
    "exports": (
        (
            "export",
            "MB",
            "device",
            "same label",
            "top-1 change, points",
            "max logit diff",
            "images",
        ),
        EXPORTS,
    ),
    "findings": (
        ("", "finding"),
        [
            ("warning", "3 images are byte-identical: photos/fire-engine/0001.jpg and 2 others"),
            ("ok", "/data/a-folder-with-a-name-of-forty-characters-/" + "0123456789" * 5 + ".jpg"),
        ],
    ),
    "runs": (
        ("model", "validation accuracy", "run"),
        [("vgg16 pooled", "95.7% (91.4% to 97.9%), 155/162", "runs/vgg16-2")],
    ),
    "wide characters": (("image", "label"), [("写真/" + "写真" * 20, "消防車"), ("a.jpg", "x")]),
    "confusion": (
        ("", *(f"class-{number}" for number in range(12))),
        [(f"class-{number}", *"0123456789ab") for number in range(12)],
    ),
}


@pytest.fixture
def table_at(monkeypatch):
    """Print a table on a terminal of this width, None for a file, and return its lines."""
    monkeypatch.setenv("TERM", "xterm")

    def show(width, columns, rows):
        stream = io.StringIO() if width is None else Terminal()
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("COLUMNS", str(width or 80))
        print_table("A table", columns, rows)
        shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
        return [line.rstrip() for line in shown.splitlines()]

    return show


def parts_of(cell):
    """What must never be broken: words, and the parts of a path."""
    words = re.findall(r"\([\d.]+% to [\d.]+%\),?|\S+", cell)  # nor an interval
    return [part for word in words for part in re.findall("[^/]*/+|[^/]+", word)]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200, None])
@pytest.mark.parametrize("table", TABLES)
def test_no_name_in_a_table_is_broken(table_at, table, width):
    columns, rows = TABLES[table]
    lines = table_at(width, columns, rows)
    shown = " ".join(lines)
    for cell in (cell for row in rows for cell in row):
        for part in parts_of(cell):
            assert part in shown, "\n".join(lines)
        if width is None:  # a path can be copied, and found by grep
            assert all(word in shown for word in cell.split())
    longest = max(cell_len(part) for row in rows for cell in row for part in parts_of(cell))
    if width is not None and len(columns) <= 8:
        assert max(map(cell_len, lines)) <= max(width, longest)


@pytest.mark.parametrize(("width", "rows"), [(80, EXPORTS[:1]), (200, EXPORTS), (None, EXPORTS)])
def test_paths_are_whole_where_there_is_room(table_at, width, rows):
    lines = table_at(width, TABLES["exports"][0], rows)
    for row in rows:
        assert row in [tuple(line.split()) for line in lines]


def test_a_narrow_terminal_shows_a_line_for_each_cell(table_at):
    columns, row = ("model", "accuracy", "run"), ("vgg16 pooled", "9" * 10, "runs/" + "v" * 16)
    assert table_at(30, columns, [row])[1:] == [
        "model: vgg16 pooled",
        "accuracy: 9999999999",
        "run: runs/vvvvvvvvvvvvvvvv",
        "",
    ]


def test_prose_is_wrapped_and_listings_are_not(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout", Terminal())
    command = "$ tltools classify photos/ --output labels.parquet --min-confidence 0.9"
    print_markdown("Words and more words. " * 9 + f"\n\n```console\n{command}\n```\n")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue()).splitlines()
    assert command in shown
    prose = [line for line in shown if line.startswith(("Words", "words", "and", "more"))]
    assert len(prose) > 4
    assert max(map(len, prose)) <= 40


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot read {}/mine/a.jpg: no", "cannot read ../mine/a.jpg: no"),
        ("folders in {}/mine", "folders in ../mine"),
        ("'{}/mine' and ({}/mine): {}/mine;", "'../mine' and (../mine): ../mine;"),
        ("{}/mine2 {}/mine.csv {}/other", "{}/mine2 {}/mine.csv {}/other"),
        ("file://{}/mine x{}/mine", "file://{}/mine x{}/mine"),
        ("{}/work/mine", "mine"),
        ("{}/given/b.jpg", "../given/b.jpg"),
    ],
)
def test_a_path_outside_the_folder_is_shown_as_it_was_typed(tmp_path, monkeypatch, message, shown):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    remember_typed(["train", "../mine/", "--images=../given", str(tmp_path / "other")])
    try:
        assert from_here(message.format(*[tmp_path] * 3)) == shown.format(*[tmp_path] * 3)
    finally:
        remember_typed([])
    assert from_here(f"{tmp_path}/mine/a.jpg") == f"{tmp_path}/mine/a.jpg"


def test_headings_are_wrapped_before_cells(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    cells = ("exports/vgg16-2/vgg16-2.fp32.onnx", "537.1", "100.00%", "1.0e-07", "153")
    headings = ("export", "MB", "top-1 agreement", "largest logit difference", "images in all")
    print_table("", headings, [cells])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert cells in [tuple(line.split()) for line in out.splitlines()]
    assert all(word in out for heading in headings for word in heading.split())
    assert "largest logit difference" not in out


def test_numbers_are_right_aligned(capsys):
    rows = [("a", "1.5", "+0.1%"), ("bcd", "100.0", "-10.0%"), ("c", "-", "")]
    print_table("", ("name", "ms", "change"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines if line.strip()[:1] in ("a", "b", "c")] == [
        " a       1.5   +0.1%",
        " bcd   100.0  -10.0%",
        " c         -",
    ]


def test_names_that_start_with_a_digit_are_no_numbers(capsys):
    print_table("", ("image", "share"), [("12_a.jpg", "7%"), ("2026-report.jpg", "< 0.1 %")])
    first, second = (line.rstrip() for line in capsys.readouterr().out.splitlines()[-3:-1])
    assert first.startswith(" 12_a.jpg   ")
    assert (first[-2:], second[-7:]) == ("7%", "< 0.1 %")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.02, "<0.1 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.7, "1:00 min"),
        (185, "3:05 min"),
        (7385, "2:03:05 h"),
    ],
)
def test_durations_are_written_in_natural_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(1234.5, "1,234 x/s"), (12.34, "12.3 x/s"), (0.5, "30.0 x/min"), (0.96, "1.0 x/s")],
)
def test_slow_rates_are_per_minute(per_second, text):
    assert rate(per_second, "x") == text


def test_importing_the_console_does_not_import_rich():
    script = "import sys, tltools.console; print('rich' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("False\n", "")


def test_json_is_unchanged_and_cannot_control_the_terminal():
    document = {
        "name": "a\x1b[31m\x9b\u202eb\x7f\U000e0001",
        "plain": "é ü\u200d 日本",
        "n": [1, 2],
    }
    text = json.dumps(document, ensure_ascii=False, indent=2)
    shown = printable_json(text)
    assert json.loads(shown) == document
    assert "é ü\u200d 日本" in shown
    for line in shown.split("\n"):
        assert line == printable(line)


@pytest.mark.parametrize(("verbose", "is_silent"), [(False, True), (True, False)])
def test_in_a_home_that_cannot_be_written_matplotlibs_own_lines_need_verbose(verbose, is_silent):
    code = (
        "from tltools.cli.command import Out\n"
        f"Out(quiet=False, verbose={verbose}, as_json=False)\n"
        "import matplotlib\n"
        "matplotlib.get_cachedir()"
    )
    hidden = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": "/proc"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stderr == "") is is_silent
