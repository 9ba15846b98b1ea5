"""Read and check an ONNX file before a runtime opens it.

An ONNX file is one protobuf message, in which each field starts with its number and its length or
value. The reader visits the fields that matter and skips the tensors' bytes. That takes
milliseconds and avoids the `onnx` package, whose import alone would double the start-up time of
`classify`. It rejects what exports never contain and an attacker could use: tensors in other files,
operators outside the ONNX standard, graphs within nodes, functions, and tensors that claim more
data than the file holds.

It does not limit what a graph of ordinary operators costs to compute: a few of them can request
more memory than any machine has.
"""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

MAX_FIELDS = 200_000
"""Maximum number of fields visited in a file; the int8 export of a VGG16 has 5,000."""
MAX_NAME_BYTES = 1_000
MAX_DIMS = 16
STANDARD_DOMAINS = ("", "ai.onnx")
CARELESS_OPS = frozenset(
    {"ConstantOfShape", "EyeLike", "Expand", "Range", "Tile", "RandomNormal", "RandomUniform"}
)
"""Operators that turn a few numbers into a tensor of any size; no model of tltools has them."""

_WINDOW = 8192
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRE_TYPES = (_VARINT, _FIXED64, _BYTES, _FIXED32)
_MAX_NUMBER = 2**29 - 1

# Field numbers in onnx.proto, by message.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 14, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_SEGMENT, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 3, 8, 9
_TENSOR_VALUES = (4, 5, 6, 7, 10, 11)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TYPE_ELEMENT, _TYPE_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 1, 2, 1, 1
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
"""Bits of an element by TensorProto.DataType. Strings (8) are missing: no model needs them."""
_TYPE_NAMES = {1: "float", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16"}

Dim = TypeVar("Dim", int, int | None)


class UnsafeOnnxError(ValueError):
    """A file is perhaps valid ONNX, but contains what exports never contain."""


class TensorType(NamedTuple):
    """Declaration of a graph's input or output."""

    name: str
    element: str
    """`uint8`, `float` and so on; `type N` for rare types."""
    shape: tuple[int | None, ...]
    """Sizes; None for any size."""

    def __str__(self) -> str:
        """Return it as `uint8 images[?, 224, 224, 3]`."""
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        name = self.name if self.name.isprintable() else ascii(self.name)
        return f"{self.element} {name}[{sizes}]"


class OnnxFile(NamedTuple):
    """Facts about an ONNX file, read without loading it."""

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    entry: bytes | None
    """Value of the requested key of `metadata_props`; None if it is missing."""


def read_onnx(path: Path, *, key: str, max_entry_bytes: int) -> OnnxFile:
    """Read and check an ONNX file.

    Args:
        path: The file.
        key: Key of `metadata_props` whose value to return.
        max_entry_bytes: Maximum size of that value, in bytes.

    Raises:
        OSError: If the file cannot be read.
        UnsafeOnnxError: If it contains what exports never contain.
        ValueError: If it is not ONNX or is damaged.
    """
    with path.open("rb", buffering=0) as file:
        walk = _Walk(file, path.stat().st_size, key.encode(), max_entry_bytes)
        walk.model()
    return OnnxFile(tuple(walk.inputs), tuple(walk.outputs), walk.entry)


class _Walk:
    """One pass over a file, from its first byte to its last."""

    def __init__(self, file: BinaryIO, size: int, key: bytes, max_entry_bytes: int) -> None:
        self.inputs: list[TensorType] = []
        self.outputs: list[TensorType] = []
        self.entry: bytes | None = None
        self._file = file
        self._size = size
        self._key = key
        self._max_entry_bytes = max_entry_bytes
        self._at = 0
        self._window = b""
        self._window_start = 0
        self._fields_left = MAX_FIELDS

    # ---------------------------------------------------------------------------- messages

    def model(self) -> None:
        """Visit the whole file."""
        num_graphs = 0
        for number, wire_type, value in self._fields(self._size):
            if number == _MODEL_GRAPH:
                num_graphs += 1
                self._graph(_end(wire_type, value))
            elif number == _MODEL_METADATA:
                self._metadata(_end(wire_type, value))
            elif number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
                raise UnsafeOnnxError("it has functions of its own, and exports have none")
        if num_graphs != 1:
            # protobuf would merge two graphs and run neither as it was checked.
            raise ValueError("it has no graph" if num_graphs == 0 else "it has two graphs")

    def _metadata(self, end: int) -> None:
        key, value = b"", b""
        for number, wire_type, stop in self._fields(end):
            if number == _ENTRY_KEY:
                key = self._bytes(_end(wire_type, stop), limit=MAX_NAME_BYTES, what="a key")
            elif number == _ENTRY_VALUE:
                # Values of other keys may have any length; they are not read.
                value = b""
                if key == self._key:
                    limit = self._max_entry_bytes
                    value = self._bytes(_end(wire_type, stop), limit=limit, what="its card")
        if key == self._key:
            if self.entry is not None:
                raise UnsafeOnnxError("it has two cards")
            self.entry = value

    def _graph(self, end: int) -> None:
        for number, wire_type, value in self._fields(end):
            if number == _GRAPH_NODE:
                self._node(_end(wire_type, value))
            elif number == _GRAPH_INITIALIZER:
                self._tensor(_end(wire_type, value))
            elif number == _GRAPH_INPUT:
                self.inputs.append(self._value(_end(wire_type, value)))
            elif number == _GRAPH_OUTPUT:
                self.outputs.append(self._value(_end(wire_type, value)))
            elif number == _GRAPH_SPARSE:
                raise UnsafeOnnxError("it has sparse tensors, and exports have none")

    def _node(self, end: int) -> None:
        op_type = ""
        for number, wire_type, value in self._fields(end):
            if number == _NODE_OP_TYPE:
                op_type = self._text(_end(wire_type, value))
            elif number == _NODE_ATTRIBUTE:
                self._attribute(_end(wire_type, value))
            elif number == _NODE_DOMAIN:
                domain = self._text(_end(wire_type, value))
                if domain not in STANDARD_DOMAINS:
                    raise UnsafeOnnxError(
                        f"it needs operators of {domain!r}, and exports use only those of the "
                        "ONNX standard"
                    )
        if op_type in CARELESS_OPS:
            raise UnsafeOnnxError(
                f"it has a node {op_type}, which can request any amount of memory"
            )

    def _attribute(self, end: int) -> None:
        for number, wire_type, value in self._fields(end):
            if number in _ATTRIBUTE_TENSORS:
                self._tensor(_end(wire_type, value))
            elif number in _ATTRIBUTE_GRAPHS:
                raise UnsafeOnnxError("it has graphs within nodes, and exports have none")
            elif number in _ATTRIBUTE_SPARSE:
                raise UnsafeOnnxError("it has sparse tensors, and exports have none")

    def _tensor(self, end: int) -> None:
        """Visit a tensor without its bytes, and check that it holds what it claims to hold."""
        dims: list[int] = []
        kind, name, num_raw, num_typed = 0, "", None, 0
        for number, wire_type, value in self._fields(end):
            if number == _TENSOR_DIMS:
                for size in self._integers(wire_type, value):
                    _append(dims, size)
            elif number == _TENSOR_TYPE:
                kind = _integer(wire_type, value)
            elif number == _TENSOR_NAME:
                name = self._text(_end(wire_type, value))
            elif number == _TENSOR_RAW:
                num_raw = _end(wire_type, value) - self._at
            elif number in _TENSOR_VALUES:
                num_typed += value - self._at if wire_type == _BYTES else 1
            elif number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
                raise UnsafeOnnxError(
                    "its tensors are in another file, and exports contain all of theirs: reading "
                    "a file that a model names is not safe"
                )
            elif number == _TENSOR_SEGMENT:
                raise UnsafeOnnxError("it has a tensor in segments, and exports have none")
        _check_size(name, dims, kind, num_raw, num_typed)

    def _value(self, end: int) -> TensorType:
        """Read the declaration of a graph's input or output."""
        name, kind = "", 0
        shape: list[int | None] = []
        for number, wire_type, value in self._fields(end):
            if number == _VALUE_NAME:
                name = self._text(_end(wire_type, value))
            elif number == _VALUE_TYPE:
                for type_number, type_wire, type_end in self._fields(_end(wire_type, value)):
                    if type_number == _TYPE_TENSOR:
                        kind, shape = self._tensor_type(_end(type_wire, type_end))
        return TensorType(name, _TYPE_NAMES.get(kind, f"type {kind}"), tuple(shape))

    def _tensor_type(self, end: int) -> tuple[int, list[int | None]]:
        kind = 0
        shape: list[int | None] = []
        for number, wire_type, value in self._fields(end):
            if number == _TYPE_ELEMENT:
                kind = _integer(wire_type, value)
            elif number == _TYPE_SHAPE:
                for dim_number, dim_wire, dim_end in self._fields(_end(wire_type, value)):
                    if dim_number == _SHAPE_DIM:
                        _append(shape, self._dim(_end(dim_wire, dim_end)))
        return kind, shape

    def _dim(self, end: int) -> int | None:
        size = None
        for number, wire_type, value in self._fields(end):
            if number == _DIM_VALUE:
                size = _integer(wire_type, value)
        return size

    # ------------------------------------------------------------------------------- fields

    def _fields(self, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield each field's number, wire type and value, up to `end`.

        The value of a field with a length is the offset of its end, and `self._at` is the offset
        of its start. What the caller leaves unread is skipped.
        """
        while self._at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise UnsafeOnnxError(
                    f"it has more than {MAX_FIELDS:,} parts, and exports have far fewer"
                )
            tag = self._varint()
            number, wire_type = tag >> 3, tag & 7
            if wire_type not in _WIRE_TYPES or not 0 < number <= _MAX_NUMBER:
                raise ValueError(f"field {number} has the unknown wire type {wire_type}")
            if wire_type == _VARINT:
                value = self._varint()
                stop = self._at
            else:
                length = {_FIXED64: 8, _FIXED32: 4}.get(wire_type)
                length = self._varint() if length is None else length
                value = stop = self._at + length
            if stop > end:
                raise ValueError(f"field {number} extends beyond its message")
            yield number, wire_type, value
            self._at = stop

    def _integers(self, wire_type: int, value: int) -> Iterator[int]:
        """Yield the integers of a repeated field, packed or not."""
        if wire_type == _BYTES:
            while self._at < value:
                yield _signed(self._varint())
        else:
            yield _integer(wire_type, value)

    def _text(self, end: int) -> str:
        found = self._bytes(end, limit=MAX_NAME_BYTES, what="a name")
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise ValueError("a name is not UTF-8") from None

    def _bytes(self, end: int, *, limit: int, what: str) -> bytes:
        length = end - self._at
        if length > limit:
            raise UnsafeOnnxError(f"{what} has {length:,} bytes, more than {limit:,}")
        self._file.seek(self._at)
        found = self._file.read(length)
        if len(found) != length:
            raise ValueError("it shrank while it was being read")
        return found

    def _varint(self) -> int:
        """Read an integer of seven bits per byte, lowest first, up to a byte below 128."""
        value = 0
        for shift in range(0, 70, 7):
            index = self._at - self._window_start
            if not 0 <= index < len(self._window):
                self._file.seek(self._at)
                self._window, self._window_start, index = self._file.read(_WINDOW), self._at, 0
                if not self._window:
                    raise ValueError("the file ends within a number")
            byte = self._window[index]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number has more than ten bytes")


def _append(dims: list[Dim], size: Dim) -> None:
    if len(dims) == MAX_DIMS:
        raise ValueError(f"a tensor has more than {MAX_DIMS} dimensions")
    dims.append(size)


def _end(wire_type: int, value: int) -> int:
    """Return the offset at which a field with a length ends."""
    if wire_type != _BYTES:
        raise ValueError("a field has a different wire type than in onnx.proto")
    return value


def _integer(wire_type: int, value: int) -> int:
    if wire_type != _VARINT:
        raise ValueError("a field has a different wire type than in onnx.proto")
    return _signed(value)


def _signed(value: int) -> int:
    """Convert a varint to the int64 that it encodes."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _check_size(name: str, dims: list[int], kind: int, num_raw: int | None, num_typed: int) -> None:
    """Raise ValueError unless a tensor holds as many elements as its dimensions say."""
    bits = _BITS.get(kind)
    if bits is None:
        raise ValueError(f"tensor {name!r} has the unknown type {kind}")
    if any(size < 0 for size in dims):
        raise ValueError(f"tensor {name!r} has a negative size")
    needed = -(-prod(dims) * bits // 8)
    if num_raw is not None:
        fits = num_raw == needed and num_typed == 0
    else:  # at least one byte for each number, which may hold several small elements
        fits = prod(dims) <= num_typed * max(1, 8 // bits)
    if not fits:
        claimed = " x ".join(map(str, dims)) or "1"
        raise UnsafeOnnxError(
            f"tensor {name!r} claims {claimed} elements of {bits} bits, but the file holds "
            f"{num_typed if num_raw is None else num_raw:,} bytes for it"
        )


def signature_problem(
    found: OnnxFile,
    *,
    wanted_input: TensorType,
    wanted_output: TensorType,
    further_outputs: Sequence[Sequence[TensorType]],
) -> str | None:
    """Return how a graph's inputs and outputs differ from the expected ones; None if they match.

    Args:
        found: Facts about the file.
        wanted_input: The only input.
        wanted_output: The first output.
        further_outputs: The outputs that may follow, none, the first, or more of them in order:
            the declarations that each may have.
    """
    outputs, further = found.outputs, found.outputs[1:]
    if len(further) <= len(further_outputs) and all(
        one in allowed for one, allowed in zip(further, further_outputs, strict=False)
    ):
        outputs = outputs[:1]
    for kind, values, wanted in (
        ("input", found.inputs, wanted_input),
        ("output", outputs, wanted_output),
    ):
        fixed = values[0].shape[:1] if len(values) == 1 else ()
        if fixed and fixed[0] is not None and values[0].shape[1:] == wanted.shape[1:]:
            return f"its {kind} has a fixed batch size of {fixed[0]}"
        if tuple(values) != (wanted,):
            names = ", ".join(map(str, values)) or "none"
            return f"its {kind} is {names}, but by its card it should be {wanted}"
    return None
