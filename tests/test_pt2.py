"""PT2 exports, `torch.export`'s format: that they agree, run elsewhere, and unpickle nothing."""

import copy
import json
import logging
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    SAID_OF_TORCHSCRIPT,
    SIZE,
    Recorder,
    make_exports,
    replace_writer,
    run_tltools,
    tiny_module,
)
from msgspec.structs import replace
from torch import nn

from tltools.artifacts import best_export, current_and_earlier_exports
from tltools.bench import BenchSettings, bench_inputs, run_bench
from tltools.card import CARD_KEY, Confidence, Preprocessing, card_from_json
from tltools.data.images import load_image
from tltools.errors import ArtifactError, ConfigError, DeviceError, ParityError
from tltools.export import trained as trained_module
from tltools.export.trained import CastClassifier
from tltools.graphs.onnx_file import example_images
from tltools.runtime import load_predictor, read_card
from tltools.runtime.model_formats import PT2, pt2
from tltools.training import load_run, open_run
from tltools.training.run import load_card

NUM_VAL = 6
MARK = "mark"


@pytest.fixture(scope="module")
def exported(cnn_run, tmp_path_factory):
    """The trained network as a PT2 export, by the library."""
    (result,) = make_exports(cnn_run, ["pt2"], tmp_path_factory.mktemp("pt2"), device="cpu")
    return result


@pytest.fixture(scope="module")
def pixels(drawn):
    """The drawn images as the models take them, uint8 (N, 224, 224, 3)."""
    rules = Preprocessing(size=224, resize="squash")
    return np.stack([load_image(path, rules) for path in sorted(drawn.rglob("*.png"))])


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path: Path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


# ------------------------------------------------------------------------------ what is in them


def test_a_pt2_export_holds_its_runs_card_and_its_own_facts(cnn_run, exported):
    assert exported.path.name == "cnn.fp32.pt2"
    assert [path.name for path in exported.path.parent.iterdir()] == ["cnn.fp32.pt2"]
    card = read_card(exported.path)
    assert card == exported.card
    assert (card.export.format, card.export.precision, card.export.opset) == ("pt2", "fp32", None)
    assert card.export.self_test is not None
    parity = card.export.parity
    assert (parity.num_images, parity.top1_agreement, parity.atol) == (NUM_VAL, 1.0, 1e-4)
    assert parity.batch_sizes == (1, NUM_VAL)
    run_card = load_card(cnn_run)
    assert (card.classes, card.data, card.run) == (run_card.classes, run_card.data, run_card.run)


def test_a_pt2_export_has_no_pickle_and_no_folder_of_the_machine(exported):
    members = members_of(exported.path)
    assert members["archive/data/sample_inputs/model.pt"] == b""
    for name, data in members.items():
        assert data[:1] != pickle.PROTO, name
        assert not data.startswith(b"PK"), name  # as torch.save begins
        assert str(Path(pt2.__file__).parents[2]).encode() not in data, name
        assert str(Path(torch.__file__).parent).encode() not in data, name


def test_the_weights_in_the_file_are_plain_numbers(exported, cnn_run):
    members = members_of(exported.path)
    config = json.loads(members["archive/data/weights/model_weights_config.json"])["config"]
    head = config["module.model.head.bias"]["path_name"]
    found = np.frombuffer(members[f"archive/data/weights/{head}"], "<f4")
    model, _ = load_run(cnn_run)
    np.testing.assert_array_equal(found, model.head.bias.detach().numpy())


# ------------------------------------------------------------------------------ that they agree


@pytest.mark.parametrize("batch_size", [1, 2, 5, 33])
def test_batches_of_any_size_agree_with_pytorch(exported, cnn_run, pixels, batch_size):
    images = np.resize(pixels, (batch_size, *pixels.shape[1:]))
    logits = load_predictor(exported.path, device="cpu")(images)
    assert (logits.dtype, logits.shape) == (np.float32, (batch_size, 2))
    np.testing.assert_allclose(logits, open_run(cnn_run, device="cpu")(images), rtol=0, atol=2e-5)


def test_the_networks_answers_differ_from_image_to_image(exported, pixels):
    """Otherwise the agreement above would show little."""
    logits = load_predictor(exported.path, device="cpu")(pixels)
    assert np.ptp(logits, axis=0).min() > 0.01


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_probabilities_are_calibrated_and_logits_stay(
    cnn_run, exported, pixels, monkeypatch, tmp_path, temperature
):
    card = replace(load_card(cnn_run), confidence=Confidence(temperature=temperature))
    model, _ = load_run(cnn_run)
    monkeypatch.setattr(trained_module, "load_run", lambda _run: (model, card))
    (result,) = make_exports(cnn_run, ["pt2"], tmp_path, device="cpu")
    predictor = load_predictor(result.path, device="cpu")
    logits = predictor(pixels[:5])
    scaled = np.exp(logits / temperature)
    by_hand = scaled / scaled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictor.probabilities(pixels[:5]), by_hand, atol=1e-6)
    before = load_predictor(exported.path, device="cpu")(pixels[:5])
    np.testing.assert_allclose(logits, before, rtol=0, atol=1e-6)


def test_a_file_without_probabilities_says_so(pt2_path):
    predictor = load_predictor(pt2_path, device="cpu")
    with pytest.raises(ArtifactError, match="has no output 'probabilities'"):
        predictor.probabilities(np.zeros((1, SIZE, SIZE, 3), np.uint8))


def test_a_pt2_export_runs_without_tltools(exported, cnn_run, pixels, tmp_path):
    np.save(tmp_path / "images.npy", pixels[:3])
    script = (
        "import sys\n"
        "sys.modules['tltools'] = None\n"
        "import numpy, torch\n"
        "files = {'tltools.card': ''}\n"
        "module = torch.export.load(sys.argv[1], extra_files=files).module()\n"
        "logits, probabilities, _ = module(torch.from_numpy(numpy.load('images.npy')))\n"
        "numpy.savez('found.npz', logits=logits.detach(), probabilities=probabilities.detach())\n"
        "open('card.json', 'w').write(files['tltools.card'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported.path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == done.stderr == ""
    found = np.load(tmp_path / "found.npz")
    expected = open_run(cnn_run, device="cpu")(pixels[:3])
    np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-6)
    card = card_from_json((tmp_path / "card.json").read_bytes(), where="card")
    assert card == exported.card


# ------------------------------------------------------------------- that a wrong one is not made


class FixedBatch(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).view(2, 2)


class OneMoreClass(FixedBatch):
    def forward(self, images):
        logits = self.model(images)
        return torch.cat([logits, logits[:, :1]], dim=1)


class Undecided(FixedBatch):
    def forward(self, images):
        return self.model(images) if images.sum() > 0 else self.model(images) + 1


@torch.library.custom_op("tltools_test::same", mutates_args=())
def same(logits: torch.Tensor) -> torch.Tensor:
    return logits.clone()


same.register_fake(torch.empty_like)


class WithAnOperatorOfItsOwn(FixedBatch):
    def forward(self, images):
        return same(self.model(images))


def other_bias(model):
    model.head.bias.data += 0.01 * torch.tensor([0.0, 1.0])
    return model


def not_a_number(model):
    model.head.bias.data[0] = float("nan")
    return model


def in_training_mode(model):
    return model.train()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (other_bias, ParityError, r"logits differ by up to 1\.\d+e-02, more than 0.0001"),
        (not_a_number, ArtifactError, "logits are not finite"),
        (in_training_mode, ParityError, "logits differ by"),
        (OneMoreClass, ArtifactError, r"gives float32 \(6, 3\)"),
        (FixedBatch, ArtifactError, "torch.export rejects the model: Constraints violated"),
        (Undecided, ArtifactError, "torch.export rejects the model: Could not guard"),
        (WithAnOperatorOfItsOwn, ArtifactError, r"its target is 'torch\.ops\.tltools_test\.same"),
    ],
)
def test_a_pt2_export_that_is_wrong_is_not_made(
    cnn_run, monkeypatch, tmp_path, capfd, change, kind, message
):
    def write_wrong(trained, precision, path, check):
        other = copy.copy(trained)
        other.model = change(copy.deepcopy(trained.model))
        return pt2.write(other, precision, path, check)

    replace_writer(monkeypatch, "pt2", write=write_wrong)
    with pytest.raises(kind, match=message) as caught:
        make_exports(cnn_run, ["pt2"], tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # PyTorch would print the graph so far
    assert str(caught.value).startswith(f"{tmp_path}/cnn/cnn.fp32.pt2 was not written: ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_pytorch_says_of_an_export_that_succeeds_is_a_warning(monkeypatch):
    export = torch.export.export

    def talk(*args, **options):
        print("a layer is deprecated", file=sys.stderr)
        return export(*args, **options)

    monkeypatch.setattr(torch.export, "export", talk)
    with pytest.warns(UserWarning, match="a layer is deprecated"):
        pt2._export(*tiny_module())


# ------------------------------------------------------------------------------------ precisions


def test_pt2_has_no_int8_and_fp16_only_with_a_gpu(cnn_run, tmp_path):
    assert (PT2.precisions, PT2.gpu_precisions) == (("fp32", "fp16"), ("fp16",))
    with pytest.raises(ConfigError, match=r"PT2 supports only fp32 and fp16; `precisions=int8`"):
        make_exports(cnn_run, ["pt2"], tmp_path, precisions=("int8",))
    with pytest.raises(DeviceError, match=r"^cnn\.fp16\.pt2: PT2 in fp16 .* CPU: as asked; export"):
        make_exports(cnn_run, ["pt2"], tmp_path, precisions=("fp16",), device="cpu")
    progress = Recorder()
    results = make_exports(
        cnn_run,
        ["pt2"],
        tmp_path,
        precisions=("fp32", "fp16"),
        num_images=2,
        device="cpu",
        progress=progress,
    )
    assert [result.path.name for result in results] == ["cnn.fp32.pt2"]
    assert sum(line.startswith("Skipped cnn.fp16.pt2: ") for line in progress.said) == 1


def test_pt2_in_fp16_takes_the_same_images_and_gives_float32(cnn_run, exported, pixels, tmp_path):
    """On the CPU, which is quick enough for the small network."""
    model, _ = load_run(cnn_run)
    path = tmp_path / "cnn.fp16.pt2"
    program = pt2._export(CastClassifier(model, torch.float16).eval(), example_images(224))
    pt2._save(program, path, exported.card)
    dtypes = {tensor.dtype for name, tensor in pt2._program(path).state_dict.items()}
    assert torch.float16 in dtypes
    assert next(model.parameters()).dtype == torch.float32
    logits = load_predictor(path, device="cpu", self_test=False)(pixels[:3])
    exact = load_predictor(exported.path, device="cpu")(pixels[:3])
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - exact).max() < 0.01 * np.ptp(exact)


# --------------------------------------------------------------------------------------- loading


def test_a_program_moves_to_another_device_as_a_whole(exported):
    """`meta`, which every machine has: an operator refuses tensors of two devices."""
    images = torch.empty(7, 224, 224, 3, dtype=torch.uint8, device="meta")
    logits, probabilities, _ = pt2._load(exported.path, images.device)(images)
    assert logits.device.type == probabilities.device.type == "meta"
    assert logits.shape == probabilities.shape == (7, 2)


def test_a_program_with_constants_moves_with_them(tmp_path, make_card):
    """Such as VGG16's mean and standard deviation, which are no parameters."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.ones(3), persistent=False)

        def forward(self, images):
            return images.float().mean(dim=(1, 2)) + self.shift + torch.zeros(3)

    path = tmp_path / "shifted.pt2"
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    pt2._save(pt2._export(Shifted(), example), path, make_card())
    read_card(path)
    assert any("/constants/tensor_" in name for name in members_of(path))
    meta = torch.device("meta")
    assert pt2._load(path, meta)(example.to(meta)).device == meta


def test_a_device_that_a_program_does_not_fit_on_is_an_error(pt2_path, monkeypatch):
    def fail(_program, _device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("torch.export.passes.move_to_device_pass", fail)
    with pytest.raises(DeviceError, match=r"cannot move .*tiny\.pt2 to cuda:0: CUDA out of memory"):
        pt2._load(pt2_path, torch.device("cuda:0"))


def test_several_threads_may_load_programs_at_once(pt2_path):
    found, failures = [], []

    def work():
        try:
            found.append(load_predictor(pt2_path, device="cpu", threads=1))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(found) == 4


def test_a_suffix_in_capitals_is_the_same_format(pt2_path, tmp_path, caplog):
    path = tmp_path / "TINY.PT2"
    path.write_bytes(pt2_path.read_bytes())
    with caplog.at_level(logging.INFO, logger="torch.export"):
        assert load_predictor(path, device="cpu").card == read_card(pt2_path)
    assert caplog.records == []


def test_a_program_of_another_version_of_pytorch_is_an_error_that_says_so(pt2_path, tmp_path):
    members = members_of(pt2_path)
    graph = json.loads(members["archive/models/model.json"])
    graph["schema_version"]["major"] += 1
    members["archive/models/model.json"] = json.dumps(graph).encode()
    path = write_members(tmp_path / "later.pt2", members)
    read_card(path)
    with pytest.raises(
        ArtifactError, match=r"torch 2\..*schema version .* does not match"
    ) as caught:
        load_predictor(path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["graph_module", "signature", "nodes", "outputs"])
def test_a_program_that_lacks_a_part_is_an_error(pt2_path, tmp_path, part):
    members = members_of(pt2_path)
    text = members["archive/models/model.json"].replace(f'"{part}"'.encode(), b'"other"')
    members["archive/models/model.json"] = text
    path = write_members(tmp_path / "less.pt2", members)
    with pytest.raises(ArtifactError, match=r"less\.pt2 is not a PT2 file \(torch") as caught:
        load_predictor(path, device="cpu")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- files of strangers


class Marks:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def change_text(members, name, old, new):
    before = members[f"archive/{name}"]
    members[f"archive/{name}"] = before.replace(old, new, 1)
    assert members[f"archive/{name}"] != before


def pickled_example(members, mark):
    data = pickle.dumps(Marks(mark), protocol=2)
    members["archive/data/sample_inputs/model.pt"] = data


def pickled_constant(members, mark):
    members["archive/data/constants/opaque_obj_0"] = pickle.dumps(Marks(mark))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    members["archive/data/constants/model_constants_config.json"] = json.dumps(
        {"config": {"x": entry | {"tensor_meta": None}}}
    ).encode()


def pickled_in_the_place_of_a_tensor(members, mark):
    pickled_constant(members, mark)
    members["archive/data/constants/tensor_0"] = members.pop("archive/data/constants/opaque_obj_0")
    name = "data/constants/model_constants_config.json"
    change_text(members, name, b"opaque_obj_0", b"tensor_0")


def expression(members, mark):
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    text = members["archive/models/model.json"].decode()
    graph = json.loads(text)
    for value in graph["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = code
    members["archive/models/model.json"] = json.dumps(graph).encode()


def conditions(members, mark):
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    change_text(
        members, "models/model.json", b'"guards_code": []',
        b'"guards_code": ' + json.dumps([code]).encode(),
    )  # fmt: skip


def system_call(members, mark):
    change_text(members, "models/model.json", b"torch.ops.aten.mean.dim", b"torch.os.system")


def library(members, mark):
    change_text(members, "models/model.json", b"torch.ops.aten.mean.dim", b"torch.ops.load_library")


def file_operator(members, mark):
    change_text(members, "models/model.json", b"aten.mean.dim", b"aten.from_file.default")


def foreign_type(members, mark):
    context = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
    change_text(
        members, "models/model.json", b'\\"context\\": \\"null\\"',
        b'\\"context\\": ' + json.dumps(json.dumps(context))[1:-1].encode(),
    )  # fmt: skip


def compiled(members, mark):
    members["archive/data/aotinductor/model/model.so"] = b"\x7fELF"


def second_program(members, mark):
    members["archive/models/other.json"] = members["archive/models/model.json"]


def second_root(members, mark):
    members["other/models/model.json"] = members["archive/models/model.json"]


def absurd_text(members, mark):
    members["archive/models/model.json"] = b" " * (pt2.MAX_TEXT_BYTES + 1)


def nested(members, mark):
    members["archive/models/model.json"] = b"[" * 100_000 + b"]" * 100_000


def without_program(members, mark):
    del members["archive/models/model.json"]


def without_card(members, mark):
    del members[f"archive/extra/{CARD_KEY}"]


STRANGE = {
    "a pickled example": (pickled_example, "it has a pickle, which could run any program"),
    "a pickled constant": (pickled_constant, "a part 'data/constants/opaque_obj_0', and exports"),
    "a pickled tensor": (pickled_in_the_place_of_a_tensor, "it has use_pickle, which could run"),
    "an expression that is code": (expression, 'its expr_str is "__import__'),
    "conditions that are code": (conditions, "it has guards_code, which could run any program"),
    "a call of the system": (system_call, "its target is 'torch.os.system', and exports"),
    "a call that loads a library": (library, "its target is 'torch.ops.load_library'"),
    "a call that opens a file": (file_operator, "its target is 'torch.ops.aten.from_file.default'"),
    "a type of another module": (foreign_type, "its in_spec is '[1, {"),
    "a compiled library": (compiled, "it has a part 'data/aotinductor/model/model.so'"),
    "a second program": (second_program, "it has a part 'models/other.json'"),
    "a second root": (second_root, "it has a part 'other/models/model.json'"),
    "a long graph": (absurd_text, "its part 'models/model.json' has over 33,554,432 bytes"),
    "a bomb of brackets": (nested, "is not a PT2 file ("),
    "no program": (without_program, "is not a PT2 file (it has no program)"),
    "no card": (without_card, "has no tltools card, so it is not an export"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_a_stranger_put_into_a_file_is_refused_before_pytorch_sees_it(
    pt2_path, tmp_path, monkeypatch, name
):
    change, message = STRANGE[name]
    members = members_of(pt2_path)
    change(members, tmp_path / MARK)
    path = write_members(tmp_path / "strange.pt2", members)
    monkeypatch.setattr(torch.export, "load", lambda _path: pytest.fail("PyTorch saw it"))
    for opener in (read_card, load_predictor):
        with pytest.raises(ArtifactError) as caught:
            opener(path)
        error = str(caught.value)
        assert error.startswith(str(path))
        assert message in error
        assert error.isprintable()
        assert len(error) < 1000
    ran = run_tltools("inspect", path, cwd=tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert not (tmp_path / MARK).exists()


@pytest.mark.slow  # that the files above are a danger; nothing of ours runs here
@pytest.mark.parametrize("change", [pickled_constant, pickled_in_the_place_of_a_tensor, expression])
def test_pytorch_alone_would_run_the_strangers_program(pt2_path, tmp_path, change):
    """Otherwise the refusals above would show little."""
    members = members_of(pt2_path)
    change(members, tmp_path / MARK)
    path = write_members(tmp_path / "strange.pt2", members)
    script = "import sys, torch; torch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, check=False)
    assert (tmp_path / MARK).exists()


def test_compressed_and_repeated_parts_are_refused(pt2_path, tmp_path):
    members = members_of(pt2_path)
    packed = write_members(tmp_path / "packed.pt2", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match=r"is compressed, and those of exports are not"):
        read_card(packed)
    twice = write_members(tmp_path / "twice.pt2", members)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(twice, "a") as archive,
    ):
        archive.writestr("archive/models/model.json", b"{}")
    with pytest.raises(ArtifactError, match="it has two parts with the same name"):
        read_card(twice)


# -------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def place(cnn_run, tmp_path_factory):
    """A run and its exports in all formats, written by the command."""
    workplace = tmp_path_factory.mktemp("place")
    shutil.copytree(cnn_run, workplace / "runs" / "cnn")
    done = run_tltools(
        *("export", "runs/cnn", "--format", "all", "--parity-images", 3, "--device", "cpu"),
        cwd=workplace,
    )
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines() if line.startswith(" exports")] == [
        "exports/cnn/cnn.fp32.pt",
        "exports/cnn/cnn.fp32.pt2",
        "exports/cnn/cnn.fp32.onnx",
    ]
    warnings = [line for line in done.err.splitlines() if "warning" in line.lower()]
    assert [line for line in warnings if not line.startswith(SAID_OF_TORCHSCRIPT)] == []
    return workplace


def test_the_commands_treat_a_pt2_export_like_the_others(place, drawn):
    path = "exports/cnn/cnn.fp32.pt2"
    rows = {}
    for suffix in ("pt2", "onnx"):
        done = run_tltools(
            *("classify", drawn, "--model", f"exports/cnn/cnn.fp32.{suffix}", "--device", "cpu"),
            *("--output", f"{suffix}.csv"),
            cwd=place,
        )
        assert done.code == 0, done.err
        lines = (place / f"{suffix}.csv").read_text().splitlines()
        rows[suffix] = [line.split(",")[:2] for line in lines]
    assert len(rows["pt2"]) == 1 + 16
    assert rows["pt2"] == rows["onnx"]
    inspected = run_tltools("inspect", path, cwd=place)
    assert inspected.code == 0
    assert "pt2" in inspected.out
    scored = run_tltools("evaluate", path, drawn, "--device", "cpu", cwd=place)
    assert scored.code == 0, scored.err
    assert best_export(place / "exports").path.suffix == ".onnx"  # which needs no PyTorch
    assert {one.path.suffix for one in current_and_earlier_exports(place / "exports")[0]} == {
        ".onnx",
        ".pt",
        ".pt2",
    }


@pytest.mark.slow
def test_bench_measures_a_pt2_export(place):
    inputs = bench_inputs(
        [place / "exports" / "cnn" / "cnn.fp32.pt2"],
        None,
        run_dir=place / "runs",
        export_dir=place / "exports",
    )
    settings = BenchSettings(
        device="cpu", batch_sizes=(2,), rounds=1, iterations=2, classify_seconds=0.2
    )
    found = run_bench(inputs, settings)
    eager, row = found.rows
    assert (eager.format, row.format, row.precision) == ("eager", "pt2", "fp32")
    assert (row.reason, row.provider, row.agreement) == ("", "torch", 1.0)
    assert row.classify.images_per_s > 0
    assert "ONNX before PT2 before TorchScript" in found.to_markdown()


def test_layouts_take_onnx_only(place):
    done = run_tltools(*("export", "exports/cnn/cnn.fp32.pt2", "--layout", "triton"), cwd=place)
    assert done.code != 0
    assert "needs an ONNX export" in done.err


# ------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
def test_pt2_is_verified_and_runs_on_the_gpu(cnn_run, pixels, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device in PyTorch: tltools doctor says why")
    results = make_exports(cnn_run, ["pt2"], tmp_path, precisions=("fp32", "fp16"), device="cuda")
    fp32, fp16 = (result.facts for result in results)
    assert [(one.device, one.provider) for one in fp32.verified] == [
        ("cuda", "torch"),
        ("cpu", "torch"),
    ]
    assert [one.device for one in fp16.verified] == ["cuda"]
    assert fp16.fp16_exercised is True
    assert fp16.parity.max_abs_logit_diff > 1e-6  # else it was computed in fp32
    exact = open_run(cnn_run, device="cpu")(pixels)
    for result, atol in zip(results, (1e-3, 0.05), strict=True):
        on_gpu = load_predictor(result.path, device="cuda")
        assert on_gpu.device == "cuda"
        np.testing.assert_allclose(on_gpu(pixels), exact, rtol=0, atol=atol)
        # A file of a GPU opens where there is none: its tensors are saved on the CPU.
        assert {one.device.type for one in pt2._program(result.path).state_dict.values()} == {"cpu"}
