"""Exports of a real run: contents, parity, and that a wrong export is never written."""

import copy
import json
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    SAID_OF_TORCHSCRIPT,
    Recorder,
    make_exports,
    replace_writer,
    run_tltools,
    save_image,
    set_card,
)
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from torch import nn

from tltools.card import CARD_KEY, Confidence, Preprocessing, card_from_json
from tltools.data.images import load_image
from tltools.errors import ArtifactError, ConfigError, DataError, DeviceError, ParityError
from tltools.evaluate import predict
from tltools.export import export as export_module
from tltools.export import onnx_writer
from tltools.export import trained as trained_module
from tltools.export.parity import BARS, ParityBar, compare, images_needed
from tltools.export.settings import ExportSettings
from tltools.export.trained import CastClassifier, TrainedRun
from tltools.graphs.onnx_file import check_onnx, example_images, write_module
from tltools.runtime import load_predictor, read_card
from tltools.runtime.model_formats import FORMATS as MODEL_FORMATS
from tltools.runtime.model_formats import OPSET, OPSETS, torchscript
from tltools.training import load_run, open_run
from tltools.training.run import load_card, read_split

FORMATS = ("torchscript", "onnx")
NUM_VAL = 6


@pytest.fixture(scope="module")
def onnx_file(cnn_exports):
    return cnn_exports["onnx"].path


@pytest.fixture(scope="module")
def torchscript_file(cnn_exports):
    return cnn_exports["torchscript"].path


@pytest.fixture(scope="module")
def pixels(drawn):
    """The drawn images as the models take them, uint8 (N, 224, 224, 3)."""
    return np.stack(
        [
            load_image(path, Preprocessing(size=224, resize="squash"))
            for path in sorted(drawn.rglob("*.png"))
        ]
    )


@pytest.fixture(scope="module")
def expected(cnn_run, pixels):
    """The logits by the network's definition, from the checkpoint's tensors, in float64."""
    state = {
        name: tensor.double()
        for name, tensor in load_file(cnn_run / "checkpoint.safetensors").items()
    }
    maps = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    for conv, norm in ((0, 1), (4, 5)):
        maps = F.conv2d(
            maps, state[f"backbone.{conv}.weight"], state[f"backbone.{conv}.bias"], padding=1
        )
        mean, var, weight, bias = (
            state[f"backbone.{norm}.{name}"].view(-1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        maps = (maps - mean) / (var + 1e-5).sqrt() * weight + bias
        maps = F.max_pool2d(maps.relu(), 2)
    logits = maps.flatten(1) @ state["head.weight"].T + state["head.bias"]
    return logits.numpy()


# ------------------------------------------------------------------------------ what is in them


@pytest.mark.parametrize(
    ("format_", "suffix", "opset"), [("torchscript", ".pt", None), ("onnx", ".onnx", 20)]
)
def test_an_export_contains_its_runs_card_and_its_own_facts(
    cnn_run, cnn_exports, format_, suffix, opset
):
    result = cnn_exports[format_]
    assert result.path.name == f"cnn.fp32{suffix}"
    assert result.size_bytes == result.path.stat().st_size
    assert not result.replaced
    card = read_card(result.path)
    assert card == result.card
    assert card.export is not None
    assert (card.export.format, card.export.precision) == (format_, "fp32")
    assert card.export.opset == opset
    run_card = card_from_json((cnn_run / "card.json").read_bytes(), where="run")
    assert all(
        getattr(card, name) == getattr(run_card, name)
        for name in run_card.__struct_fields__
        if name != "export"
    )


def logits_of(model, images):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_an_export_in_another_opset_says_so_and_gives_the_same_logits(
    cnn_run, onnx_file, pixels, tmp_path, opset
):
    results = make_exports(
        cnn_run, ["onnx"], tmp_path, precisions=("fp32", "fp16", "int8"), opset=opset, device="cpu"
    )
    expected = logits_of(onnx.load(onnx_file), pixels)
    assert [one.card.export.precision for one in results] == ["fp32", "fp16", "int8"]
    for result in results:
        model = onnx.load(result.path)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
        assert read_card(result.path).export.opset == opset
        onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(
        logits_of(onnx.load(results[0].path), pixels), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("opset", [OPSETS[0], OPSET, OPSETS[-1]])
def test_onnxs_version_converter_takes_an_export_to_other_opsets(onnx_file, pixels, opset):
    model = onnx.load(onnx_file)
    converted = onnx.version_converter.convert_version(model, opset)
    assert [one.version for one in converted.opset_import] == [opset]
    onnx.checker.check_model(converted, full_check=True)
    np.testing.assert_allclose(
        logits_of(converted, pixels), logits_of(model, pixels), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_an_opset_out_of_range_is_refused_with_the_range(opset):
    with pytest.raises(ConfigError, match=f"not supported; choose {OPSETS[0]} to {OPSETS[-1]}"):
        ExportSettings(opset=opset)


def test_an_opset_for_other_formats_is_refused():
    with pytest.raises(ConfigError, match="`opset=` is for `formats=onnx`; leave it out"):
        ExportSettings(formats=("pt2",), opset=OPSETS[0])


def test_a_model_that_an_older_opset_cannot_express_is_refused(tmp_path):
    class Masked(nn.Module):
        def forward(self, images):
            return torch.bitwise_and(images, 3).float().flatten(1)

    with pytest.raises(ArtifactError, match="cannot be written in opset 17: BitwiseAnd needs op"):
        write_module(
            Masked().eval(), tmp_path / "x.onnx", size=8, output="y", metadata={}, opset=17
        )


def test_operators_that_changed_in_opset_18_are_rewritten_for_17(tmp_path):
    class Changed(nn.Module):
        def forward(self, images):
            pixels = images.float()
            first, rest = pixels.mean((1, 2)).split([1, 2], 1)
            return torch.cat([rest, first, pixels.amax((1, 2))], 1)

    path, images = tmp_path / "x.onnx", example_images(8)
    module = Changed().eval()
    write_module(module, path, size=8, output="y", metadata={"key": "value"}, opset=17)
    model = onnx.load(path)
    assert {"ReduceMean", "ReduceMax", "Split"} <= {one.op_type for one in model.graph.node}
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)]
    assert [(one.key, one.value) for one in model.metadata_props] == [("key", "value")]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, module(images).numpy(), rtol=1e-6)


@pytest.mark.parametrize("format_", FORMATS)
def test_the_parity_figures_are_in_the_card(cnn_exports, format_):
    parity = cnn_exports[format_].parity
    assert parity.num_images == NUM_VAL
    assert parity.top1_agreement == 1.0
    assert 0 <= parity.max_abs_logit_diff < parity.atol == 1e-4
    assert parity.batch_sizes == (1, NUM_VAL)


def test_only_the_exports_remain_in_their_folder(cnn_exports):
    folder = cnn_exports["onnx"].path.parent
    assert {path.name for path in folder.iterdir()} == {"cnn.fp32.pt", "cnn.fp32.onnx"}


def test_the_onnx_file_accepts_any_batch_size_and_returns_logits(onnx_file):
    onnx.checker.check_model(str(onnx_file), full_check=True)
    model = onnx.load(onnx_file, load_external_data=False)
    (source,), (target, probabilities, distance) = model.graph.input, model.graph.output
    assert [one.name for one in (source, target, probabilities, distance)] == [
        "images",
        "logits",
        "probabilities",
        "distance",
    ]
    assert probabilities.type == target.type
    assert distance.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    batch, one = distance.type.tensor_type.shape.dim
    assert batch.dim_param == source.type.tensor_type.shape.dim[0].dim_param
    assert one.dim_value == 1
    assert source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert target.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    source_dims, target_dims = (value.type.tensor_type.shape.dim for value in (source, target))
    assert [one.dim_value for one in source_dims[1:]] == [224, 224, 3]
    assert [one.dim_value for one in target_dims[1:]] == [2]
    assert source_dims[0].dim_param == target_dims[0].dim_param != ""
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
    assert model.ir_version == 10
    assert not [one.name for one in model.graph.initializer if one.external_data]
    assert [one.key for one in model.metadata_props].count(CARD_KEY) == 1


def test_onnxruntime_opens_the_file_without_a_warning(onnx_file):
    """Open the file in a process without tltools, and capture its file descriptors."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys\n"
            "os.environ['ORT_DISABLE_TELEMETRY'] = '1'\n"
            "import onnxruntime\n"
            "print('imported', file=sys.stderr, flush=True)\n"
            "options = onnxruntime.SessionOptions()\n"
            "options.log_severity_level = 2\n"
            "onnxruntime.InferenceSession(\n"
            "    sys.argv[1], options, providers=['CPUExecutionProvider'])\n",
            str(onnx_file),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    # What it says of the machine's devices as it is imported is not about the file.
    assert done.stderr.partition("imported\n")[2] == ""
    assert done.stdout == ""


# ------------------------------------------------------------------------------ that they agree


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_all_formats_agree_with_the_definition(
    cnn_run, onnx_file, torchscript_file, pixels, expected, batch_size
):
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    answers = {
        "eager": open_run(cnn_run, device="cpu")(pixels[:batch_size]),
        "onnx": session.run(["logits"], {"images": pixels[:batch_size]})[0],
        "torchscript": load_predictor(torchscript_file, device="cpu")(pixels[:batch_size]),
    }
    for name, logits in answers.items():
        np.testing.assert_allclose(logits, expected[:batch_size], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_probabilities_are_calibrated_and_logits_are_unchanged(
    cnn_run, pixels, expected, monkeypatch, tmp_path, temperature
):
    card = replace(load_card(cnn_run), confidence=Confidence(temperature=temperature))
    model, _ = load_run(cnn_run)
    monkeypatch.setattr(trained_module, "load_run", lambda _run: (model, card))
    precisions = ("fp32", "fp16", "int8")
    for result in make_exports(cnn_run, FORMATS, tmp_path, precisions=precisions, device="cpu"):
        predictor = load_predictor(result.path, device="cpu")
        logits = predictor(pixels[:5])
        scaled = np.exp(logits / temperature)
        by_hand = scaled / scaled.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(predictor.probabilities(pixels[:5]), by_hand, atol=1e-6)
        assert (by_hand.argmax(axis=1) == logits.argmax(axis=1)).all()
        if result.facts.precision == "fp32":
            np.testing.assert_allclose(logits, expected[:5], rtol=0, atol=2e-5)
        assert result.card.temperature == temperature


def test_a_run_from_before_calibration_is_calibrated_on_export(cnn_run, monkeypatch, tmp_path):
    card = replace(load_card(cnn_run), confidence=None)
    model, _ = load_run(cnn_run)
    monkeypatch.setattr(trained_module, "load_run", lambda _run: (model, card))
    (result,) = make_exports(cnn_run, ["onnx"], tmp_path, device="cpu")
    assert result.card.confidence is not None
    assert result.card.confidence.num_images == NUM_VAL


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_with_wrong_probabilities_is_not_written(cnn_run, monkeypatch, tmp_path, format_):
    seal = MODEL_FORMATS[format_].load_writer().seal

    def seal_wrongly(path, card, distance):
        other = replace(card, confidence=Confidence(temperature=card.temperature + 1))
        seal(path, other, distance)
        set_card(path, card)

    replace_writer(monkeypatch, format_, seal=seal_wrongly)
    with pytest.raises(ParityError, match=r"the probabilities differ from softmax\(logits / 1\)"):
        make_exports(cnn_run, [format_], tmp_path, device="cpu")
    assert files_in(tmp_path) == []


def test_the_networks_answers_differ_from_image_to_image(expected):
    """Otherwise the agreement above would show little."""
    assert np.ptp(expected, axis=0).min() > 0.01


def test_torchscript_runs_without_tltools(torchscript_file, pixels, expected, tmp_path):
    np.save(tmp_path / "images.npy", pixels[:3])
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "import sys\n"
            "sys.modules['tltools'] = None\n"
            "import numpy, torch\n"
            "module = torch.jit.load(sys.argv[1])\n"
            "logits, probabilities, _ = module(torch.from_numpy(numpy.load('images.npy')))\n"
            "numpy.save('logits.npy', logits.detach().numpy())\n",
            str(torchscript_file),
        ],
        cwd=tmp_path,
        check=True,
    )
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected[:3], rtol=0, atol=2e-5)


# ------------------------------------------------------------------------- wrong ones, not made


def other_bias(model):
    model.head.bias.data += torch.tensor([0.0, 0.01])
    return model


def classes_swapped(model):
    model.head.weight.data = model.head.weight.data.flip(0)
    model.head.bias.data = model.head.bias.data.flip(0)
    return model


def rounded_weights(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def without_scaling(model):
    model.scale = torch.ones_like(model.scale)
    return model


def not_a_number(model):
    model.head.weight.data[0, 0] = float("nan")
    return model


def in_training_mode(model):
    return model.train()  # batch norm by the batch


class FirstImageOnly(nn.Module):
    """What a constant in place of the batch axis comes to."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images[:2])


class OneMoreClass(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return F.pad(self.model(images), (0, 1))


class DoublePrecision(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).double()


def save(module, card, path):
    """Save a module as TorchScript with a card, and nothing else."""
    with torch.inference_mode():
        traced = torch.jit.trace(module, example_images(224), check_trace=False)
    torchscript._save(traced, path, card)


def writing(change, format_):
    """A writer that writes a different model."""
    write = MODEL_FORMATS[format_].load_writer().write

    def write_wrong(trained, precision, path, check):
        other = copy.copy(trained)
        other.model = change(copy.deepcopy(trained.model))
        return write(other, precision, path, check)

    return write_wrong


def with_frozen_batch(trained, precision, path, check):
    onnx_writer.write(trained, precision, path, lambda _path: None)
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, path)
    check(path)


@pytest.mark.parametrize(
    ("format_", "writer", "kind", "message"),
    [
        pytest.param(format_, writing(change, format_), kind, message, id=f"{format_}-{name}")
        for format_ in FORMATS
        for name, change, kind, message in [
            (
                "bias",
                other_bias,
                ParityError,
                r"logits differ by up to 1\.\d+e-02, more than 0.0001",
            ),
            ("swap", classes_swapped, ParityError, r"logits differ by .* \(worst image .*\.png"),
        ]
    ]
    + [
        pytest.param("torchscript", writing(change, "torchscript"), kind, message, id=name)
        for name, change, kind, message in [
            ("rounded", rounded_weights, ParityError, "logits differ by"),
            ("unscaled", without_scaling, ParityError, "logits differ by"),
            ("training", in_training_mode, ParityError, "logits differ by"),
            ("nan", not_a_number, ArtifactError, "logits are not finite"),
            ("frozen", FirstImageOnly, ArtifactError, r"gives float32 \(2, 2\)"),
            ("classes", OneMoreClass, ArtifactError, r"gives float32 \(6, 3\)"),
            ("double", DoublePrecision, ArtifactError, "gives float64"),
        ]
    ]
    + [
        pytest.param("onnx", with_frozen_batch, ArtifactError, "fixed batch size", id="onnx-frozen")
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
def test_a_wrong_export_is_not_written(
    cnn_run, monkeypatch, tmp_path, format_, writer, kind, message
):
    replace_writer(monkeypatch, format_, write=writer)
    with pytest.raises(kind, match=message) as caught:
        make_exports(cnn_run, [format_], tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
    suffix = {"onnx": "onnx", "torchscript": "pt"}[format_]
    assert str(caught.value).startswith(f"{tmp_path}/cnn/cnn.fp32.{suffix} was not written: ")
    assert files_in(tmp_path) == []


def test_an_earlier_export_stays_when_the_new_one_is_wrong(
    cnn_run, torchscript_file, monkeypatch, tmp_path
):
    earlier = tmp_path / "cnn" / "cnn.fp32.pt"
    earlier.parent.mkdir()
    shutil.copy(torchscript_file, earlier)
    replace_writer(monkeypatch, "torchscript", write=writing(other_bias, "torchscript"))
    with pytest.raises(ParityError, match="logits differ"):
        make_exports(cnn_run, ["torchscript"], tmp_path, device="cpu")
    assert files_in(tmp_path) == [earlier]
    assert earlier.read_bytes() == torchscript_file.read_bytes()


def test_one_format_that_fails_does_not_prevent_the_others(cnn_run, monkeypatch, tmp_path):
    replace_writer(monkeypatch, "onnx", write=writing(other_bias, "torchscript"))
    with pytest.raises(
        ArtifactError, match=r"cnn\.fp32\.onnx was not written: .*not a|cannot open"
    ):
        make_exports(cnn_run, ("onnx", "torchscript"), tmp_path, device="cpu")
    assert [path.name for path in files_in(tmp_path)] == ["cnn.fp32.pt"]


def test_several_failures_are_one_error_that_names_all(cnn_run, monkeypatch, tmp_path):
    replace_writer(monkeypatch, "torchscript", write=writing(other_bias, "torchscript"))
    replace_writer(monkeypatch, "onnx", write=writing(other_bias, "onnx"))
    with pytest.raises(ParityError) as caught:
        make_exports(cnn_run, FORMATS, tmp_path, device="cpu")
    for name in ("cnn.fp32.pt", "cnn.fp32.onnx"):
        assert f"{name} was not written: the logits differ" in str(caught.value)
    assert files_in(tmp_path) == []


def test_a_run_does_not_replace_the_export_of_another_run_with_its_name(run_copy, tmp_path):
    (first,) = make_exports(run_copy, ["torchscript"], tmp_path / "exports", device="cpu")
    before = first.path.read_bytes()
    card = load_card(run_copy)
    other = replace(card.data, name="others", fingerprint="1" * 64)
    (run_copy / "card.json").write_text(replace(card, data=other).to_json())
    with pytest.raises(ArtifactError, match=r"is an export of another run named cnn \(cnn, train"):
        make_exports(run_copy, ["torchscript"], tmp_path / "exports", device="cpu")
    assert first.path.read_bytes() == before


def test_runs_of_one_name_are_not_exported_to_one_folder(cnn_run, run_copy, tmp_path):
    ran = run_tltools("export", cnn_run, run_copy, "--output", "exports", cwd=tmp_path)
    assert ran.code == 2
    assert f"error: {cnn_run} and {run_copy.relative_to(tmp_path)} are both named cnn" in ran.err
    assert files_in(tmp_path / "exports") == []


def test_a_run_that_fails_does_not_hide_the_others(cnn_run, run_copy, monkeypatch, tmp_path):
    """The table, `--json` and the exit code speak of all runs."""
    card = load_card(run_copy)
    (run_copy / "card.json").write_text(replace(card, run="other").to_json())
    (run_copy / "checkpoint.safetensors").write_bytes(b"damaged")
    args = ("export", run_copy, cnn_run, "--output", "exports", "--device", "cpu", "--json")
    ran = run_tltools(*args, cwd=tmp_path)
    assert ran.code == 1
    assert [one["path"] for one in json.loads(ran.out)] == ["exports/cnn/cnn.fp32.onnx"]
    assert "checkpoint.safetensors cannot be read" in ran.err.splitlines()[-1]


@pytest.mark.parametrize(("scale", "passes"), [(1.0, False), (1e4, True)])
def test_large_logits_are_compared_by_their_size(cnn_run, monkeypatch, tmp_path, scale, passes):
    """Rounding errors of fp32 grow with the logits."""
    model, _ = load_run(cnn_run)
    model.head.weight.data *= scale
    model.head.bias.data *= scale
    folder = shutil.copytree(cnn_run, tmp_path / "runs" / "cnn")
    save_file(model.state_dict(), folder / "checkpoint.safetensors")

    def shifted(model):
        model.head.bias.data += 1e-2
        return model

    replace_writer(monkeypatch, "torchscript", write=writing(shifted, "torchscript"))
    expected = nullcontext() if passes else pytest.raises(ParityError, match="logits differ")
    with expected:
        (made,) = make_exports(folder, ["torchscript"], tmp_path / "exports", device="cpu")
        assert made.parity.max_abs_logit > 1e3
        assert made.parity.max_abs_logit_diff == pytest.approx(1e-2, rel=0.5)


def amplifying(run, folder, offset=50.0):
    """Copy a run whose features are now all near `offset`, far above what tells them apart."""
    model, _ = load_run(run)
    last = [one for one in model.backbone.modules() if isinstance(one, nn.BatchNorm2d)][-1]
    last.bias.data += offset
    with torch.inference_mode():
        moved = model.head.weight.double().sum(1) * offset
    model.head.bias.data -= moved.float()
    shutil.copytree(run, folder)
    save_file(model.state_dict(), folder / "checkpoint.safetensors")
    return folder


def test_a_network_that_amplifies_rounding_errors_is_compared_by_its_own(cnn_run, tmp_path):
    """It differs from float64 in PyTorch as much as its export differs from PyTorch."""
    folder = amplifying(cnn_run, tmp_path / "runs" / "cnn")
    (made,) = make_exports(folder, ["onnx"], tmp_path / "exports", device="cpu")
    parity = made.parity
    assert parity.max_abs_logit_diff > parity.atol
    assert parity.max_abs_logit_diff > parity.rtol * parity.max_abs_logit
    assert parity.max_abs_logit_diff <= 4 * parity.rounding
    shown = run_tltools("inspect", made.path, cwd=tmp_path)
    assert f"(PyTorch's own rounding error: {parity.rounding:.1e})" in " ".join(shown.out.split())


def test_a_wrong_export_of_a_network_that_amplifies_rounding_errors_is_refused(
    cnn_run, monkeypatch, tmp_path
):
    folder = amplifying(cnn_run, tmp_path / "runs" / "cnn")

    def shifted(model):
        model.head.bias.data += 1.0
        return model

    replace_writer(monkeypatch, "onnx", write=writing(shifted, "onnx"))
    with pytest.raises(ParityError, match=r"logits differ .*; PyTorch's own rounding error is"):
        make_exports(folder, ["onnx"], tmp_path / "exports", device="cpu")


def test_pytorch_sees_each_image_once(cnn_run, tmp_path, monkeypatch):
    """Its logits and the features of the distances are of one pass."""
    seen = []

    def recorded(predictor, paths, **options):
        seen.extend(paths)
        return predict(predictor, paths, **options)

    monkeypatch.setattr("tltools.export.trained.predict", recorded)
    (made,) = make_exports(cnn_run, ["torchscript"], tmp_path, device="cpu")
    assert made.facts.distances is not None
    assert len(seen) == len(set(seen)) > 0


def test_an_export_within_its_limits_needs_no_float64(cnn_exports):
    assert all(one.parity.rounding is None for one in cnn_exports.values())


def test_a_good_export_stays_when_the_next_format_is_wrong(cnn_run, monkeypatch, tmp_path):
    replace_writer(monkeypatch, "onnx", write=writing(other_bias, "torchscript"))
    with pytest.raises(ArtifactError, match=r"not a|cannot open"):
        make_exports(cnn_run, FORMATS, tmp_path, device="cpu")
    assert [path.name for path in files_in(tmp_path)] == ["cnn.fp32.pt"]


def test_a_file_changed_by_its_card_is_not_written(cnn_run, monkeypatch, tmp_path):
    seal = MODEL_FORMATS["torchscript"].load_writer().seal

    def seal_another(path, card, distance):
        if path.name.startswith("."):  # a copy whose distances are compared
            seal(path, card, distance)
            return
        model, _ = load_run(cnn_run)
        save(other_bias(model), card, path)

    replace_writer(monkeypatch, "torchscript", seal=seal_another)
    with pytest.raises(ParityError, match="writing the card into the file changed its logits"):
        make_exports(cnn_run, ["torchscript"], tmp_path, device="cpu")
    assert files_in(tmp_path) == []


def test_different_labels_within_the_logit_tolerance_fail(onnx_path, images):
    """A difference smaller than any tolerance can change the label of a tie."""
    paths = sorted(images.rglob("*.png"))
    predictor = load_predictor(onnx_path, device="cpu")
    reference = predictor(
        np.stack([load_image(path, Preprocessing(size=32, resize="squash")) for path in paths])
    )
    reference[7] = reference[7][[1, 2, 0]]
    with pytest.raises(ParityError, match=r"96\.6% of 30 images .*\(first difference .*7"):
        compare(reference, predictor, paths, bar=ParityBar(atol=None, min_top1_agreement=1.0))
    lower = ParityBar(atol=None, min_top1_agreement=0.9)
    parity = compare(reference, predictor, paths, bar=lower)
    assert parity.atol is None
    assert parity.accuracy_drop is None  # there are no targets
    targets = reference.argmax(axis=1)
    assert compare(reference, predictor, paths, targets, bar=lower).accuracy_drop == 1 / 30
    strict = ParityBar(atol=None, min_top1_agreement=0.9, max_accuracy_drop=0.03)
    with pytest.raises(
        ParityError, match=r"on 30 images drops by 3\.33 points, more than the limit of 3"
    ):
        compare(reference, predictor, paths, targets, bar=strict)
    # An export that is right more often than PyTorch has lost nothing.
    better = predictor(
        np.stack([load_image(path, Preprocessing(size=32, resize="squash")) for path in paths])
    )
    assert compare(
        reference, predictor, paths, better.argmax(axis=1), bar=lower
    ).accuracy_drop == pytest.approx(-1 / 30)


@pytest.mark.parametrize("axis", ["input", "output"])
def test_the_onnx_check_detects_a_fixed_batch_size(onnx_file, tmp_path, axis):
    check_onnx(onnx_file)
    proto = onnx.load(onnx_file)
    getattr(proto.graph, axis)[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "frozen.onnx")
    name = {"input": "images", "output": "logits"}[axis]
    with pytest.raises(ArtifactError, match=f"froze the batch axis of '{name}'|invalid ONNX file"):
        check_onnx(tmp_path / "frozen.onnx")


def test_the_onnx_check_detects_a_graph_that_contradicts_its_card(onnx_file, tmp_path):
    proto = onnx.load(onnx_file)
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, tmp_path / "invalid.onnx")
    with pytest.raises(ArtifactError, match="wrote an invalid ONNX file"):
        check_onnx(tmp_path / "invalid.onnx")


# --------------------------------------------------------------- images, Ctrl-C, replacing


@pytest.fixture
def run_copy(cnn_run, tmp_path):
    return shutil.copytree(cnn_run, tmp_path / "runs" / "cnn")


def test_without_its_validation_images_a_run_is_not_exported(run_copy, tmp_path):
    split = run_copy / "split.csv"
    good = split.read_text()
    split.write_text(good.replace("dark", "gone"))
    with pytest.raises(DataError, match=r"3 are missing \(first .*gone/\d+\.png\).* restore them"):
        make_exports(run_copy, ["torchscript"], tmp_path / "exports", device="cpu")
    split.write_text(good.replace(",val,", ",train,"))
    with pytest.raises(DataError, match="it has none"):
        make_exports(run_copy, ["torchscript"], tmp_path / "exports", device="cpu")
    assert files_in(tmp_path / "exports") == []


def test_a_damaged_run_is_not_exported(run_copy, tmp_path):
    checkpoint = run_copy / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"checkpoint\.safetensors cannot be read"):
        make_exports(run_copy, FORMATS, tmp_path / "exports", device="cpu")
    assert files_in(tmp_path / "exports") == []


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def write_half(trained, precision, path, check):
    path.write_bytes(b"half a file")
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["writing", "comparing", "sealing"])
def test_ctrl_c_leaves_no_files(cnn_run, monkeypatch, tmp_path, stage):
    if stage == "writing":
        replace_writer(monkeypatch, "torchscript", write=write_half)
    elif stage == "sealing":
        replace_writer(monkeypatch, "torchscript", seal=interrupt)
    else:
        monkeypatch.setattr(export_module, "compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_exports(cnn_run, ["torchscript"], tmp_path, device="cpu")
    assert files_in(tmp_path) == []


def test_exporting_again_replaces_the_export_with_a_note(cnn_run, tmp_path):
    progress = Recorder()
    (first,) = make_exports(cnn_run, ["onnx"], tmp_path, device="cpu", progress=progress)
    assert progress.said == [f"Exporting cnn to {first.path}"]
    first.path.write_bytes(b"damaged since")
    (second,) = make_exports(
        cnn_run, ["onnx"], tmp_path, num_images=3, device="cpu", progress=progress
    )
    assert progress.said[1:] == [f"Exporting cnn to {first.path}, replacing it"]
    assert (first.replaced, second.replaced) == (False, True)
    assert second.path == first.path
    assert read_card(first.path) == second.card
    assert second.parity.num_images == 3


@pytest.mark.parametrize(("version", "told"), [((3, 13, 9), False), ((3, 14, 0), True)])
def test_an_export_that_pytorch_does_not_support_is_told(
    cnn_run, tmp_path, monkeypatch, version, told
):
    monkeypatch.setattr(export_module, "sys", SimpleNamespace(version_info=version))
    progress = Recorder()
    make_exports(cnn_run, FORMATS, tmp_path, device="cpu", progress=progress)
    said = [one for one in progress.said if "PyTorch does not support TorchScript on" in one]
    assert len(said) == told


@pytest.mark.slow
def test_the_exporter_prints_nothing(cnn_run, tmp_path):
    """Neither its log nor PyTorch's warnings reach the terminal; only our own lines do."""
    done = subprocess.run(
        [sys.executable, "-m", "tltools", "export", str(cnn_run), "--format", "all"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    beginnings = (
        "Running cnn in PyTorch",
        "Comparing cnn ",
        "Exporting cnn to ",
        "Next: ",
        *SAID_OF_TORCHSCRIPT,
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith(beginnings)] == []
    assert done.stdout.startswith("Exports, verified against PyTorch")
    assert "torch." not in done.stdout
    assert len(files_in(tmp_path)) == 3


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------ reduced precisions


@pytest.fixture(scope="module")
def reduced(cnn_run, tmp_path_factory):
    """The CNN's exports by precision, and the messages."""
    progress = Recorder()
    results = make_exports(
        cnn_run,
        ["onnx"],
        tmp_path_factory.mktemp("reduced"),
        precisions=("fp32", "fp16", "int8"),
        calibration_images=7,
        device="cpu",
        progress=progress,
    )
    return {result.facts.precision: result for result in results}


def test_every_precision_is_verified_against_its_own_threshold(reduced):
    assert list(reduced) == ["fp32", "fp16", "int8"]
    for precision, result in reduced.items():
        assert result.path.name == f"cnn.{precision}.onnx"
        assert read_card(result.path) == result.card
        parity, bar = result.parity, BARS[precision]
        assert parity.top1_agreement >= parity.min_top1_agreement == bar.min_top1_agreement
        assert parity.max_accuracy_drop == bar.max_accuracy_drop
        assert parity.accuracy_drop == 0
        assert parity.num_images - parity.num_training_images == NUM_VAL
    assert BARS["int8"].min_top1_agreement == 0.99
    assert BARS["int8"].max_accuracy_drop == 0.005
    assert BARS["fp16"].min_top1_agreement == 0.995
    assert reduced["int8"].parity.max_abs_logit_diff > 1e-4  # else nothing was rounded
    assert reduced["int8"].size_bytes < 0.4 * reduced["fp32"].size_bytes
    assert reduced["fp16"].size_bytes < 0.6 * reduced["fp32"].size_bytes


def test_the_card_says_on_which_device_each_file_was_verified(reduced):
    for result in reduced.values():
        (verified,) = result.facts.verified  # there is no GPU, or `cpu` was asked for
        assert (verified.device, verified.provider) == ("cpu", "CPUExecutionProvider")
        assert verified.parity == result.parity
    assert [one.facts.fp16_exercised for one in reduced.values()] == [None, False, None]


def test_the_table_says_that_fp16_was_not_exercised(cnn_run, tmp_path):
    done = run_tltools(
        "export",
        cnn_run,
        "--precision",
        "fp16",
        "--device",
        "cpu",
        "--parity-images",
        2,
        cwd=tmp_path,
    )
    assert done.code == 0
    assert "*: the CPU computes fp16 files in fp32" in " ".join(done.out.split())
    assert re.search(r"exports/cnn/cnn\.fp16\.onnx +0\.\d +cpu\* +100\.0%", done.out)
    assert "cnn.fp16.onnx: fp16 arithmetic was not exercised" in done.err


def test_a_card_without_devices_can_still_be_read(reduced):
    document = json.loads(reduced["fp16"].card.to_json())
    del document["export"]["verified"], document["export"]["fp16_exercised"]
    facts = card_from_json(json.dumps(document), where="an earlier one").export
    assert (facts.verified, facts.fp16_exercised) == ((), None)
    assert facts.parity == reduced["fp16"].parity


def test_an_int8_export_says_how_it_was_calibrated(reduced):
    calibration = reduced["int8"].facts.calibration
    assert (calibration.method, calibration.num_images) == ("MinMax", 7)
    assert calibration.requested == 7
    assert reduced["fp32"].facts.calibration is None
    assert reduced["fp16"].facts.calibration is None


def test_fewer_calibration_images_than_asked_for_are_told_and_in_the_card(cnn_run, tmp_path):
    """The run has ten training images."""
    done = run_tltools("export", cnn_run, "--precision", "int8", "--json", cwd=tmp_path)
    (facts,) = json.loads(done.out)
    assert facts["calibration"] | {"method": "", "weight_bits": 0} == {
        "method": "", "num_images": 10, "requested": 128, "weight_bits": 0,
    }  # fmt: skip
    assert "is calibrated on 10 images, all that the run was trained on, instead of 128" in done.err
    shown = run_tltools("inspect", facts["path"], cwd=tmp_path).out
    assert "10 training images of the 128 asked for" in " ".join(shown.split())


@pytest.mark.parametrize("bar", BARS.values(), ids=BARS)
def test_one_image_may_differ_from_the_number_on_that_a_limit_names(bar):
    for share in (1 - bar.min_top1_agreement, bar.max_accuracy_drop):
        if share:
            needed = images_needed(share)
            assert 1 / needed <= share + 1e-12 < 1 / (needed - 1)


@pytest.fixture(scope="module")
def few_validated(tmp_path_factory):
    """A run with 24 validation images and 216 training images, each of other pixels."""
    folder = tmp_path_factory.mktemp("few")
    rng = np.random.default_rng(3)
    for index in range(240):
        name, level = (("dark", 50), ("bright", 200))[index % 2]
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
        save_image(folder / "data" / name / f"{index}.png", (level, level, level), rng)
    done = run_tltools(
        "train", "data", "--model", "cnn", "--epochs", "1", "--image-size", "32",
        "--val-fraction", "0.1", cwd=folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "runs" / "cnn"


def test_training_images_that_calibration_spared_join_too_few_validation_images(
    few_validated, tmp_path, monkeypatch
):
    compared = []

    def remember(reference, predictor, paths, targets, **rest):
        compared.append((reference, predictor, paths))
        return compare(reference, predictor, paths, targets, **rest)

    monkeypatch.setattr(export_module, "compare", remember)
    args = ("export", few_validated, "--precision", "all", "--json")
    done = run_tltools(*args, cwd=tmp_path)
    parities = {one["precision"]: one["parity"] for one in json.loads(done.out)}
    # One of 100 may differ in int8; of 200 in fp16, for which calibration leaves 216 - 128.
    numbers = {"fp32": (24, 0), "fp16": (24 + 88, 88), "int8": (100, 76)}
    for precision, number in numbers.items():
        found = parities[precision]
        assert (found["num_images"], found["num_training_images"]) == number, precision
    split = read_split(few_validated).set_index("path")["split"]
    with ExitStack() as stack:
        trained = TrainedRun(
            few_validated, tmp_path, device="cpu", num_images=None, calibration_images=128,
            opset=OPSET, progress=Recorder(), stack=stack,
        )  # fmt: skip
        calibrated = set(trained._calibration_paths)
    assert len(calibrated) == 128
    for reference, _, paths in compared:
        kinds = [split[str(path)] for path in paths]
        assert kinds == ["val"] * 24 + ["train"] * (len(paths) - 24)
        assert len(set(paths)) == len(paths)
        assert calibrated.isdisjoint(paths)
        right = open_run(few_validated, device="cpu")
        assert np.allclose(reference, predict(right, paths), atol=1e-5)


def test_cards_tables_and_messages_say_how_many_images_of_each_split_were_compared(
    few_validated, tmp_path, monkeypatch
):
    done = run_tltools("export", few_validated, "--precision", "int8", cwd=tmp_path)
    assert "verified against PyTorch on validation + training images" in " ".join(done.out.split())
    assert " 24+76" in done.out
    shown = run_tltools("inspect", "exports/cnn/cnn.int8.onnx", cwd=tmp_path).out
    assert "100 images (24 validation, 76 training) get PyTorch's" in " ".join(shown.split())
    chosen = run_tltools(
        "export", few_validated, "--precision", "int8", "--parity-images", "20", cwd=tmp_path
    )
    assert "+" not in chosen.out.splitlines()[-1].replace("+0.0", "")


def test_a_few_differing_labels_name_the_images_of_each_split(onnx_path, images):
    paths = sorted(images.rglob("*.png"))
    predictor = load_predictor(onnx_path, device="cpu")
    reference = predictor(
        np.stack([load_image(path, Preprocessing(size=32, resize="squash")) for path in paths])
    )
    targets = reference[:10].argmax(axis=1)
    reference[20] = reference[20][[1, 2, 0]]
    lenient = ParityBar(atol=None, min_top1_agreement=0.9, max_accuracy_drop=0.0)
    assert compare(reference, predictor, paths, targets, bar=lenient).accuracy_drop == 0
    strict = ParityBar(atol=None, min_top1_agreement=0.99)
    with pytest.raises(
        ParityError,
        match=r"30 images \(10 validation, 20 training\) get .*; among 30 images, no "
        r"label may change \(from 100 images on, one may\)",
    ):
        compare(reference, predictor, paths, targets, bar=strict)


def test_layers_in_float_are_in_the_table(cnn_run, tmp_path, monkeypatch):
    tries = []

    def compare_strictly(*args, **rest):
        tries.append(args)
        if len(tries) == 1:
            raise ParityError("too far")
        return compare(*args, **rest)

    monkeypatch.setattr(export_module, "compare", compare_strictly)
    done = run_tltools("export", cnn_run, "--precision", "int8", cwd=tmp_path)
    assert "(cnn.int8.onnx: 1 layer in fp32)" in " ".join(done.out.split())


def test_only_exports_of_all_precisions_remain_in_their_folder(reduced):
    names = sorted(path.name for path in reduced["int8"].path.parent.iterdir())
    assert names == ["cnn.fp16.onnx", "cnn.fp32.onnx", "cnn.int8.onnx"]


def test_each_pass_over_the_training_images_says_what_it_is_for(cnn_run, tmp_path):
    progress = Recorder()
    make_exports(cnn_run, ["onnx"], tmp_path, precisions=("fp16", "int8"), calibration_images=7,
                 device="cpu", progress=progress)  # fmt: skip
    named = [one for one in progress.bars if one.startswith(("Calibrating", "Checking"))]
    assert named == ["Checking fp16 for overflow", "Calibrating int8"]


class StopsAt(Recorder):
    """Presses Ctrl-C when an export is begun."""

    def say(self, message):
        if message.startswith("Exporting"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("mine", ["", "e9", "e9/cnn"])
def test_ctrl_c_leaves_no_folder_that_the_export_created(cnn_run, tmp_path, mine):
    """`mine` existed before, so it stays."""
    (tmp_path / mine).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        make_exports(cnn_run, ["onnx"], tmp_path / "e9", device="cpu", progress=StopsAt())
    assert sorted(tmp_path.rglob("*")) == before


def test_calibration_uses_training_images_of_all_classes_equally(cnn_run, tmp_path, monkeypatch):
    frame = read_split(cnn_run)
    train = frame[frame["split"] == "train"].set_index("path")
    taken = []

    def record(source, target, calibration, check, **rest):
        taken.extend(calibration)
        raise ParityError("seen enough")

    monkeypatch.setattr(onnx_writer, "quantize_until", record)
    seen = []
    decode_batches = trained_module.decode_batches
    monkeypatch.setattr(
        trained_module,
        "decode_batches",
        lambda paths, **rest: seen.extend(paths) or decode_batches(paths, **rest),
    )
    with pytest.raises(ParityError, match="seen enough"):
        make_exports(cnn_run, ["onnx"], tmp_path, precisions=("int8",), calibration_images=6)
    assert sum(map(len, taken)) == len(set(seen)) == 6
    assert sorted(train.loc[[str(path) for path in seen], "class"].value_counts()) == [3, 3]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_export_below_its_threshold_is_not_written(
    cnn_run, tmp_path, monkeypatch, precision
):
    """The source is broken, so no choice of layers can help."""
    replace_writer(monkeypatch, "onnx", write=writing(classes_swapped, "onnx"))
    earlier = tmp_path / "cnn" / f"cnn.{precision}.onnx"
    earlier.parent.mkdir()
    earlier.write_bytes(b"earlier")
    needed = {"fp16": 200, "int8": 100}[precision]
    message = (
        r"was not written: .* of 6 images get the same label, .*; "
        rf"among 6 images, no label may change \(from {needed} images on, one may\); try"
    )
    with pytest.raises(ParityError, match=message):
        make_exports(cnn_run, ["onnx"], tmp_path, precisions=(precision,))
    assert files_in(tmp_path) == [earlier]
    assert earlier.read_bytes() == b"earlier"


def test_layers_stay_float_until_the_threshold_is_met_and_the_card_names_them(
    cnn_run, tmp_path, monkeypatch
):
    """The first two attempts are compared with a PyTorch model that disagrees."""
    tries = []

    def compare_strictly(*args, **rest):
        tries.append(args)
        if len(tries) < 3:
            raise ParityError("too far")
        return compare(*args, **rest)

    monkeypatch.setattr(export_module, "compare", compare_strictly)
    progress = Recorder()
    (result,) = make_exports(cnn_run, ["onnx"], tmp_path, precisions=("int8",), progress=progress)
    assert len(result.facts.float_layers) == 2
    kept = {node.name for node in onnx.load(result.path).graph.node}
    assert kept.issuperset(result.facts.float_layers)
    assert sum("int8: too far; retrying with" in line for line in progress.said) == 2


def test_torchscript_has_no_int8_and_fp16_only_with_a_gpu(cnn_run, tmp_path):
    with pytest.raises(ConfigError, match=r"fp32 and fp16; `precisions=int8` needs `formats=onnx`"):
        make_exports(cnn_run, ["torchscript"], tmp_path, precisions=("int8",))
    with pytest.raises(
        DeviceError, match=r"^cnn\.fp16\.pt: TorchScript in fp16 .* CPU: as asked; exp"
    ):
        make_exports(cnn_run, ["torchscript"], tmp_path, precisions=("fp16",), device="cpu")
    progress = Recorder()
    results = make_exports(
        cnn_run,
        FORMATS,
        tmp_path,
        precisions=("fp32", "fp16"),
        num_images=2,
        device="cpu",
        progress=progress,
    )
    assert [result.path.name for result in results] == [
        "cnn.fp32.pt",
        "cnn.fp32.onnx",
        "cnn.fp16.onnx",
    ]
    assert sum(line.startswith("Skipped cnn.fp16.pt: ") for line in progress.said) == 1


def test_torchscript_in_fp16_accepts_the_same_images_and_returns_float32(
    cnn_run, cnn_exports, pixels, tmp_path
):
    """On the CPU, which is quick enough for the small network."""
    model, _ = load_run(cnn_run)
    path = tmp_path / "cnn.fp16.pt"
    save(CastClassifier(model, torch.float16).eval(), cnn_exports["torchscript"].card, path)
    halves = [one.dtype for one in torch.jit.load(path).parameters()]
    assert set(halves) == {torch.float16}
    assert next(model.parameters()).dtype == torch.float32
    logits = load_predictor(path, device="cpu", self_test=False)(pixels[:3])
    exact = load_predictor(cnn_exports["torchscript"].path, device="cpu")(pixels[:3])
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - exact).max() < 0.01 * np.ptp(exact)


def test_int8_needs_the_training_images(cnn_run, tmp_path, monkeypatch):
    frame = read_split(cnn_run)
    frame.loc[frame["split"] == "train", "path"] = str(tmp_path / "gone.png")
    monkeypatch.setattr(trained_module, "read_split", lambda run: frame)
    with pytest.raises(DataError, match=r"cannot be calibrated on its training images: .*gone"):
        make_exports(cnn_run, ["onnx"], tmp_path, precisions=("int8",))
    assert files_in(tmp_path) == []
