"""Every export carries drawn images and PyTorch's answers, and is refused if it differs."""

import io
import json
import shutil

import msgspec
import numpy as np
import onnx
import pytest
from conftest import load_onnx, make_exports, run_tltools, set_card
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from tltools.card import SelfTest
from tltools.data.images import load_image
from tltools.errors import ArtifactError, ParityError
from tltools.export.selftest import SIDE, draw_images, make_self_test
from tltools.runtime import load_predictor, read_card
from tltools.runtime.selftest import expected_logits, lacks_self_test, replay
from tltools.training.run import open_run


@pytest.fixture(scope="module")
def exports(cnn_run, cnn_exports, tmp_path_factory):
    """The CNN's exports by name of the file."""
    folder = tmp_path_factory.mktemp("selftest")
    made = make_exports(cnn_run, ["onnx"], folder, precisions=("fp16", "int8"))
    return {one.path.name: one.path for one in (*cnn_exports.values(), *made)}


NAMES = ["cnn.fp32.onnx", "cnn.fp32.pt", "cnn.fp16.onnx", "cnn.int8.onnx"]


def self_test_of(path) -> SelfTest:
    return read_card(path).export.self_test


def with_self_test(path, copy, **changes):
    """Copy an export and change its self-test."""
    shutil.copy(path, copy)
    card = read_card(path)
    test = msgspec.structs.replace(card.export.self_test, **changes)
    facts = msgspec.structs.replace(card.export, self_test=test)
    set_card(copy, msgspec.structs.replace(card, export=facts))
    return copy


def with_weights_changed(path, copy, factor: float):
    """Copy an ONNX export and multiply what its last layer multiplies with."""
    model = load_onnx(path)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for tensor in model.graph.initializer:
        if tensor.name == gemm.input[1]:
            values = numpy_helper.to_array(tensor)
            changed = (values * np.float32(factor)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            break
    else:
        raise AssertionError("the last layer's weights are not there as they are")
    onnx.save(model, copy)
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_every_export_contains_pytorchs_answers_and_reproduces_them(
    exports, cnn_run, name, tmp_path
):
    test = self_test_of(exports[name])
    # Through files and the front door, as any image goes.
    images = []
    for index, data in enumerate(test.images):
        (tmp_path / f"{index}.png").write_bytes(data)
        rules = read_card(exports[name]).preprocessing
        images.append(load_image(tmp_path / f"{index}.png", rules))
    expected = open_run(cnn_run, device="cpu")(np.stack(images))
    np.testing.assert_allclose(expected_logits(test), expected, rtol=0, atol=1e-6)
    predictor = load_predictor(exports[name], device="cpu", self_test=False)
    off = np.abs(predictor(np.stack(images)) - expected).max()
    assert replay(predictor, exports[name]) == pytest.approx(off, abs=1e-6)
    assert off < test.tolerance < 1


def test_the_self_tests_images_are_drawn_and_never_the_users(exports):
    for path in exports.values():
        assert self_test_of(path).images == draw_images(4)
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in draw_images(4)]
    assert all(one.shape == (SIDE, SIDE, 3) for one in pixels)
    for index, one in enumerate(pixels):
        assert one.std() > 30
        assert all(np.abs(one.astype(int) - other).mean() > 30 for other in pixels[:index])


def test_different_test_images_get_different_answers(exports):
    """Else a model that ignores its input would pass."""
    logits = expected_logits(self_test_of(exports["cnn.fp32.onnx"]))
    test = self_test_of(exports["cnn.fp32.onnx"])
    assert np.ptp(logits, axis=0).min() > 10 * test.tolerance


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("onnx")][:1])
def test_changed_weights_are_detected(exports, tmp_path, name):
    changed = with_weights_changed(exports[name], tmp_path / name, 1.2)
    with pytest.raises(
        ParityError, match=r"fails its self-test with CPUEx.*: on image [1-4] of 4 its logits are"
    ):
        load_predictor(changed, device="cpu")
    same = with_weights_changed(exports[name], tmp_path / name, 1 + 1e-5)
    assert load_predictor(same, device="cpu").card == read_card(exports[name])


def test_a_file_that_opens_and_cannot_be_run_is_refused(exports, tmp_path):
    """A damaged file, for instance: onnxruntime finds out at the first image."""
    model = load_onnx(exports["cnn.fp32.onnx"])
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    next(one for one in last.attribute if one.name == "kernel_shape").ints[1] += 1
    onnx.save(model, tmp_path / "cnn.onnx")
    with pytest.raises(ArtifactError, match=r"cnn\.onnx fails its self-test: .* on one image: .*"):
        load_predictor(tmp_path / "cnn.onnx", device="cpu")


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.2, False)])
def test_half_precision_passes_and_changed_weights_fail(exports, tmp_path, factor, passes):
    """The CPU computes fp16 files in fp32; onnx's own evaluator rounds as a GPU does."""
    path = with_weights_changed(exports["cnn.fp16.onnx"], tmp_path / "cnn.fp16.onnx", factor)
    evaluator = ReferenceEvaluator(str(path))

    class InHalf:
        card = read_card(path)
        device, provider = "cuda", "onnx's evaluator"

        def __call__(self, images):
            return evaluator.run(["logits"], {"images": images})[0]

    if passes:
        assert 0 < replay(InHalf(), path) < self_test_of(path).tolerance / 2
    else:
        with pytest.raises(ParityError, match="fails its self-test with onnx's evaluator"):
            replay(InHalf(), path)


@pytest.mark.parametrize("name", NAMES)
def test_only_an_answer_beyond_the_tolerance_is_refused(exports, tmp_path, name):
    path = exports[name]
    test = self_test_of(path)
    logits = expected_logits(test).copy()
    off = float(np.abs(logits - run(path, test)).max())
    logits[2, 1] += 2.5 * test.tolerance
    copy = with_self_test(path, tmp_path / name, logits=logits.tobytes())
    with pytest.raises(ParityError, match=r"on image 3 of 4 its logits are .* \(at most") as caught:
        load_predictor(copy, device="cpu")
    assert "\n" not in str(caught.value)
    wide = with_self_test(
        path, tmp_path / name, logits=logits.tobytes(), tolerance=3 * test.tolerance + off
    )
    load_predictor(wide, device="cpu")
    load_predictor(copy, device="cpu", self_test=False)


def run(path, test):
    from tltools.runtime.selftest import decode_images

    predictor = load_predictor(path, device="cpu", self_test=False)
    return predictor(decode_images(test, predictor.card))


def test_answers_that_are_not_finite_are_refused(exports, make_card):
    class Broken:
        card = read_card(exports["cnn.fp32.onnx"])
        device, provider = "cpu", "made up"

        def __call__(self, images):
            return np.full((len(images), 2), np.nan, dtype=np.float32)

    with pytest.raises(ParityError, match=r"with made up: on image 1 of 4 its logits are nan"):
        replay(Broken(), exports["cnn.fp32.onnx"])
    with pytest.raises(ParityError, match="self-test's images are not finite"):
        make_self_test(Broken(), Broken(), precision="fp32", num_parameters=1)


def test_requested_tf32_rounding_passes(exports):
    class Rounding:
        """A GPU that rounds products to TF32."""

        card = read_card(exports["cnn.fp32.onnx"])
        device = "cuda"

        def __init__(self, provider: str) -> None:
            self.provider = provider
            self.exact = load_predictor(exports["cnn.fp32.onnx"], device="cpu")

        def __call__(self, images):
            return self.exact(images) + np.float32(0.01)

    path = exports["cnn.fp32.onnx"]
    assert replay(Rounding("CUDAExecutionProvider"), path, tf32=True) == pytest.approx(
        0.01, abs=1e-5
    )
    tensorrt = Rounding("TensorrtExecutionProvider")
    assert replay(tensorrt, path) == pytest.approx(0.01, abs=1e-5)
    with pytest.raises(ParityError, match="fails its self-test with CUDAExecutionProvider"):
        replay(Rounding("CUDAExecutionProvider"), path)


def test_an_undecodable_test_image_is_an_artifact_error(exports, tmp_path):
    test = self_test_of(exports["cnn.fp32.onnx"])
    broken = (test.images[0][:40], *test.images[1:])
    copy = with_self_test(exports["cnn.fp32.onnx"], tmp_path / "cnn.onnx", images=broken)
    with pytest.raises(ArtifactError, match=r"cnn\.onnx has a damaged self-test: cannot decode"):
        load_predictor(copy, device="cpu")


def test_large_models_replay_fewer_images(exports, cnn_run):
    trained = open_run(cnn_run, device="cpu")
    few = make_self_test(trained, trained, precision="int8", num_parameters=14_000_000)
    assert few.images == draw_images(1)
    assert few.tolerance == pytest.approx(0.05 * max(1, np.ptp(expected_logits(few))))


@pytest.fixture
def bad(exports, tmp_path):
    folder = tmp_path / "exports" / "cnn"
    folder.mkdir(parents=True)
    return with_weights_changed(exports["cnn.fp32.onnx"], folder / "cnn.fp32.onnx", 3.0)


@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_commands_refuse_a_failing_model_in_one_line(bad, drawn, tmp_path, command):
    args = {"classify": [drawn, "--model", bad], "evaluate": [bad, drawn]}[command]
    ran = run_tltools(command, *args, "--device", "cpu", cwd=tmp_path)
    assert ran.code == ParityError.exit_code
    shown = bad.relative_to(tmp_path)
    assert ran.err.startswith(
        f"error: {shown} fails its self-test with CPUExecutionProvider: on image"
    )
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.slow
def test_bench_reports_a_model_that_fails_its_self_test_and_measures_the_others(
    bad, exports, drawn, tmp_path
):
    good = shutil.copy(exports["cnn.int8.onnx"], bad.parent)
    ran = run_tltools(
        "bench", bad, good, "--data", drawn, "--rounds", 1, "--iterations", 1, "--batch-sizes", 1,
        "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    shown = bad.relative_to(tmp_path)
    assert f"failed at load: {shown} fails its self-test with CPUExecutionProvider" in ran.err
    assert ran.code == 0
    (report,) = (tmp_path / "exports").glob("bench-*.json")
    rows = {row["precision"]: row["status"] for row in json.loads(report.read_text())["rows"]}
    assert rows["fp32"] == "failed"
    assert rows["int8"] in ("ok", "unstable")


def test_bench_fails_where_no_model_passes_its_self_test(bad, drawn, tmp_path):
    ran = run_tltools("bench", bad, "--data", drawn, "--device", "cpu", cwd=tmp_path)
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == (
        "error: no model could be measured; the table above has the reasons"
    )


@pytest.mark.slow
def test_older_exports_open_with_one_warning(exports, drawn, tmp_path):
    old = shutil.copy(exports["cnn.fp32.onnx"], tmp_path / "old.onnx")
    card = read_card(old)
    facts = msgspec.structs.replace(card.export, self_test=None)
    set_card(old, msgspec.structs.replace(card, export=facts))
    document = json.loads(read_card(old).to_json())
    del document["export"]["self_test"]  # a card of before the field
    model = load_onnx(old)
    onnx.helper.set_model_props(model, {"tltools.card": json.dumps(document)})
    onnx.save(model, old)
    assert lacks_self_test(read_card(old)) is not None
    assert lacks_self_test(card) is None
    for command in (
        ("classify", drawn, "--model", old, "--device", "cpu"),
        ("evaluate", old, drawn, "--device", "cpu"),
        ("bench", old, "--data", drawn, "--rounds", 1, "--iterations", 1, "--batch-sizes", 1,
         "--device", "cpu"),
    ):  # fmt: skip
        ran = run_tltools(*command, cwd=tmp_path)
        assert ran.code == 0, ran
        assert ran.err.count("this export of cnn has no self-test") == 1
    (page,) = (tmp_path / "exports").glob("bench-*.md")
    notes = page.read_text().split("## Notes")[1]
    assert "- this export of cnn has no self-test" in notes
    assert "old.onnx is not found, so it is not known whether cnn was trained on these" in notes


def test_inspect_prints_the_self_tests_size_and_not_its_bytes(exports, tmp_path):
    path = exports["cnn.fp32.onnx"]
    ran = run_tltools("inspect", path, "--json", cwd=tmp_path)
    card = json.loads(read_card(path).to_json())
    shown = json.loads(ran.out)
    num_bytes = sum(map(len, draw_images(4)))
    assert shown["export"]["self_test"] == card["export"]["self_test"] | {
        "images": f"4 drawn images, {num_bytes:,} bytes",
        "logits": "4 x 2, float32",
    }
    del card["export"]["self_test"], shown["export"]["self_test"]
    assert shown == card


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_a_changed_bit_is_refused_unless_nothing_reads_it(exports, tmp_path, name):
    """Its self-test might not notice: no test image may need the weight."""
    whole = bytearray(exports[name].read_bytes())
    changed = tmp_path / name
    images = np.random.default_rng(0).integers(
        0, 256, read_card(exports[name]).preprocessing.shape(2), dtype=np.uint8
    )
    expected = load_predictor(exports[name], device="cpu")(images)
    reasons = []
    for at in range(0, len(whole), len(whole) // 40):
        whole[at] ^= 1
        changed.write_bytes(whole)
        try:
            predictor = load_predictor(changed, device="cpu")
        except (ArtifactError, ParityError) as error:
            reasons.append(str(error))
        else:  # between the members of an archive, or the key of the checksum
            np.testing.assert_array_equal(predictor(images), expected)
        whole[at] ^= 1
    assert any("its checksum differs" in reason for reason in reasons)
