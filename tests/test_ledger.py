"""`classify --changed-only`: a model never classifies the same bytes twice."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from conftest import COLORS, run_tltools, save_image

from tltools.classify import Job, run_job
from tltools.classify.ledger import Ledger
from tltools.classify.output_formats.csv_rows import CsvCodec
from tltools.data import images
from tltools.errors import TltoolsError

SHA256 = "ab" * 32


@pytest.fixture
def classify(onnx_path, tmp_path, monkeypatch):
    """Run a job with a ledger, or without; return its summary, its bytes and what was decoded."""

    def run(folder, output, *, model=onnx_path, ledger=True, **options):
        decoded = []
        with monkeypatch.context() as patch:
            decode = images._load_any
            patch.setattr(
                images,
                "_load_any",
                lambda data, *a, **o: decoded.append(data) or decode(data, *a, **o),
            )
            summary = run_job(
                Job(
                    model,
                    [folder],
                    tmp_path / output,
                    device="cpu",
                    ledger_dir=tmp_path / "ledgers" if ledger else None,
                    **options,
                )
            )
        return summary, (tmp_path / output).read_bytes(), decoded

    return run


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 2, "batch_size": 4}], ids=str)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_known_images_are_not_decoded_and_get_the_same_rows(classify, images, suffix, options):
    (images / "red" / "bad.png").write_bytes(b"no image")
    _, expected, _ = classify(images, f"plain{suffix}", ledger=False, **options)
    first, rows, decoded = classify(images, f"first{suffix}", **options)
    assert (rows, first.num_known, len(decoded)) == (expected, 0, 31)
    second, rows, decoded = classify(images, f"second{suffix}", **options)
    assert (rows, second.num_known) == (expected, 30)
    assert decoded == [b"no image"]  # an error is not remembered: the file may be mended


def test_only_new_bytes_are_decoded_wherever_the_files_are(classify, images):
    classify(images, "first.csv")
    (images / "red" / "0.png").rename(images / "elsewhere.png")
    save_image(images / "red" / "1.png", COLORS["blue"], np.random.default_rng(99))
    save_image(images / "new.png", COLORS["blue"], np.random.default_rng(100))
    summary, rows, decoded = classify(images, "second.csv")
    changed = {(images / name).read_bytes() for name in ("red/1.png", "new.png")}
    assert (set(decoded), len(decoded), summary.num_known) == (changed, 2, 29)
    assert rows == classify(images, "plain.csv", ledger=False)[1]


def test_every_model_has_its_own_ledger(classify, images, tmp_path, make_onnx, make_card):
    classify(images, "first.csv")
    other = make_onnx(tmp_path / "other.onnx", make_card(run="another").to_json())
    summary, _, decoded = classify(images, "second.csv", model=other)
    assert (summary.num_known, len(decoded)) == (0, 30)
    assert classify(images, "third.csv", model=other)[0].num_known == 30


def test_a_stopped_job_keeps_what_it_classified(classify, images, monkeypatch):
    written = []
    encode = CsvCodec.encode

    def stop(self, prediction):
        written.append(prediction)
        if len(written) == 25:
            raise KeyboardInterrupt
        return encode(self, prediction)

    with monkeypatch.context() as patch:
        patch.setattr(CsvCodec, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            classify(images, "out.csv")
    _, rows, decoded = classify(images, "out.csv", overwrite=True)
    assert len(decoded) <= 6
    assert rows == classify(images, "plain.csv", ledger=False)[1]


def test_what_changes_the_logits_has_a_ledger_of_its_own(tmp_path):
    options = [{}, {"distances": True}, {"tf32": True}, {"distances": True, "tf32": True}]
    paths = set()
    for one in options:
        with Ledger(tmp_path, model_sha256=SHA256, num_classes=3, **one) as ledger:
            paths.add(ledger.path)
    assert len(paths) == len(options)


def test_two_jobs_at_once_share_a_ledger(tmp_path):
    one = Ledger(tmp_path, model_sha256=SHA256, num_classes=3)
    two = Ledger(tmp_path, model_sha256=SHA256, num_classes=3)
    with one, two:
        for number in range(100):
            ledger = (one, two)[number % 2]
            key, values = ledger.recall(str(number).encode())
            assert values is None
            ledger.remember(key, np.full(3, number, np.float32))
    with Ledger(tmp_path, model_sha256=SHA256, num_classes=3) as ledger:
        for number in range(100):
            _, values = ledger.recall(str(number).encode())
            assert values.dtype == np.float32
            assert values.tolist() == [number] * 3
    assert ledger.num_known == 100


def test_logits_with_another_number_of_classes_are_not_used(tmp_path):
    """A damaged row counts as unknown."""
    with Ledger(tmp_path, model_sha256=SHA256, num_classes=3) as ledger:
        key, _ = ledger.recall(b"image")
        ledger.remember(key, np.zeros(2, np.float32))
    with Ledger(tmp_path, model_sha256=SHA256, num_classes=3) as ledger:
        assert ledger.recall(b"image")[1] is None


def test_a_damaged_ledger_is_refused_with_a_remedy(tmp_path):
    with Ledger(tmp_path, model_sha256=SHA256, num_classes=3) as ledger:
        pass
    ledger.path.write_bytes(b"no database" * 1000)
    with pytest.raises(TltoolsError, match=r"cannot use the ledger .*; delete it.*`ledger_dir=`"):
        Ledger(tmp_path, model_sha256=SHA256, num_classes=3)


def test_a_folder_that_cannot_hold_a_ledger_is_named_with_a_way_out():
    with pytest.raises(TltoolsError, match=r": no such file or directory; choose another folder "):
        Ledger(Path("/proc/ledgers"), model_sha256=SHA256, num_classes=3)


def test_a_ledger_locked_by_another_program_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tltools.classify.ledger.LOCK_WAIT_S", 0.1)
    ledger = Ledger(tmp_path, model_sha256=SHA256, num_classes=1)
    other = sqlite3.connect(ledger.path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TltoolsError, match="locked"), ledger:
        ledger.remember(b"key", np.zeros(1, np.float32))
    other.close()


def test_a_ledger_error_does_not_hide_the_error_that_ended_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("tltools.classify.ledger.LOCK_WAIT_S", 0.1)
    ledger = Ledger(tmp_path, model_sha256=SHA256, num_classes=1)
    other = sqlite3.connect(ledger.path)
    other.execute("BEGIN EXCLUSIVE")
    ledger.remember(b"key", np.zeros(1, np.float32))
    with pytest.raises(KeyboardInterrupt), ledger:
        raise KeyboardInterrupt
    other.close()


def test_changed_only_works_on_the_command_line(images, onnx_path, tmp_path):
    command = ("classify", images, "--model", onnx_path, "--device", "cpu")
    cache = ("--changed-only", "--cache-dir", tmp_path / "cache")
    first = run_tltools(*command, *cache, "-o", "first.csv", cwd=tmp_path)
    again = run_tltools(*command, *cache, "-o", "again.csv", cwd=tmp_path)
    assert "0 images skipped" in first.err
    assert "30 images skipped: this model has classified their bytes" in again.err
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "first.csv").read_text()
    assert len(list((tmp_path / "cache" / "classified").glob("*.sqlite"))) == 1
    alone = run_tltools(*command, *cache[1:], "-o", "no.csv", cwd=tmp_path)
    assert alone.code == 2
    assert "--changed-only" in alone.err
    assert not Path(tmp_path / "no.csv").exists()
