"""URLs: images, data and results on object stores and servers, tested with real servers."""

import contextlib
import csv
import errno
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from conftest import COLORS, save_image

from tltools.classify.inputs import list_images
from tltools.data import remote, remote_images
from tltools.data.image_ref import UNKNOWN_BYTES, Content, ImageRef, RemoteObject
from tltools.data.location import Url, is_url, location
from tltools.data.remote_images import fetch_ahead
from tltools.errors import ConfigError, UnreachableError

NUM_IMAGES = 240
FAIL_EVERY = 20
CUT_BYTES = 400_000
SECRET = "SECRET"  # noqa: S105 - what to look for


@dataclass(frozen=True)
class Place:
    """A server with the images on it, and what a command needs to reach it."""

    url: str
    """Of a folder whose content is that of `root`."""
    env: dict[str, str]
    put: Callable[[Path, str], None]
    """Put a file there under a name."""
    get: Callable[[str], bytes | None]
    """Return a file from there."""
    remove: Callable[[str], None]
    num_failed: Callable[[], int]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def run(place: Place | None, *args: object, cwd: Path, env: dict[str, str] | None = None) -> Done:
    """Run a command in a process of its own: fsspec has threads, and credentials are its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tltools", *map(str, args)],
        cwd=cwd,
        env={**os.environ, **(place.env if place else {}), **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders by their color, some of it not to be listed."""
    root = tmp_path_factory.mktemp("remote") / "photos"
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for number in range(NUM_IMAGES // len(COLORS)):
            save_image(root / name / f"{number:03d} ä.png", color, rng)
    save_image(root / "ü#1 %41?.png", COLORS["red"], rng)
    (root / ".hidden").mkdir()
    save_image(root / ".hidden" / "x.png", COLORS["red"], rng)
    (root / "notes.md").write_text("no image")
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    return root


def put_all(root: Path, put: Callable[[Path, str], None]) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            put(path, path.relative_to(root).as_posix())


def s3_client(env: dict[str, str]) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )


def s3_place(port: int, root: Path) -> Place:
    env = {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    client = s3_client(env)
    client.create_bucket(Bucket="bucket")

    def put(path: Path, name: str) -> None:
        client.upload_file(str(path), "bucket", f"photos/{name}")

    def get(name: str) -> bytes | None:
        try:
            return client.get_object(Bucket="bucket", Key=f"photos/{name}")["Body"].read()
        except client.exceptions.NoSuchKey:
            return None

    def num_failed() -> int:
        with urllib.request.urlopen(f"{env['AWS_ENDPOINT_URL']}{servers.FAILED}") as answer:  # noqa: S310
            return int(answer.read())

    put_all(root, put)
    return Place(
        "s3://bucket/photos",
        env,
        put,
        get,
        lambda name: client.delete_object(Bucket="bucket", Key=f"photos/{name}"),
        num_failed,
    )


def sftp_place(port: int, home: Path, root: Path, number: int) -> Place:
    folder = home / f"photos-{number}"
    shutil.copytree(root, folder)

    def get(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.exists() else None

    def remove(name: str) -> None:
        (folder / name).unlink()
        with contextlib.suppress(OSError):
            (folder / name).parent.rmdir()

    return Place(
        f"sftp://127.0.0.1:{port}{folder}",
        {"HOME": str(home)},
        lambda path, name: (folder / name).write_bytes(path.read_bytes()) and None,
        get,
        remove,
        lambda: 0,
    )


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    if servers.find_sshd() is None:
        pytest.skip("needs OpenSSH's server: apt-get install openssh-server")
    home = tmp_path_factory.mktemp("ssh")
    with servers.sshd(home) as port:
        yield home, port


@pytest.fixture(scope="module", params=["s3", pytest.param("sftp", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, root: Path) -> Iterator[Place]:
    """A server that works."""
    if request.param == "s3":
        with servers.running("s3") as port:
            yield s3_place(port, root)
    else:
        home, port = request.getfixturevalue("sshd")
        yield sftp_place(port, home, root, 0)


@pytest.fixture(scope="module", params=["s3", pytest.param("sftp", marks=pytest.mark.slow)])
def failing(request: pytest.FixtureRequest, root: Path) -> Iterator[Place]:
    """A server that fails one request in twenty, or whose connections are cut again and again."""
    if request.param == "s3":
        with servers.running("s3", "--fail-every", FAIL_EVERY) as port:
            yield s3_place(port, root)
        return
    home, target = request.getfixturevalue("sshd")
    with servers.running("cut", "--target", target, "--bytes", CUT_BYTES) as port:
        servers.trust(home, port)
        yield sftp_place(port, home, root, 1)


@pytest.fixture(scope="module")
def rows(root: Path, onnx_path: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What classifying the folder itself gives."""
    folder = tmp_path_factory.mktemp("rows")
    done = run(None, "classify", root, "--model", onnx_path, "-o", "rows.csv", cwd=folder)
    assert done.code == 0, done.err
    rows = (folder / "rows.csv").read_bytes()
    assert rows.count(b"\n") == NUM_IMAGES + 3  # the header, a broken one, and one at the top
    return rows


def by_name(rows: bytes) -> dict[str, list[str]]:
    return {row[0]: row for row in csv.reader(rows.decode().splitlines())}


# ---------------------------------------------------------------------------------- classify


def test_remote_rows_equal_those_of_the_folder(place, rows, onnx_path, tmp_path):
    done = run(place, "classify", place.url, "--model", onnx_path, "-o", "a.csv", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "a.csv").read_bytes() == rows


def test_a_server_that_fails_costs_no_row(failing, rows, onnx_path, tmp_path):
    before = failing.num_failed()
    done = run(failing, "classify", failing.url, "--model", onnx_path, "-o", "a.csv", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "a.csv").read_bytes() == rows
    assert "Traceback" not in done.err
    if failing.url.startswith("s3"):
        assert failing.num_failed() - before >= NUM_IMAGES // FAIL_EVERY


def pack(root: Path, path: Path) -> Path:
    names = sorted(one.relative_to(root).as_posix() for one in root.rglob("*.*") if one.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(root / name, name)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            for name in names:
                archive.add(root / name, name)
    return path


@pytest.mark.parametrize("suffix", ["tar", "tgz", "zip"])
def test_remote_archives_are_read_in_place(place, suffix, root, rows, onnx_path, tmp_path):
    archive = pack(root, tmp_path / f"packed.{suffix}")
    place.put(archive, archive.name)
    archive.unlink()
    url = f"{place.url}/packed.{suffix}"
    done = run(place, "classify", url, "--model", onnx_path, "-o", "a.csv", cwd=tmp_path)
    place.remove(f"packed.{suffix}")
    assert done.code == 0, done.err
    assert by_name((tmp_path / "a.csv").read_bytes()) == by_name(rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_an_archive_on_a_failing_server_loses_no_row(failing, root, rows, onnx_path, tmp_path):
    archive = pack(root, tmp_path / "packed.zip")
    failing.put(archive, archive.name)
    url = f"{failing.url}/packed.zip"
    done = run(failing, "classify", url, "--model", onnx_path, "-o", "a.csv", cwd=tmp_path)
    failing.remove(archive.name)
    assert done.code == 0, done.err
    assert by_name((tmp_path / "a.csv").read_bytes()) == by_name(rows)


def test_lists_and_single_images_can_be_remote(place, onnx_path, tmp_path):
    (tmp_path / "list.txt").write_text("red/000 ä.png\nred/missing.png\n", encoding="utf-8")
    place.put(tmp_path / "list.txt", "list.txt")
    (tmp_path / "local.txt").write_text(f"{place.url}/green/001 ä.png\n", encoding="utf-8")
    inputs = (f"{place.url}/list.txt", "local.txt", f"{place.url}/blue/002 ä.png")
    done = run(place, "classify", *inputs, "--model", onnx_path, "-o", "a.csv", cwd=tmp_path)
    place.remove("list.txt")
    assert done.code == 0, done.err
    found = list(csv.reader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))[1:]
    assert [(row[0], row[1]) for row in found] == [
        ("red/000 ä.png", "red"),
        ("red/missing.png", ""),
        (f"{place.url}/green/001 ä.png", "green"),
        (f"{place.url}/blue/002 ä.png", "blue"),
    ]
    assert "missing.png: no such file" in found[1][-1]


def test_files_of_a_list_are_not_read_beyond_a_limit(place, monkeypatch):
    monkeypatch.setattr(remote_images, "MAX_UNSIZED", 1000)
    monkeypatch.setattr(remote_images, "MAX_FILE_BYTES", UNKNOWN_BYTES)
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    sizes = {"empty": 0, "small": 1000, "large": UNKNOWN_BYTES, "huge": UNKNOWN_BYTES + 1}
    with contextlib.ExitStack() as cleanup:
        path = Path(cleanup.enter_context(tempfile.TemporaryDirectory())) / "file"
        for name, size in sizes.items():
            path.write_bytes(bytes(size))
            place.put(path, f"size-{name}.png")
            cleanup.callback(place.remove, f"size-{name}.png")
        remotes = remote_images.Remotes()
        images = [remotes.image(name, f"{place.url}/size-{name}.png") for name in sizes]
        fetched = [image.place for image in fetch_ahead(images)]
        *places, huge = [one for one in fetched if isinstance(one, RemoteObject)]
        assert [len(one.read()) for one in places] == [0, 1000, UNKNOWN_BYTES]
        with pytest.raises(OSError, match="2,097,153 bytes, more than 2,097,152"):
            huge.read()


def test_a_missing_remote_path_is_a_one_line_error(place, onnx_path, tmp_path):
    for name in ("nothing", "nothing.tar", "nothing.txt", "nothing.png"):
        done = run(place, "classify", f"{place.url}/{name}", "--model", onnx_path, cwd=tmp_path)
        assert done.code == 1, (name, done.err)
        assert done.err.count("\n") == 1
        assert place.url in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_job_resumes_after_its_server_was_down(root, rows, onnx_path, tmp_path):
    with servers.running("s3", "--end-after", NUM_IMAGES // 2) as port:
        gone = s3_place(port, root)
        command = ("classify", gone.url, "--model", onnx_path, "-o", "a.csv")
        done = run(gone, *command, cwd=tmp_path, env={"AWS_MAX_ATTEMPTS": "1"})
    assert done.code == 1
    assert "rows are kept in a.csv.part" in done.err
    assert "cannot reach s3://bucket/photos" in done.err.splitlines()[-1]
    assert 0 < (tmp_path / "a.csv.part").read_bytes().count(b"\n") < NUM_IMAGES
    with servers.running("s3") as port:
        back = s3_place(port, root)
        done = run(back, *command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "Resuming after" in done.err
    assert (tmp_path / "a.csv").read_bytes() == rows


@pytest.mark.slow
def test_a_cluster_reads_remote_images(place, rows, onnx_path, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]>=2.60'")
    command = ("classify", place.url, "--model", onnx_path, "--engine", "ray", "-o", "parts")
    options = ("--part-format", "csv", "--part-size", "64", "--workers", "1")
    done = run(place, *command, *options, cwd=tmp_path)
    assert done.code == 0, done.err
    parts = [
        path.read_bytes().split(b"\n", 1) for path in sorted((tmp_path / "parts").glob("*.csv"))
    ]
    assert len(parts) == 4
    assert parts[0][0] + b"\n" + b"".join(content for _, content in parts) == rows


def test_a_cluster_writes_to_a_folder(root, onnx_path, tmp_path):
    command = ("classify", root, "--model", onnx_path, "--engine", "ray", "-o", "s3://bucket/parts")
    done = run(None, *command, cwd=tmp_path)
    assert done.code == 2
    assert "name a folder on a shared file system" in done.err


# ------------------------------------------------------------------------------------ output


def test_an_output_is_uploaded_when_it_is_complete(place, rows, onnx_path, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = ("classify", place.url, "--model", onnx_path, "-o", f"{place.url}/out/rows.csv")
    done = run(place, *command, cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert place.get("out/rows.csv") == rows
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    again = run(place, *command, cwd=tmp_path, env=env)
    assert again.code == 2
    assert f"{place.url}/out/rows.csv exists" in again.err

    place.put(Path(__file__), "out/rows.csv")
    anew = run(place, *command, "--overwrite", cwd=tmp_path, env=env)
    assert anew.code == 0, anew.err
    assert place.get("out/rows.csv") == rows
    place.remove("out/rows.csv")


def test_an_output_that_cannot_be_uploaded_is_kept(root, rows, onnx_path, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = ("classify", root, "--model", onnx_path, "-o")
    with servers.running("s3") as port:
        there = s3_place(port, root)
        done = run(there, *command, "s3://later/rows.jsonl", cwd=tmp_path, env=env)
        assert done.code == 1
        assert "s3://later/rows.jsonl" in done.err
        assert f"{NUM_IMAGES + 2} complete rows are kept" in done.err
        s3_client(there.env).create_bucket(Bucket="later")
        again = run(there, *command, "s3://later/rows.jsonl", cwd=tmp_path, env=env)
    assert again.code == 0, again.err
    assert f"Resuming after {NUM_IMAGES + 2} rows" in again.err


def limited_python(folder: Path, *, num_bytes: int) -> Path:
    """Write a Python whose files cannot become larger than this."""
    script = folder / "limited"
    script.write_text(
        f"#!{sys.executable}\nimport os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    script.chmod(0o755)
    return script


def test_remote_shards_are_merged(place, rows, onnx_path, tmp_path, monkeypatch):
    for index in (1, 2):
        done = run(
            place,
            *("classify", place.url, "--model", onnx_path, "--shard", f"{index}/2"),
            *("-o", f"{place.url}/out/{index}.csv"),
            cwd=tmp_path,
        )
        assert done.code == 0, done.err
    shards = [f"{place.url}/out/{index}.csv" for index in (1, 2)]
    missing = run(place, "merge", shards[1], "-o", "a.csv", cwd=tmp_path)
    assert missing.code == 1
    assert "1/2" in missing.err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(limited_python(tmp_path, num_bytes=500)))
        full = run(place, "merge", *shards, "-o", "a.csv", cwd=tmp_path)
    assert full.code == 1
    assert re.search(rf"^error: cannot copy {shards[0]} to /\S+: file too large; free", full.err)
    done = run(place, "merge", *shards, "-o", "a.csv", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "a.csv").read_bytes() == rows
    for name in ("1.csv", "1.csv.shard.json", "2.csv", "2.csv.shard.json"):
        place.remove(f"out/{name}")


@pytest.mark.parametrize("url", ["https://example.org/a.csv", "s3://bucket/a.txt", "s3://bucket"])
def test_impossible_remote_outputs_are_refused(url, root, onnx_path, tmp_path):
    done = run(None, "classify", root, "--model", onnx_path, "-o", url, cwd=tmp_path)
    assert done.code == 2
    assert "--output" in done.err
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- data


def test_remote_data_is_fetched_once(place, root, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def inspect(data: object) -> Done:
        done = run(place, "inspect", data, "--json", cwd=tmp_path, env=env)
        assert done.code in (0, 1), done.err
        return done

    assert f"(0 cached, {NUM_IMAGES + 2} to download)" in inspect(place.url).err
    assert f"({NUM_IMAGES + 2} cached, 0 to download)" in inspect(place.url).err
    place.put(root / "red" / "000 ä.png", "red/001 ä.png")
    place.put(root / "red" / "000 ä.png", "red/new.png")
    place.remove("red/broken.jpg")
    done = inspect(place.url)
    assert f"({NUM_IMAGES} cached, 2 to download)" in done.err
    (folder,) = (tmp_path / "cache" / "tltools" / "data").glob("*/photos*")
    assert (folder / "red" / "new.png").read_bytes() == (root / "red" / "000 ä.png").read_bytes()
    assert not (folder / "red" / "broken.jpg").exists()
    place.remove("red/new.png")
    place.put(root / "red" / "001 ä.png", "red/001 ä.png")
    place.put(root / "red" / "broken.jpg", "red/broken.jpg")


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_data_in_an_archive_is_fetched_and_unpacked_once(place, suffix, root, tmp_path):
    archive = pack(root, tmp_path / f"packed.{suffix}")
    place.put(archive, archive.name)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    url = f"{place.url}/{archive.name}"
    first, again = (run(place, "inspect", url, "--json", cwd=tmp_path, env=env) for _ in range(2))
    place.remove(archive.name)
    assert f"Data: {url}, downloaded to" in first.err
    assert "downloaded to" not in again.err
    assert first.out == again.out
    (folder,) = (tmp_path / "cache" / "tltools" / "data").glob("*/packed")
    assert (folder / "red" / "000 ä.png").read_bytes() == (root / "red" / "000 ä.png").read_bytes()
    assert not list(folder.parent.glob(archive.name))


def test_a_model_is_evaluated_on_remote_data(place, onnx_path, tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = ("evaluate", onnx_path, place.url, "--skip-bad", "--json")
    done = run(place, *command, cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert '"accuracy": {\n    "value": 1.0' in done.out


# ----------------------------------------------------------------------------------- secrets


def test_credentials_are_neither_printed_nor_kept(root, onnx_path, tmp_path):
    with servers.running("s3") as port:
        there = s3_place(port, root)
        env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        url = f"{there.env['AWS_ENDPOINT_URL']}/bucket/photos/red/000%20%C3%A4.png"
        signed = f"{url}?X-Amz-Signature=SECRET-SIGNATURE"
        (tmp_path / "list.txt").write_text(signed + "\n")
        for inputs in (signed, "list.txt", there.url):
            done = run(
                there,
                *("classify", inputs, "--model", onnx_path, "-o", "a.csv", "--overwrite", "-v"),
                cwd=tmp_path,
                env=env,
            )
            assert done.code == 0, done.err
            assert "SECRET" not in done.err
    (tmp_path / "list.txt").unlink()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


def test_passwords_in_urls_are_refused():
    with pytest.raises(ConfigError, match="contains a password") as raised:
        location("sftp://me:SECRET@host/photos")
    assert "SECRET" not in str(raised.value)


def test_an_unknown_host_key_is_refused(sshd, root, onnx_path, tmp_path):
    home, port = sshd
    stranger = tmp_path / "home"
    shutil.copytree(home / ".ssh", stranger / ".ssh")
    (stranger / ".ssh" / "known_hosts").unlink()
    url = f"sftp://127.0.0.1:{port}{root}"
    done = run(
        None,
        *("classify", url, "--model", onnx_path, "-o", "a.csv"),
        cwd=tmp_path,
        env={"HOME": str(stranger)},
    )
    assert done.code == 1
    assert "host key is not trusted" in done.err.lower()


# ------------------------------------------------------------------------------------ pieces


def test_urls_and_paths_are_distinguished():
    assert location("a/b") == Path("a/b")
    assert location("file:///a/b") == Path("/a/b")
    assert location("s3://b/k") == Url("s3://b/k")
    assert is_url("S3://b/k")
    assert not is_url("a/://b")
    assert not is_url("what://b")
    for text in ("what://b", "zip://a::s3://b/k"):
        with pytest.raises(ConfigError, match="is not a protocol"):
            location(text)
    url = Url("https://host/a/b.tar?sig=1")
    assert (str(url), url.name, url.suffix) == ("https://host/a/b.tar", "b.tar", ".tar")
    assert url.joined("c").text == "https://host/a/b.tar/c?sig=1"
    assert Url("s3://b/what?.png").name == "what?.png"
    assert Url("s3://b/a/c/").parent == Url("s3://b/a")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(ConfigError, match=r'pip install "sshfs>=2025\.2" "tenacity>=9"'):
        list(list_images([Url("sftp://host/a.png")]))


def test_fetching_ahead_keeps_the_order_and_the_errors():
    def fetch(number: int) -> bytes:
        time.sleep(0.02 if number % 3 == 0 else 0)
        if number == 5:
            raise OSError("no such file")
        return b"%d" % number

    images = [
        ImageRef(
            str(number),
            RemoteObject(lambda number=number: fetch(number))
            if number % 4
            else Content(lambda number=number: b"%d" % number),
        )
        for number in range(100)
    ]
    names = []
    for image in fetch_ahead(images):
        assert isinstance(image.place, RemoteObject | Content)
        names.append(image.name)
        if image.name == "5":
            with pytest.raises(OSError, match="no such file"):
                image.place.read()
        else:
            assert image.place.read() == image.name.encode()
    assert names == [str(number) for number in range(100)]


def test_fetching_ahead_is_bounded(monkeypatch):
    monkeypatch.setattr(remote_images, "MAX_AHEAD", 1000)
    begun: list[int] = []
    lock = threading.Lock()

    def fetch(number: int) -> bytes:
        with lock:
            begun.append(number)
        return bytes(300)

    images = (
        ImageRef(str(number), RemoteObject(lambda number=number: fetch(number), num_bytes=300))
        for number in range(50)
    )
    for number, image in enumerate(fetch_ahead(images)):
        time.sleep(0.002)
        assert len(begun) <= number + 1 + 4  # three wait, and one may be on its way
        assert isinstance(image.place, RemoteObject)
        image.place.read()
    assert sorted(begun) == list(range(50))


def test_images_already_read_are_freed():
    fetched: list[bytes] = []

    def fetch() -> bytes:
        fetched.append(bytes(100))
        return fetched[-1]

    (image,) = fetch_ahead([ImageRef("a", RemoteObject(fetch))])
    assert isinstance(image.place, RemoteObject)
    read = image.place.read()
    assert read is fetched[0]
    assert len(fetched) == 1
    assert sys.getrefcount(fetched.pop()) <= 3  # `read`, and the two of the call
    assert image.place.read() is not read  # fetched again
    assert len(fetched) == 1


def test_local_images_pass_one_by_one(root):
    seen: list[str] = []

    def listing() -> Iterator[ImageRef]:
        for image in list_images([root]):
            seen.append(image.name)
            yield image

    for number, _ in enumerate(fetch_ahead(listing())):
        assert len(seen) == number + 1


def test_unreachable_servers_are_retried_and_then_named(monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server = remote.Remote(Url("s3://bucket/photos"))
    monkeypatch.setattr(server, "_connect", lambda: None)
    asked: list[None] = []

    def request(_files: object) -> None:
        asked.append(None)
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(UnreachableError, match="reach s3://bucket/photos: connection"):
        server.ask(request)
    assert len(asked) == 3


@pytest.mark.parametrize("error", [FileNotFoundError("a"), PermissionError("not for you")])
def test_a_fault_of_the_file_is_not_retried(monkeypatch, error):
    server = remote.Remote(Url("s3://bucket/photos"))
    monkeypatch.setattr(server, "_connect", lambda: None)
    asked: list[None] = []

    def request(_files: object) -> None:
        asked.append(None)
        raise error

    with pytest.raises(OSError, match=r"no such file|not for you"):
        server.ask(request)
    assert len(asked) == 1


def test_a_full_disk_is_not_reported_as_a_server_error(monkeypatch):
    server = remote.Remote(Url("s3://bucket/photos"))
    monkeypatch.setattr(server, "_connect", lambda: None)
    asked: list[None] = []

    def request(_files: object) -> None:
        asked.append(None)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        server.ask(request)
    assert raised.value.errno == errno.ENOSPC
    assert len(asked) == 1


def test_an_expired_token_stops_the_job(monkeypatch):
    """A million rows that say so would be of no use."""

    class ClientError(Exception):
        response = {"Error": {"Code": "ExpiredToken"}}  # noqa: RUF012

    server = remote.Remote(Url("s3://bucket/photos"))
    monkeypatch.setattr(server, "_connect", lambda: None)

    def request(_files: object) -> None:
        raise PermissionError("the provided token has expired") from ClientError()

    with pytest.raises(UnreachableError, match="credentials"):
        server.ask(request)


def test_empty_data_is_refused(place, tmp_path):
    done = run(place, "inspect", f"{place.url}/nothing", cwd=tmp_path)
    assert done.code == 1
    assert f"{place.url}/nothing" in done.err
    assert done.err.count("\n") == 1
