"""Images unlike the training data: `--unknown` in every format, job and service."""

import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from conftest import load_onnx, make_exports, run_tltools, save_image, with_older_distance

from tltools import load_model
from tltools.card import CARD_KEY, Proportion
from tltools.classify import Job, Shard, merge_shards, run_job
from tltools.classify.output_formats import output_format
from tltools.decisions import decide
from tltools.errors import ArtifactError, ConfigError, DataError, ParityError
from tltools.export import parity
from tltools.export.parity import DISTANCE_RTOL, compare_distances
from tltools.graphs.precision import count_layers
from tltools.report.jobs import read_job
from tltools.run_folder import DISTANCE
from tltools.runtime import load_predictor, read_card
from tltools.runtime.model_formats.shared import check_distances
from tltools.runtime.pipeline import decode_batches

FORMATS = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
    ("torchscript", "fp32"),
    ("pt2", "fp32"),
)


@pytest.fixture(scope="module")
def exports(cnn_run, tmp_path_factory):
    """The CNN's exports by format and precision."""
    root = tmp_path_factory.mktemp("unknown")
    made = {}
    for formats, precisions in (
        (("onnx",), ("fp32", "fp16", "int8")),
        (("torchscript", "pt2"), ("fp32",)),
    ):
        for one in make_exports(cnn_run, formats, root, precisions=precisions, device="cpu"):
            made[one.facts.format, one.facts.precision] = one.path
    return made


@pytest.fixture(scope="module")
def export(exports):
    return exports["onnx", "fp32"]


@pytest.fixture(scope="module")
def odd(drawn, tmp_path_factory):
    """The images that the CNN was trained on, and red ones, which it has never seen."""
    root = tmp_path_factory.mktemp("odd") / "images"
    shutil.copytree(drawn, root)
    for number in range(4):
        save_image(root / f"red{number}.png", (250, 20, 20), np.random.default_rng(number))
    return root


def rows_of(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_csv(path)


# --------------------------------------------------------------------------------- the rule


def test_what_is_too_far_is_unknown_and_that_comes_before_uncertain():
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.9, 0.1], [0.6, 0.4]])
    found = decide(
        probs,
        ("a", "b"),
        min_confidence=0.8,
        distances=np.array([1.0, 1.0, 1.5, 1.0001]),
        max_distance=1.0,
    )
    assert found.known.tolist() == [True, True, False, False]
    assert found.kept.tolist() == [True, False, True, False]
    assert decide(probs, ("a", "b")).known.all()


# --------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("which", FORMATS, ids="-".join)
def test_every_file_gives_the_distances_of_pytorch(exports, cnn_run, odd, which):
    from tltools.distance import load_distance
    from tltools.training.run import load_run

    path = exports[which]
    card = read_card(path)
    facts = card.export.distances
    assert (facts.num_images, facts.num_compared) == (10, 6)
    assert facts.rtol == DISTANCE_RTOL[which[1]]
    # Images as alike as these may differ by less than the steps of int8 and fp16, depending on what
    # this machine's rounding made the CNN learn: then the file says so, see below.
    assert facts.max_diff <= (facts.rtol if which[1] == "fp32" else np.inf)
    (images,) = decode_batches(
        sorted(odd.rglob("*.png")), preprocessing=card.preprocessing, batch_size=20
    )
    import torch

    model, _ = load_run(cnn_run)
    distance, _ = load_distance(cnn_run / DISTANCE)
    with torch.inference_mode():
        expected = distance(model.features(torch.from_numpy(images)).numpy())
    predictor = load_predictor(path, device="cpu")
    found = predictor.distances(images)
    assert (found.dtype, found.shape) == (np.float32, (20,))
    rtol = 1e-3 if which[1] == "fp32" else max(0.05, 1.5 * facts.max_diff)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0.5 * rtol)
    if facts.max_diff > facts.rtol:
        with pytest.raises(
            ArtifactError, match=f"distances of this {which[1]} export of cnn differ"
        ):
            load_predictor(path, device="cpu", distances=True)
        return
    both = load_predictor(path, device="cpu", distances=True)(images)
    assert both.shape == (20, 3)
    np.testing.assert_array_equal(both[:, :2], predictor(images))
    np.testing.assert_array_equal(both[:, 2], found)
    # One image alone: the batch axis of the distance is no constant.
    np.testing.assert_allclose(predictor.distances(images[:1]), found[:1], rtol=1e-4)


def test_no_layer_is_quantized_or_counted_for_the_distance(exports):
    model = load_onnx(exports["onnx", "int8"])
    nodes = [node for node in model.graph.node if node.name.startswith("distance")]
    assert {"MatMul", "Gemm", "Sqrt"} <= {node.op_type for node in nodes}
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in nodes}
    assert count_layers(exports["onnx", "int8"]).num_float == 0  # as without a distance
    assert [one.name for one in model.graph.output] == ["logits", "probabilities", "distance"]


@pytest.mark.parametrize("which", FORMATS, ids="-".join)
def test_every_output_of_a_file_has_two_axes(exports, which):
    size, path = 3, exports[which]
    images = np.zeros((size, 224, 224, 3), np.uint8)
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": images})
    else:
        import torch

        if path.suffix == ".pt":
            module = torch.jit.load(path, map_location="cpu")
        else:
            module = torch.export.load(path).module()
        with torch.inference_mode():
            found = [one.numpy() for one in module(torch.from_numpy(images))]
    assert [(one.dtype, one.shape) for one in found] == [
        (np.float32, (size, 2)), (np.float32, (size, 2)), (np.float32, (size, 1))
    ]  # fmt: skip


@pytest.mark.parametrize("opset", [17, 18, 26])
def test_every_opset_has_the_distance(cnn_run, tmp_path, opset):
    (made,) = make_exports(cnn_run, ["onnx"], tmp_path, opset=opset, device="cpu")
    assert made.facts.distances.max_diff < 1e-3


def test_a_run_from_before_is_measured_on_export(cnn_run, tmp_path, export):
    run = tmp_path / "cnn"
    shutil.copytree(cnn_run, run)
    (run / DISTANCE).unlink()
    (made,) = make_exports(run, ["onnx"], tmp_path / "exports", device="cpu")
    found, expected = made.facts.distances, read_card(export).export.distances
    assert found.num_images == expected.num_images
    np.testing.assert_allclose(found.percentiles[-1], expected.percentiles[-1], rtol=0.5)
    assert not (run / DISTANCE).exists()


def test_wrong_distances_are_not_written_in_fp32_and_named(cnn_run, tmp_path, monkeypatch):
    from tltools.export.trained import TrainedRun

    right = TrainedRun.distances.func
    wrong = property(lambda self: right(self) * 1.01)
    monkeypatch.setattr(TrainedRun, "distances", wrong)
    with pytest.raises(ParityError, match=r"the distances differ from PyTorch's by up to .*worst"):
        make_exports(cnn_run, ["onnx"], tmp_path, device="cpu")
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_difference_counts_from_half_a_unit_on():
    paths = [Path("a"), Path("b")]
    reference, found = np.array([0.1, 2.0]), np.array([0.11, 2.1], np.float32)
    assert compare_distances(reference, found, paths, precision="int8") == pytest.approx(0.05)
    with pytest.raises(ParityError, match=r"up to 5\.0%, more than 0\.1% \(worst image b\)"):
        compare_distances(reference, found, paths, precision="fp32")
    with pytest.raises(ParityError, match="worst image a"):
        compare_distances(reference, np.array([np.nan, 2], np.float32), paths, precision="int8")
    assert parity.DISTANCE_FLOOR == 0.5


# --------------------------------------------------------------------------------- the jobs


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("threads", [None, 2])
def test_unknown_images_are_labeled_and_all_distances_written(
    export, odd, tmp_path, suffix, threads
):
    options = {"device": "cpu", "threads": threads}
    (odd / "bad.png").write_bytes(b"no image")
    plain, marked = tmp_path / f"plain{suffix}", tmp_path / f"marked{suffix}"
    run_job(Job(export, [odd], plain, **options))
    summary = run_job(Job(export, [odd], marked, unknown=95, **options))
    (odd / "bad.png").unlink()
    before, after = rows_of(plain), rows_of(marked)
    assert list(after.columns) == [*before.columns, "distance"]
    limit = read_card(export).export.distances.at(95)
    beyond = after["distance"] > limit
    assert (after["label"].fillna("") == before["label"].mask(beyond, "unknown").fillna("")).all()
    assert after.loc[after["path"].str.startswith("red"), "label"].eq("unknown").all()
    assert summary.num_unknown == beyond.sum() >= 4
    assert after["distance"].isna().sum() == summary.num_failed == 1
    assert sum(summary.counts.values()) + summary.num_unknown + summary.num_failed == 21
    for name in before.columns:
        if name != "label":
            assert after[name].equals(before[name])
    _, rows = output_format(marked).read(marked)
    assert [row.distance is None for row in rows] == after["distance"].isna().tolist()
    facts = read_job(marked)
    assert facts.counts["unknown"] == summary.num_unknown


def test_the_job_without_it_writes_what_an_export_without_distances_does(export, odd, tmp_path):
    run_job(Job(export, [odd], tmp_path / "a.csv", device="cpu"))
    first, *_ = (tmp_path / "a.csv").read_text().splitlines()
    assert first == "path,label,confidence,prob_bright,prob_dark,error"


def test_only_the_same_percentile_resumes(export, odd, tmp_path):
    output = tmp_path / "out.csv"
    run_job(
        Job(
            export, [odd], tmp_path / "whole.csv", device="cpu", unknown=90, batch_size=4, threads=2
        )
    )

    from contextlib import contextmanager

    from tltools.progress import Silent

    class Stopping(Silent):
        @contextmanager
        def bar(self, description, total, unit="images", *, epochs=None):
            yield self

        def advance(self, amount=1, note=""):
            raise KeyboardInterrupt

    job = {"device": "cpu", "batch_size": 4, "threads": 2}
    with pytest.raises(KeyboardInterrupt):
        run_job(Job(export, [odd], output, unknown=90, **job), progress=Stopping())
    for other, begun in ((95, "with `unknown=90`"), (None, "with `unknown=90`")):
        with pytest.raises(ConfigError, match=f"it was started {begun}"):
            run_job(Job(export, [odd], output, unknown=other, **job))
    assert run_job(Job(export, [odd], output, unknown=90, **job)).num_kept == 4
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_shards_with_distances_merge_and_others_are_refused(export, odd, tmp_path, suffix):
    job = {"device": "cpu", "batch_size": 4}
    shards = [tmp_path / f"{index}{suffix}" for index in (1, 2)]
    for index, path in enumerate(shards, 1):
        run_job(Job(export, [odd], path, shard=Shard(index, 2), unknown=90, **job))
    merge_shards(shards, tmp_path / f"merged{suffix}")
    run_job(Job(export, [odd], tmp_path / f"whole{suffix}", unknown=90, **job))
    pd.testing.assert_frame_equal(
        rows_of(tmp_path / f"merged{suffix}"), rows_of(tmp_path / f"whole{suffix}")
    )
    run_job(Job(export, [odd], shards[1], shard=Shard(2, 2), unknown=91, overwrite=True, **job))
    with pytest.raises(DataError, match="has a different `unknown=` than"):
        merge_shards(shards, tmp_path / f"other{suffix}")


def test_the_ledger_of_distances_is_apart(export, odd, tmp_path):
    job = {"device": "cpu", "ledger_dir": tmp_path / "ledger"}
    run_job(Job(export, [odd], tmp_path / "plain.csv", **job))
    first = run_job(Job(export, [odd], tmp_path / "first.csv", unknown=90, **job))
    again = run_job(Job(export, [odd], tmp_path / "again.csv", unknown=90, **job))
    other = run_job(Job(export, [odd], tmp_path / "other.csv", unknown=99, **job))
    assert (first.num_known, again.num_known, other.num_known) == (0, 20, 20)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "first.csv").read_bytes()


def test_images_in_an_archive_are_unknown_too(export, odd, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "images"), "tar", odd)
    summary = run_job(Job(export, [Path(archive)], tmp_path / "a.csv", device="cpu", unknown=95))
    assert summary.num_unknown >= 4


@pytest.mark.parametrize("value", [0, 0.99, 100, -1, float("nan")])
def test_a_percentile_out_of_range_is_refused(export, odd, tmp_path, value):
    with pytest.raises(ConfigError, match="`unknown=` must be a percentile of at least 1 and"):
        Job(export, [odd], tmp_path / "a.csv", unknown=value)


def test_an_export_without_distances_is_refused_and_classifies_as_before(
    onnx_path, images, tmp_path
):
    with pytest.raises(ArtifactError, match=r"no output 'distance'.*export the run again"):
        run_job(Job(onnx_path, [images], tmp_path / "a.csv", device="cpu", unknown=99))
    assert run_job(Job(onnx_path, [images], tmp_path / "a.csv", device="cpu")).num_unknown == 0


def test_an_older_onnx_export_has_the_same_distances(export, odd, tmp_path):
    """Its output `distance` has only the batch axis."""
    older = with_older_distance(export, tmp_path / "older.onnx")
    images = [odd / "red0.png", *sorted((odd / "dark").iterdir())]
    found, expected = (load_model(one, device="cpu").predict(images, unknown=95)
                       for one in (older, export))  # fmt: skip
    assert [(one.label, one.distance) for one in found] == [
        (one.label, one.distance) for one in expected
    ]
    assert found[0].label == "unknown"
    run_job(Job(export, [odd], tmp_path / "new.csv", device="cpu", unknown=95))
    run_job(Job(older, [odd], tmp_path / "old.csv", device="cpu", unknown=95))
    assert (tmp_path / "old.csv").read_bytes() == (tmp_path / "new.csv").read_bytes()
    ran = run_tltools("inspect", older, cwd=tmp_path)
    assert "distance, float32, one per image" in " ".join(ran.out.split())


@pytest.mark.parametrize("format_", ["torchscript", "pt2"])
def test_an_older_export_for_pytorch_has_the_same_distances(
    exports, cnn_run, odd, tmp_path, monkeypatch, format_
):
    import torch

    from tltools.runtime.model_formats import shared_torch

    class Older(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.module(features).squeeze(1)

    new = shared_torch._distance_module
    monkeypatch.setattr(shared_torch, "_distance_module", lambda distance: Older(new(distance)))
    (made,) = make_exports(cnn_run, [format_], tmp_path, device="cpu")
    images = [odd / "red0.png", *sorted((odd / "dark").iterdir())]
    found, expected = (
        load_model(one, device="cpu").predict(images, unknown=95)
        for one in (made.path, exports[format_, "fp32"])
    )
    assert [one.distance for one in found] == [one.distance for one in expected]
    assert found[0].label == "unknown"


def test_a_distance_of_another_shape_is_refused(export, tmp_path):
    import onnx

    model = load_onnx(export)
    model.graph.output[-1].type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError, match=r"its output is .*float distance\[\?, 2\], but by its"):
        load_model(tmp_path / "odd.onnx", device="cpu")
    for wrong in (np.zeros((2, 2), np.float32), np.zeros((3, 1), np.float32), np.zeros((2, 1))):
        with pytest.raises(ArtifactError, match=r"should be float32 \(2, 1\)"):
            check_distances(wrong, 2, export)


def changed(export: Path, path: Path, change) -> Path:
    """Write an export with another card."""
    import onnx

    model = load_onnx(export)
    card = change(read_card(export))
    onnx.helper.set_model_props(model, {CARD_KEY: card.to_json()})
    onnx.save(model, path)
    return path


def test_a_class_named_unknown_is_refused(export, odd, tmp_path):
    model = changed(
        export,
        tmp_path / "odd.onnx",
        lambda card: msgspec.structs.replace(card, classes=("unknown", "dark")),
    )
    with pytest.raises(ConfigError, match="has a class named 'unknown'"):
        run_job(Job(model, [odd], tmp_path / "a.csv", device="cpu", unknown=99))
    assert run_job(Job(model, [odd], tmp_path / "a.csv", device="cpu")).counts["unknown"] > 0


def test_distances_that_are_too_far_off_are_refused(export, odd, tmp_path):
    def worse(card):
        distances = msgspec.structs.replace(card.export.distances, max_diff=0.5, rtol=0.25)
        facts = msgspec.structs.replace(card.export, distances=distances)
        return msgspec.structs.replace(card, export=facts)

    model = changed(export, tmp_path / "odd.onnx", worse)
    with pytest.raises(ArtifactError, match=r"up to 50\.0%, more than 25\.0%; use an export with"):
        run_job(Job(model, [odd], tmp_path / "a.csv", device="cpu", unknown=99))
    (one,) = load_model(model, device="cpu").predict([odd / "red0.png"])
    assert (one.label is None, one.distance) == (False, None)


def test_a_card_with_bad_percentiles_is_no_card(export, tmp_path):
    def bad(card):
        facts = card.export.distances
        turned = msgspec.structs.replace(facts, percentiles=facts.percentiles[::-1])
        exported = msgspec.structs.replace(card.export, distances=turned)
        return msgspec.structs.replace(card, export=exported)

    with pytest.raises(ArtifactError, match="percentiles of distances must be"):
        read_card(changed(export, tmp_path / "odd.onnx", bad))
    assert isinstance(read_card(export).export.distances.beyond[0].validation, Proportion)


# --------------------------------------------------------------------------------- the rest


def test_a_program_gets_distances_and_unknown(export, odd, onnx_path):
    predictor = load_model(export, device="cpu")
    images = [odd / "red0.png", next((odd / "dark").iterdir())]
    far, near = predictor.predict(images, unknown=99)
    assert far.label == "unknown"
    assert near.label in predictor.classes
    assert far.distance > near.distance > 0
    assert predictor.predict(images)[0].label != "unknown"
    with pytest.raises(ConfigError, match="`unknown=` must be"):
        predictor.predict(images, unknown=100)
    without = load_model(onnx_path, device="cpu")
    assert without.predict(images)[0].distance is None
    with pytest.raises(ArtifactError, match="has no output 'distance'"):
        without.predict(images, unknown=99)


def test_the_command_line_labels_a_file_and_a_folder(export, odd, tmp_path):
    words = ("--model", export, "--unknown", "99", "--device", "cpu")
    ran = run_tltools("classify", odd / "red0.png", *words, cwd=tmp_path)
    assert ran.out.splitlines()[0] == "unknown"
    assert re.fullmatch(r"distance \d+\.\d\d", ran.out.splitlines()[-1])
    limit = r"Unknown: at a distance above \d+\.\d\d, the 99th percentile of the training images"
    assert re.search(limit, ran.err)
    (row,) = json.loads(
        run_tltools("classify", odd / "red0.png", *words, "--json", cwd=tmp_path).out
    )
    assert (row["label"], row["distance"] > 1) == ("unknown", True)
    ran = run_tltools("classify", odd, *words, "--sort-into", "sorted", "--json", cwd=tmp_path)
    told = json.loads(ran.out)
    assert told["num_unknown"] >= 4
    assert len(list((tmp_path / "sorted" / "unknown").iterdir())) == told["num_unknown"]
    assert f"{told['num_unknown']} unknown" in ran.err
    shown = run_tltools("inspect", export, cwd=tmp_path).out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(
        re.fullmatch(r"99th percentile [\d.]+, the limit of tltools classify --unknown 99", one)
        for one in lines
    )
    assert any(re.fullmatch(r"beyond the 99th percentile [\d.]+% of \d+ validation images?", one)
               for one in lines)  # fmt: skip
    assert any(one.startswith("distance to ") for one in lines)
