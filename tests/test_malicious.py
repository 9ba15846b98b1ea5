"""Model files from strangers: each is refused in one line by every command that takes a model.

The files are made here. What is dangerous in one leaves a mark on the disk when it is run, and no
test may find that mark.
"""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES, SIZE, run_tltools
from onnx import TensorProto, helper, numpy_helper

from tltools.artifacts import best_export, current_and_earlier_exports
from tltools.card import CARD_KEY, MAX_CARD_BYTES, Score
from tltools.errors import ArtifactError
from tltools.runtime import load_predictor, read_card
from tltools.runtime.onnx_reader import read_onnx

MARK = "mark-of-code-that-ran"


class Kit(NamedTuple):
    """What a malicious file is made of."""

    folder: Path
    good: Path
    """The tiny model as a complete ONNX export."""
    torchscript: Path
    make_card: Callable[..., Any]

    def model(self) -> onnx.ModelProto:
        return onnx.load(self.good)

    def save(self, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = self.folder / name
        path.write_bytes(model.SerializeToString())
        return path

    def with_card(self, change: Callable[[dict[str, Any]], None]) -> Path:
        """Write the tiny model with a card that is changed as a dictionary."""
        document = json.loads(self.make_card().to_json())
        change(document)
        return self.with_text(json.dumps(document))

    def with_text(self, text: str) -> Path:
        model = self.model()
        helper.set_model_props(model, {CARD_KEY: text})
        return self.save(model)

    def archive(self, members: dict[str, bytes], **options: Any) -> Path:
        path = self.folder / "model.pt"
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path


@pytest.fixture
def kit(tmp_path, onnx_path, torchscript_path, make_card):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.bin").write_bytes(bytes(3 * 3 * 4))
    (tmp_path / "models").mkdir()
    return Kit(tmp_path / "models", onnx_path, torchscript_path, make_card)


# ------------------------------------------------------------------------------------- ONNX


def external(location: str):
    def make(kit: Kit) -> Path:
        model = kit.model()
        weight = next(one for one in model.graph.initializer if one.name == "weight")
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "36")):
            weight.external_data.add(key=key, value=value)
        (kit.folder / "weights.bin").write_bytes(bytes(36))
        return kit.save(model)

    return make


def external_constant(kit: Kit) -> Path:
    """The tensor is not an initializer but a node's attribute."""
    model = kit.model()
    tensor = TensorProto(name="c", dims=[9], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside/secret.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    return kit.save(model)


def external_unsaid(kit: Kit) -> Path:
    """Only the location is there; the field that says so is overwritten by a later one."""
    model = kit.model()
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    weight.external_data.add(key="location", value="/etc/passwd")
    weight.data_location = TensorProto.DEFAULT
    return kit.save(model)


def custom_operator(kit: Kit) -> Path:
    model = kit.model()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    node = helper.make_node("Run", ["images"], ["unused"], domain="com.evil")
    model.graph.node.append(node)
    return kit.save(model)


def context_of_another_file(kit: Kit) -> Path:
    """onnxruntime's own EPContext reads a file that it names."""
    model = kit.model()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(
        helper.make_node(
            "EPContext",
            ["images"],
            ["unused"],
            domain="com.microsoft",
            embed_mode=0,
            ep_cache_context="../outside/secret.bin",
        )
    )
    return kit.save(model)


def function_of_its_own(kit: Kit) -> Path:
    model = kit.model()
    body = [helper.make_node("Relu", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Act", ["x"], ["y"], body, opset))
    return kit.save(model)


def endless_loop(kit: Kit) -> Path:
    """A Loop of 2**62 rounds."""
    model = kit.model()
    values = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        values,
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "rounds"))
    model.graph.node.append(helper.make_node("Loop", ["rounds", ""], [], body=body))
    return kit.save(model)


def absurd_claim(kit: Kit) -> Path:
    """Four bytes that claim to be 2**40 numbers."""
    model = kit.model()
    model.graph.initializer.append(
        TensorProto(name="big", dims=[2**20, 2**20], data_type=1, raw_data=b"\0\0\0\0")
    )
    return kit.save(model)


def absurd_typed_claim(kit: Kit) -> Path:
    model = kit.model()
    tensor = TensorProto(name="big", dims=[2**40], data_type=TensorProto.FLOAT)
    tensor.float_data.append(1.0)
    model.graph.initializer.append(tensor)
    return kit.save(model)


def negative_size(kit: Kit) -> Path:
    model = kit.model()
    model.graph.initializer.append(TensorProto(name="less", dims=[-1], data_type=1))
    return kit.save(model)


def memory_from_nothing(kit: Kit) -> Path:
    model = kit.model()
    shape = numpy_helper.from_array(np.array([2**20, 2**20]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["unused"]))
    return kit.save(model)


def second_input(kit: Kit) -> Path:
    model = kit.model()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return kit.save(model)


def second_output(kit: Kit) -> Path:
    model = kit.model()
    model.graph.output.append(helper.make_tensor_value_info("means", TensorProto.FLOAT, [None, 3]))
    return kit.save(model)


def third_output(kit: Kit) -> Path:
    model = kit.model()
    for name in ("probabilities", "more"):
        model.graph.node.append(helper.make_node("Softmax", ["logits"], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]))
    return kit.save(model)


def float_input(kit: Kit) -> Path:
    model = kit.model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return kit.save(model)


def fixed_batch(kit: Kit) -> Path:
    model = kit.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return kit.save(model)


def no_card(kit: Kit) -> Path:
    model = kit.model()
    del model.metadata_props[:]
    return kit.save(model)


def two_cards(kit: Kit) -> Path:
    model = kit.model()
    card = next(one for one in model.metadata_props if one.key == CARD_KEY)
    model.metadata_props.append(card)
    return kit.save(model)


def two_graphs(kit: Kit) -> Path:
    path = kit.folder / "model.onnx"
    path.write_bytes(kit.good.read_bytes() * 2)
    return path


def truncated(kit: Kit) -> Path:
    path = kit.folder / "model.onnx"
    path.write_bytes(kit.good.read_bytes()[:-50])
    return path


def garbage(kit: Kit) -> Path:
    path = kit.folder / "model.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def many_parts(kit: Kit) -> Path:
    """Millions of empty nodes: 2 bytes each in the file."""
    path = kit.folder / "model.onnx"
    nodes = b"\x0a\x00" * 3_000_000
    graph = b"\x3a" + _varint(len(nodes)) + nodes
    path.write_bytes(kit.good.read_bytes() + graph)
    return path


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


# ------------------------------------------------------------------------------------- cards


def card(**changes: Any) -> Callable[[Kit], Path]:
    return lambda kit: kit.with_card(lambda document: document.update(changes))


def card_text(make: Callable[[str], str]) -> Callable[[Kit], Path]:
    return lambda kit: kit.with_text(make(kit.make_card().to_json()))


def preprocessing(**changes: Any) -> Callable[[Kit], Path]:
    return lambda kit: kit.with_card(lambda document: document["preprocessing"].update(changes))


def self_test(**changes: Any) -> Callable[[Kit], Path]:
    fields = {"images": ["iVBORw0KGgo="], "logits": "AAAA", "tolerance": 1.0} | changes
    return lambda kit: kit.with_card(lambda document: document["export"].update(self_test=fields))


def nan_score(text: str) -> str:
    score = Score(accuracy=0.5, low=0, high=1, correct=1, total=2)
    metrics = msgspec.json.encode({"val": score}).decode().replace("0.5", "NaN")
    return text.replace('"metrics": {}', f'"metrics": {metrics}')


SCORE = {"accuracy": 7.5, "low": 0.0, "high": 1.0, "correct": 1, "total": 2}


# -------------------------------------------------------------------------------- TorchScript


class Marks:
    """Unpickling an object of this class makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def pickled(kit: Kit) -> Path:
    path = kit.folder / "model.pt"
    path.write_bytes(pickle.dumps(Marks(kit.folder / MARK)))
    return path


def pickled_archive(kit: Kit) -> Path:
    """A file as from `torch.save`, with a card."""
    path = kit.folder / "model.pt"
    torch.save(Marks(kit.folder / MARK), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/extra/{CARD_KEY}", kit.make_card().to_json())
    return path


def pickle_with_code(kit: Kit) -> Path:
    """TorchScript, except that its data is the pickle of a Python object."""
    with zipfile.ZipFile(kit.torchscript) as source:
        members = {name: source.read(name) for name in source.namelist()}
    name = next(name for name in members if name.endswith("/data.pkl"))
    return kit.archive(members | {name: pickle.dumps(Marks(kit.folder / MARK), protocol=2)})


def unpacking_bomb(kit: Kit) -> Path:
    with zipfile.ZipFile(kit.torchscript) as source:
        members = {name: source.read(name) for name in source.namelist()}
    members["tiny/code/more.py"] = bytes(100 * 2**20)
    return kit.archive(members, compression=zipfile.ZIP_DEFLATED)


def card_bomb(kit: Kit) -> Path:
    with zipfile.ZipFile(kit.torchscript) as source:
        members = {name: source.read(name) for name in source.namelist()}
    name = next(name for name in members if name.endswith(CARD_KEY))
    return kit.archive(members | {name: b" " * (MAX_CARD_BYTES + 1)})


def without_code(kit: Kit) -> Path:
    return kit.archive({f"model/extra/{CARD_KEY}": kit.make_card().to_json().encode()})


CASES = {
    "external data beside it": (external("weights.bin"), "tensors are in another file"),
    "external data above it": (external("../outside/secret.bin"), "tensors are in another file"),
    "external data anywhere": (external("/etc/passwd"), "tensors are in another file"),
    "external data in a constant": (external_constant, "tensors are in another file"),
    "external data unsaid": (external_unsaid, "tensors are in another file"),
    "custom operators": (custom_operator, "needs operators of 'com.evil'"),
    "a context file": (context_of_another_file, "needs operators of 'com.microsoft'"),
    "a function": (function_of_its_own, "it has functions of its own"),
    "an endless loop": (endless_loop, "it has graphs within nodes"),
    "an absurd claim": (absurd_claim, "tensor 'big' claims 1048576 x 1048576 elements"),
    "an absurd claim of numbers": (absurd_typed_claim, "tensor 'big' claims 1099511627776 el"),
    "a negative size": (negative_size, "tensor 'less' has a negative size"),
    "memory from nothing": (memory_from_nothing, "a node ConstantOfShape, which can request any"),
    "a second input": (second_input, "its input is uint8 images[?, 32, 32, 3], float more[1], but"),
    "a third output": (third_output, "float probabilities[?, 3], float more[?, 3], but by"),
    "a second output": (second_output, "its output is float logits[?, 3], float means[?, 3], but"),
    "a float input": (float_input, "its input is float images[?, 32, 32, 3], but by its card"),
    "a fixed batch": (fixed_batch, "its input has a fixed batch size of 1"),
    "no card": (no_card, "has no tltools card"),
    "two cards": (two_cards, "it has two cards"),
    "two graphs": (two_graphs, "it has two"),
    "truncated": (truncated, "is not an ONNX file"),
    "garbage": (garbage, "is not an ONNX file"),
    "empty": (lambda kit: (kit.folder / "model.onnx").write_bytes(b"") or kit.folder / "model.onnx",
              "it has no graph"),
    "millions of parts": (many_parts, "it has more than 200,000 parts"),
    "a later version": (card(version=2), "upgrade tltools (see tltools docs install)"),
    "a later version in new words": (card_text(lambda _: '{"version": 3, "run": 5}'), "upgrade"),
    "a version that never was": (card(version=0), "version 0 does not exist"),
    "more classes than logits": (card(classes=[*CLASSES, "more"]), "should be float logits[?, 4]"),
    "fewer classes than logits": (card(classes=["a", "b"]), "should be float logits[?, 2]"),
    "one class": (card(classes=["a"]), "two or more different classes"),
    "a class twice": (card(classes=["a", "a", "b"]), "two or more different classes"),
    "a size of 0": (preprocessing(size=0), "an input size of 0 pixels is not between 1 and 2048"),
    "a size of 100,000": (preprocessing(size=100_000), "an input size of 100000 pixels"),
    "another size": (preprocessing(size=16), r"should be uint8 images[?, 16, 16, 3]"),
    "an unknown resize": (preprocessing(resize="stretch"), "Invalid enum value 'stretch'"),
    "a std of 0": (preprocessing(std=[0.0, 1.0, 1.0]), "std must be positive"),
    "a NaN": (card_text(nan_score), "JSON is malformed"),
    "an accuracy of 750%": (card(metrics={"val": SCORE}), "an accuracy is not between 0 and 1"),
    "a run outside": (card(run="../../x"), "run '../../x' is not a valid folder name"),
    "a run anywhere": (card(run="/etc/x"), "run '/etc/x' is not a valid folder name"),
    "a run without a name": (card(run=""), "run '' is not a valid folder name"),
    "a run with a zero byte": (card(run="a\0b"), r"run 'a\x00b' is not a valid folder name"),
    "a run of control characters": (card(run="\x1b[31m"), r"run '\x1b[31m' is not a valid"),
    "a run with a long name": (card(run="x" * 5000), "is not a valid folder name"),
    "a run above": (card(run=".."), "run '..' is not a valid folder name"),
    "megabytes of text": (card(model="x" * MAX_CARD_BYTES), "its card has 2,0"),
    "a bomb of brackets": (
        card_text(lambda text: text.replace('"training": {}', '"training": {"a": ' + "[" * 90_000
                                            + "]" * 90_000 + "}")),
        "it is nested too deeply",
    ),
    "many brackets": (
        card_text(lambda text: text.replace('"training": {}', '"training": {"a": ' + "[" * 90
                                            + "]" * 90 + "}")),
        "it is nested too deeply",
    ),
    "text that is no JSON": (card_text(lambda _: "no JSON"), "has no valid tltools card"),
    "the card of a run": (card(export=None), "has the card of a run"),
    "a self-test of another kind": (self_test(images=["R0lGODlh"]), "its self-test must have 1"),
    "a self-test of large images": (
        self_test(images=[
            "iVBORw0KGgoAAAANSUhEUgAAw1AAAMNQCAIAAAA="  # 50,000 x 50,000
        ]),
        "pixels",
    ),
    "a pickle": (pickled, "is not a TorchScript file"),
    "a pickle in an archive": (pickled_archive, "is not a TorchScript file"),
    "an archive without code": (without_code, "it has no code"),
    "an unpacking bomb": (unpacking_bomb, "its code unpacks to over"),
    "a card that is a bomb": (card_bomb, "it has two cards, or one of over"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_command_refuses_a_malicious_model_in_one_line(kit, images, name):
    make, message = CASES[name]
    path = make(kit)
    before = snapshot(kit.folder.parent)
    commands = {
        "inspect": ("inspect", path),
        "classify": ("classify", images, "--model", path, "--device", "cpu"),
        "bench": ("bench", path, "--data", images, "--device", "cpu"),
        "evaluate": ("evaluate", path, images, "--device", "cpu"),
    }
    for command, args in commands.items():
        ran = run_tltools(*args, cwd=kit.folder)
        assert ran.code == 1, (command, ran)
        assert ran.out == "", command
        # bench looks at the images first and says what it thinks of them.
        lines = [line for line in ran.err.splitlines() if not line.startswith("reading")]
        lines = lines if command != "bench" else lines[-1:]
        assert len(lines) == 1, (command, ran.err)
        assert lines[0].startswith(f"error: {path.name}"), (command, lines)
        assert message in lines[0], command
        assert len(lines[0]) < 1000
        assert lines[0].isprintable()
    assert snapshot(kit.folder.parent) == before  # nothing was run and nothing written


def snapshot(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# --------------------------------------------------------------------- TorchScript is code


class Marking(torch.nn.Module):
    """Makes a file when it is loaded, and another one when it is run."""

    mark: str
    made: torch.Tensor

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = str(mark)
        self.made = torch.zeros(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = torch.from_file(self.mark + "-run", shared=True, size=1)
        return images.to(torch.float32).mean(dim=(1, 2)) + made

    @torch.jit.export
    def __getstate__(self):
        return (self.mark, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.mark = state[0]
        self.training = state[1]
        self.made = torch.from_file(self.mark, shared=True, size=1)


@pytest.fixture
def marking(kit):
    folder = kit.folder / "exports" / "tiny"
    folder.mkdir(parents=True)
    path = folder / "tiny.fp32.pt"
    module = torch.jit.script(Marking(kit.folder / MARK))
    torch.jit.save(module, str(path), _extra_files={CARD_KEY: kit.make_card().to_json()})
    return path


def test_inspect_doctor_and_listing_never_run_torchscript(kit, marking):
    before = snapshot(kit.folder)
    for args in (["inspect", marking], ["doctor"]):
        assert run_tltools(*args, cwd=kit.folder).code == 0
    assert [one.path for one in current_and_earlier_exports(kit.folder / "exports")[0]] == [marking]
    with pytest.raises(ArtifactError, match="no ONNX export"):  # it looks at all of them
        best_export(kit.folder / "exports")
    assert snapshot(kit.folder) == before
    # It would have left one: the commands that run a model do run this one.
    load_predictor(marking, device="cpu")(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    assert {path.name for path in kit.folder.glob(MARK + "*")} == {MARK, MARK + "-run"}


def test_a_pickle_inside_torchscript_is_not_loaded(kit, images):
    path = pickle_with_code(kit)
    for command in (["inspect", path], ["classify", images, "--model", path, "--device", "cpu"]):
        ran = run_tltools(*command, cwd=kit.folder)
        assert ran.code == (0 if command[0] == "inspect" else 1)
    assert ran.err.startswith(f"error: {path.name} is not a TorchScript file")
    assert ran.err.count("\n") == 1
    assert not (kit.folder / MARK).exists()
    pickle.loads(pickle.dumps(Marks(kit.folder / MARK)))  # noqa: S301 - it would have left a mark
    assert (kit.folder / MARK).exists()


# ---------------------------------------------------------------------------- the ONNX reader


def test_the_reader_agrees_with_the_onnx_package_about_exports(cnn_exports):
    path = cnn_exports["onnx"].path
    model = onnx.load(path)
    found = read_onnx(path, key=CARD_KEY, max_entry_bytes=MAX_CARD_BYTES)
    entries = {one.key: one.value for one in model.metadata_props}
    assert found.entry == entries[CARD_KEY].encode()
    for ours, theirs in ((found.inputs, model.graph.input), (found.outputs, model.graph.output)):
        assert [one.name for one in ours] == [one.name for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            dims = other.type.tensor_type.shape.dim
            assert one.shape == tuple(None if dim.dim_param else dim.dim_value for dim in dims)
    assert (found.inputs[0].element, found.outputs[0].element) == ("uint8", "float")


@pytest.mark.parametrize("kind", ["float_data", "int32_data", "int64_data", "double_data"])
@pytest.mark.parametrize("missing", [0, 1])
def test_typed_tensor_values_are_counted(kit, kind, missing):
    """By their minimum size: up to four missing bytes per number may go undetected."""
    types = {"float_data": 1, "int32_data": 6, "int64_data": 7, "double_data": 11}
    model = kit.model()
    tensor = TensorProto(name="numbers", dims=[1 + missing * 8, 1], data_type=types[kind])
    getattr(tensor, kind).append(0)
    model.graph.initializer.append(tensor)
    path = kit.save(model)
    if missing:
        with pytest.raises(ArtifactError, match="tensor 'numbers' claims 9 x 1 elements"):
            read_card(path)
    else:
        assert read_card(path).run == "tiny"


def test_a_name_of_several_lines_is_told_in_one(kit):
    model = kit.model()
    model.graph.input[0].name = "ima\nges"
    with pytest.raises(ArtifactError, match=r"its input is uint8 'ima\\nges'\[\?, ") as raised:
        read_card(kit.save(model))
    assert "\n" not in str(raised.value)


def test_every_truncated_export_is_refused_or_harmless(kit):
    """A file cut between two fields is shorter, but not damaged."""
    whole = kit.good.read_bytes()
    path = kit.folder / "cut.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"is not an ONNX file|has no tltools card"):
            read_card(path)
