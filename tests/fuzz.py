"""Feed mutated images, tables, lists, archives, predictions, cards and answers of web servers to
tltools, for minutes.

    python tests/fuzz.py MINUTES [FOLDER] [SEED] [KIND]

The suite's `test_fuzz.py` tries the same examples each time; this tries others for as long as one
likes. One process reads the mutations; its parent watches its memory and how long it takes for
each. What raises anything but an error of tltools, or exceeds a limit, is kept in FOLDER (`fuzz` by
default) and described in `findings.txt`; the exit code is 1 if there is any.
"""

import csv
import io
import json
import os
import random
import signal
import struct
import sys
import tarfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import image_grid
from conftest import make_card
from fuzz_answers import answer_seeds, read_as_answers

from tltools.card import Preprocessing, card_from_json
from tltools.classify import list_images
from tltools.classify.output_formats import OUTPUT_FORMATS
from tltools.data.dataset import load_dataset
from tltools.data.image_formats import MAX_BYTES
from tltools.data.image_ref import Content, ImageRef
from tltools.data.images import load_image
from tltools.errors import TltoolsError

RULES = [Preprocessing(size=64, resize="squash"), Preprocessing(size=64, resize="crop")]
MAX_SECONDS = 30
"""The longest that one input may take; a job's `image_timeout_s` is as long."""
MAX_RSS = MAX_BYTES + 2**29
"""Most memory of the process that reads, in bytes: one image, and the program itself."""
MAX_ROWS = 1000
_NUMBERS = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff", b"\x80\0\0\0", b"\0\1")
_WORDS = (
    *(b"\0", b"\n", b"\r\n", b'"', b",", b";", b"\t", b"../", b"/", b"\\", b"#", b"{", b"]", b"-1"),
    *(b"nan", b"1e999", b"sep=;\n", b"\xef\xbb\xbf", b"\xff\xfe", "é".encode()),
)


@dataclass(frozen=True)
class Target:
    """A kind of input: files to start from, and what reads them."""

    name: str
    seeds: list[tuple[str, bytes]]
    """Suffixes and contents."""
    read: Callable[[Path, bytes], object]


# ---------------------------------------------------------------------------------- reading


def read_as_image(_path: Path, data: bytes) -> None:
    for rules in RULES:
        load_image(ImageRef("a", Content.of(data)), rules)


def read_as_data(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    load_dataset(path, purpose="inspect")


def read_as_input(path: Path, data: bytes) -> None:
    """List the images of a list or an archive, and decode them."""
    path.write_bytes(data)
    for image in islice(list_images([path]), MAX_ROWS):
        with suppress(TltoolsError):  # its row has the error
            load_image(image, RULES[0])


def read_as_both(path: Path, data: bytes) -> None:
    """Read an archive as a job's input, and as labeled data."""
    with suppress(TltoolsError):
        read_as_input(path, data)
    read_as_data(path, data)


def read_as_predictions(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    form = next(one for one in OUTPUT_FORMATS if path.suffix in one.suffixes)
    _, rows = form.read(path)
    for _ in islice(rows, MAX_ROWS):
        pass


def read_as_card(_path: Path, data: bytes) -> None:
    card_from_json(data, where="a.onnx")


# ------------------------------------------------------------------------------------ seeds


def targets(folder: Path) -> list[Target]:
    """Return what to feed; the images that tables and lists name are written to the folder."""
    images = [(".img", case.data) for case in image_grid.cases() if len(case.data) < 20_000]
    pixels = image_grid.saved(image_grid.Image.fromarray(image_grid.SMOOTH), "JPEG")
    names = [f"{kind}/{number}.jpg" for kind in ("cat", "dog") for number in range(3)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pixels)
    tables, lists = _tables(names), _lists(names)
    return [
        Target("image", images, read_as_image),
        Target("table", [(".csv", data) for data in tables], read_as_data),
        Target("list", [(".txt", data) for data in lists], read_as_input),
        Target("archive", list(_archives(names, pixels)), read_as_both),
        Target("predictions", list(_predictions(names)), read_as_predictions),
        Target("card", [(".json", data) for data in _cards()], read_as_card),
        Target("answer", list(answer_seeds(pixels)), read_as_answers),
    ]


def _tables(names: list[str]) -> Iterator[bytes]:
    for delimiter, encoding in ((",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")):
        for header in ("image label", "id split cat dog", "label set file"):
            columns = header.split()
            text = io.StringIO()
            writer = csv.writer(text, delimiter=delimiter)
            writer.writerow(columns)
            for number, name in enumerate(names):
                kind, split = name.split("/")[0], ("train", "val")[number % 2]
                both = (str(int(kind == "cat")), str(int(kind == "dog")))
                rows = {2: (name, kind), 4: (name, split, *both), 3: (kind, split, name)}
                writer.writerow(rows[len(columns)])
            yield text.getvalue().encode(encoding)


def _lists(names: list[str]) -> Iterator[bytes]:
    lines = ["# images", *names, f'"{names[0]}" ', "cat\\1.jpg", "gone.jpg"]
    for encoding, end in (
        ("utf-8", "\n"),
        ("utf-8-sig", "\r\n"),
        ("utf-16", "\n"),
        ("latin-1", "\r"),
    ):
        yield end.join(lines).encode(encoding)


def _archives(names: list[str], pixels: bytes) -> Iterator[tuple[str, bytes]]:
    for method in ("", "gz", "bz2", "xz"):
        suffix, mode = f".tar.{method}".rstrip("."), f"w:{method}"
        for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode=mode, format=kind) as tar:
                for name in (*names, "é" * 60 + ".jpg"):
                    member = tarfile.TarInfo(name)
                    member.size = len(pixels)
                    tar.addfile(member, io.BytesIO(pixels))
            yield suffix, file.getvalue()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name in names:
                archive.writestr(name, pixels)
        yield ".zip", file.getvalue()


def _predictions(names: list[str]) -> Iterator[tuple[str, bytes]]:
    import numpy as np

    from tltools.classify.predict import Prediction

    classes = ("cat", "dog")
    rows = [Prediction(name, "cat", 0.75, np.array([0.75, 0.25]), None) for name in names]
    rows.append(Prediction("gone.jpg", None, None, None, "no such file"))
    for form in OUTPUT_FORMATS:
        codec = form.codec(classes)
        data = codec.header + b"".join(map(codec.encode, rows))
        if form.convert is not None:
            path = Path("seed" + form.suffixes[0])
            form.convert(io.BytesIO(data), path, classes)
            data = path.read_bytes()
        yield form.suffixes[0], data


def _cards() -> Iterator[bytes]:
    card = make_card.__wrapped__()()
    yield card.to_json().encode()
    yield json.dumps(json.loads(card.to_json()), indent=1).encode()


# -------------------------------------------------------------------------------- mutations


def mutated(data: bytes, others: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """Change a file in a few places; the checksums of a PNG are made right again, mostly."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        reach = len(out) if rng.random() < 0.5 else min(len(out), 200)  # headers matter most
        at = rng.randrange(reach + 1)
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            new = rng.choice(_NUMBERS)
            out[at : at + len(new)] = new
        elif kind == 2:
            out[at:at] = rng.choice(_WORDS + _NUMBERS)
        elif kind == 3:
            del out[at : at + rng.choice((1, 4, 100))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((4, 64, 1000))] * rng.choice((1, 3, 50))
        elif kind == 5:
            other = rng.choice(others)[1]
            start = rng.randrange(len(other) + 1)
            out[at : at + 64] = other[start : start + 64]
        elif rng.random() < 0.3:
            del out[at:]
    return _with_checksums(bytes(out)) if rng.random() < 0.8 else bytes(out)


def _with_checksums(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG"):
        return data
    out = bytearray(data)
    at = 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4])
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


# --------------------------------------------------------------------- the process that reads


def read_mutations(kinds: list[Target], folder: Path, seed: int, start: int) -> None:
    """Read mutations for ever, in the current folder; `now` has the one being read."""
    counts: Counter[str] = Counter()
    for number in range(start, sys.maxsize):
        rng = random.Random(f"{seed} {number}")  # noqa: S311
        target = kinds[number % len(kinds)]
        suffix, data = rng.choice(target.seeds)
        data = mutated(data, target.seeds, rng)
        path = Path(f"input{suffix}")
        Path("now").write_bytes(f"{number} {target.name} {suffix}\n".encode() + data)
        try:
            target.read(path, data)
            counts["read"] += 1
        except TltoolsError as error:
            counts["refused"] += 1
            if "\n" in str(error) or not str(error):
                record(folder, f"{number}-{target.name}{suffix}", data, f"not one line: {error!r}")
        except Exception:  # which is what this is looking for
            record(folder, f"{number}-{target.name}{suffix}", data, traceback.format_exc())
        if number % 100 == 0:
            Path("counts").write_text(f"{number} {dict(counts)}")


def record(folder: Path, name: str, data: bytes, what: str) -> None:
    """Keep an input that was a finding, and say why."""
    (folder / name).write_bytes(data)
    with (folder / "findings.txt").open("a") as file:
        file.write(f"== {name}\n{what.strip()}\n")


# ------------------------------------------------------------------------------- the watchdog


def watch(child: int, folder: Path, until: float) -> str:
    """Return what stopped the process that reads: an excess, its death, or nothing at the end."""
    last, since = b"", time.monotonic()
    while time.monotonic() < until:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"it died: {os.waitstatus_to_exitcode(status)}"
        with suppress(OSError):
            head = Path("now").read_bytes().partition(b"\n")[0]
            if head != last:
                last, since = head, time.monotonic()
        rss = int(Path(f"/proc/{child}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        watch.most = max(watch.most, rss)
        reason = f"{rss:,} bytes of memory" if rss > MAX_RSS else ""
        if not reason and time.monotonic() - since > MAX_SECONDS:
            reason = f"more than {MAX_SECONDS} s"
        if reason:
            _stop(child)
            return reason
    _stop(child)
    return ""


watch.most = 0


def _stop(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(minutes: float, folder: Path = Path("fuzz"), seed: int = 0, kind: str = "") -> int:
    """Fuzz for so long, with one kind of input or all; print what was done."""
    os.nice(10)
    folder = folder.absolute()
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    os.chdir(work)
    until = time.monotonic() + 60 * minutes
    kinds = [target for target in targets(work) if kind in ("", target.name)]
    number, excesses = 0, 0
    while time.monotonic() < until:
        child = os.fork()
        if not child:
            read_mutations(kinds, folder, seed, number)
        reason = watch(child, folder, until)
        head, _, data = Path("now").read_bytes().partition(b"\n")
        if not head:  # the child was ended while it wrote the file
            continue
        place, name, suffix = head.decode().split()
        number = int(place) + 1
        if reason:
            excesses += 1
            record(folder, f"{place}-{name}{suffix}", data, reason)
        print(f"{number:,} inputs, at most {watch.most / 2**20:,.0f} MiB", reason, flush=True)
    found = folder / "findings.txt"
    num = found.read_text().count("== ") if found.exists() else 0
    counts = Path("counts").read_text()
    print(f"{number:,} inputs, {num} findings ({excesses} over a limit); {counts}")
    return 1 if num else 0


if __name__ == "__main__":
    sys.exit(
        main(
            float(sys.argv[1]), *map(Path, sys.argv[2:3]), *map(int, sys.argv[3:4]), *sys.argv[4:5]
        )
    )
