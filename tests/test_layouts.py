"""Layouts: Triton's definitions accept the repository; the Dockerfile's steps work."""

import ast
import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import COLORS, SIZE, run_tltools, save_image, with_older_distance
from google.protobuf import text_format
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import ExifTags, Image

import tltools
from tltools import doctor, load_model
from tltools.card import Preprocessing
from tltools.cli.docs import CHAPTERS
from tltools.data.images import load_image
from tltools.errors import ArtifactError, ConfigError
from tltools.layouts import docker, lay_out
from tltools.layouts import layout as layout_module
from tltools.layouts.triton import labels_text
from tltools.layouts.wheel import NAME, make_wheel

ROOT = Path(__file__).resolve().parents[1]
ONNX_TYPES = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------------------------- triton


@pytest.fixture(scope="module")
def model_config():
    """Triton's ModelConfig as NVIDIA publishes it; the rest of its client is not imported."""
    (path,) = (
        file.locate()
        for file in importlib.metadata.files("tritonclient") or ()
        if file.as_posix() == "tritonclient/grpc/model_config_pb2.py"
    )
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read_config(model_config):
    """Parse a repository's configuration; unknown fields and wrong types are errors."""

    def read(folder: Path):
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        return text_format.Parse(text, model_config.ModelConfig())

    return read


@pytest.fixture(scope="module")
def real(cnn_exports):
    return cnn_exports["onnx"].path


def assert_matches_graph(model_config, configured, graph):
    assert [one.name for one in configured] == [one.name for one in graph]
    for mine, theirs in zip(configured, graph, strict=True):
        tensor = theirs.type.tensor_type
        name = model_config.DataType.Name(mine.data_type)
        assert ONNX_TYPES[name] == tensor.elem_type
        batch, *dims = tensor.shape.dim
        assert batch.dim_param, "Triton batches along an axis of any size"
        assert sizes_of(mine) == [one.dim_value for one in dims]


def sizes_of(configured):
    """Sizes of a tensor without the batch axis, as the model has them: Triton needs `dims`."""
    if not configured.HasField("reshape"):
        return list(configured.dims)
    assert list(configured.dims) == [1]
    return list(configured.reshape.shape)


def test_the_configuration_fits_tritons_definitions_and_the_graph(
    real, tmp_path, model_config, read_config
):
    folder = lay_out("triton", real, tmp_path).folder
    assert folder == tmp_path / "triton" / "cnn_fp32"
    config = read_config(folder)
    model = onnx.load(folder / "1" / "model.onnx")
    assert config.name == folder.name
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert_matches_graph(model_config, config.input, model.graph.input)
    assert_matches_graph(model_config, config.output, model.graph.output)
    assert [one.name for one in config.output] == ["logits", "probabilities", "distance"]
    assert [one.label_filename for one in config.output] == ["", "labels.txt", ""]
    assert [list(one.dims) for one in config.output] == [[2], [2], [1]]
    assert not any(one.HasField("reshape") for one in (*config.input, *config.output))


def test_the_distance_of_an_older_export_is_reshaped(real, tmp_path, model_config, read_config):
    """It has only the batch axis, and Triton requires `dims`."""
    older = with_older_distance(real, tmp_path / "older.onnx")
    folder = lay_out("triton", older, tmp_path).folder
    config = read_config(folder)
    graph = onnx.load(folder / "1" / "model.onnx").graph
    assert_matches_graph(model_config, config.output, graph.output)
    assert [one.HasField("reshape") for one in config.output] == [False, False, True]
    # Its configuration is not taken for an edited one.
    assert not read_config(lay_out("triton", real, tmp_path).folder).output[-1].HasField("reshape")


def test_dynamic_batching_is_on_and_the_model_accepts_its_sizes(real, tmp_path, read_config):
    folder = lay_out("triton", real, tmp_path).folder
    config = read_config(folder)
    assert config.HasField("dynamic_batching")
    sizes = list(config.dynamic_batching.preferred_batch_size)
    assert sizes == sorted(set(sizes))
    assert sizes[0] > 1
    assert sizes[-1] <= config.max_batch_size
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds < 100_000
    session = onnxruntime.InferenceSession(
        folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for size in (1, *sizes, config.max_batch_size):
        images = np.zeros((size, *config.input[0].dims), np.uint8)
        outputs = session.run([one.name for one in config.output], {"images": images})
        assert [array.shape for array in outputs] == [
            (size, *sizes_of(one)) for one in config.output
        ]


def test_the_repository_contains_the_export_and_a_label_for_each_output(real, tmp_path):
    laid = lay_out("triton", real, tmp_path)
    files = files_of(laid.folder)
    assert set(files) == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    assert files["1/model.onnx"] == real.read_bytes()
    assert files["labels.txt"] == b"bright\ndark\n"
    assert laid.size_bytes == sum(map(len, files.values()))
    assert list(tmp_path.iterdir()) == [tmp_path / "triton"]
    assert list((tmp_path / "triton").iterdir()) == [laid.folder]


def test_an_export_without_probabilities_has_its_labels_on_the_logits(
    onnx_path, tmp_path, read_config
):
    config = read_config(lay_out("triton", onnx_path, tmp_path).folder)
    assert [(one.name, one.label_filename) for one in config.output] == [("logits", "labels.txt")]


def test_arbitrary_names_are_kept_unchanged(make_onnx, make_card, tmp_path, read_config):
    classes = ('name: "x"', "#1 ☃", "=SUM(A1)")
    card = make_card(run="Käfer 'n' #1 {x}", classes=classes)
    path = make_onnx(tmp_path / "odd.onnx", card.to_json())
    folder = lay_out("triton", path, tmp_path).folder
    assert read_config(folder).name == folder.name == "Käfer 'n' #1 {x}_fp32"
    assert tuple((folder / "labels.txt").read_text(encoding="utf-8").splitlines()) == classes


@pytest.mark.parametrize("name", ["", "a\nb", "a\r", "\n", "a\u2028b", "a\x0bb"])
def test_a_class_that_is_empty_or_has_a_line_break_is_refused(make_onnx, make_card, tmp_path, name):
    card = make_card(classes=("red", name, "blue"))
    path = make_onnx(tmp_path / "odd.onnx", card.to_json())
    with pytest.raises(ArtifactError, match="is empty or contains a line break") as caught:
        lay_out("triton", path, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "triton").exists()
    with pytest.raises(ArtifactError):
        labels_text([name])
    assert lay_out("docker", path, tmp_path).folder.is_dir()


def test_a_layout_is_replaced_completely_or_not_at_all(make_onnx, make_card, tmp_path, monkeypatch):
    old = make_onnx(tmp_path / "old.onnx", make_card().to_json())
    new = make_onnx(tmp_path / "new.onnx", make_card(classes=("a", "b", "c")).to_json())
    folder = lay_out("triton", old, tmp_path).folder
    before = files_of(folder)

    def interrupted(*_paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layout_module.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lay_out("triton", new, tmp_path)
    assert files_of(folder) == before
    lay_out("triton", new, tmp_path)
    after = files_of(folder)
    assert set(after) == set(before)
    assert after["labels.txt"] == b"a\nb\nc\n"
    assert after["1/model.onnx"] == new.read_bytes()


def test_a_file_that_is_not_an_onnx_export_is_refused(torchscript_path, tmp_path):
    with pytest.raises(ConfigError, match=r"needs an ONNX export, and .*tiny\.pt is not one"):
        lay_out("triton", torchscript_path, tmp_path)
    (tmp_path / "some.onnx").write_bytes(b"something")
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        lay_out("docker", tmp_path / "some.onnx", tmp_path)


# -------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel():
    with zipfile.ZipFile(io.BytesIO(make_wheel())) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_contains_the_package_and_a_correct_record(wheel):
    package = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "tltools").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name: data for name, data in wheel.items() if name.startswith("tltools/")} == package
    assert {"tltools/py.typed", "tltools/layouts/image/Dockerfile"} <= set(package)
    assert {f"tltools/docs/{name}.md" for name in CHAPTERS} <= set(package)
    info = f"tltools_classifiers-{tltools.__version__}.dist-info"
    rows = list(csv.reader(wheel[f"{info}/RECORD"].decode().splitlines()))
    assert {row[0] for row in rows} == set(wheel)
    for name, digest, size in rows:
        if name != f"{info}/RECORD":
            raw = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
            assert raw == hashlib.sha256(wheel[name]).digest()
            assert int(size) == len(wheel[name])
    assert b"tltools = tltools.cli:main" in wheel[f"{info}/entry_points.txt"]
    assert wheel[f"{info}/METADATA"].startswith(b"Metadata-Version: ")
    assert b"Apache License" in wheel[f"{info}/licenses/LICENSE"]


def test_the_same_package_gives_the_same_wheel():
    assert make_wheel() == make_wheel()


def test_a_wheel_of_another_version_is_not_built(monkeypatch):
    monkeypatch.setattr(tltools, "__version__", "99.0")
    with pytest.raises(ConfigError, match=r"tltools 99\.0 is running, but .* is installed"):
        make_wheel()


# -------------------------------------------------------------------------------------- image


def pins(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] not in "#")
    return {
        canonicalize_name(name): version for name, version in (one.split("==") for one in lines)
    }


@pytest.fixture(scope="module")
def requirements():
    """The image's packages: those that tltools imports, and those that these need."""
    path = ROOT / "tltools" / "layouts" / "image" / "requirements.txt"
    text = path.read_text(encoding="utf-8")
    names = [
        {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", block, re.MULTILINE)}
        for block in text.split("\n\n")
    ]
    assert len(names) == 2
    assert not names[0] & names[1]
    return names


INSTALLED = {"onnxruntime": "onnxruntime-gpu"}
"""What this environment has of the same version in place of the image's package."""


def test_the_images_versions_equal_the_tested_ones(requirements):
    constraints = pins(ROOT / "constraints.txt")
    image = pins(ROOT / "tltools" / "layouts" / "image" / "requirements.txt")
    assert set(image) == requirements[0] | requirements[1]
    for name, version in image.items():
        assert constraints[INSTALLED.get(name, name)] == version, name
    assert constraints["pyarrow"] == docker.PYARROW
    # What doctor calls a failure when it is missing: all of them, but for what it asks otherwise.
    assert set(doctor.SERVING) | {"onnxruntime", "platformdirs"} == requirements[0]


def test_the_chapter_states_the_images_size_and_number_of_packages(requirements):
    chapter = " ".join((ROOT / "tltools" / "docs" / "deploy.md").read_text("utf-8").split())
    num_packages = len(requirements[0] | requirements[1])
    assert f"exact versions of the {num_packages} packages" in chapter
    assert f"without PyTorch and CUDA: {docker.PACKAGES_MB} MB" in chapter


def test_the_image_installs_exactly_the_needed_packages(requirements):
    needed = set()
    for name in requirements[0] | requirements[1]:
        for text in importlib.metadata.requires(INSTALLED.get(name, name)) or ():
            requirement = Requirement(text)
            linux = {"extra": "", "platform_system": "Linux", "sys_platform": "linux"}
            if requirement.marker is None or requirement.marker.evaluate(linux):
                needed.add(canonicalize_name(requirement.name))
    assert needed - requirements[0] == requirements[1]


SERVE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from tltools.cli import main
for output in ("a.csv", "a.jsonl"):
    try:
        main(["classify", "images", "--model", "model.onnx", "--device", "cpu",
              "--changed-only", "--output", output])
    except SystemExit as leaving:
        assert not leaving.code
from tltools.console import print_table
print_table("what a terminal shows", ("a",), [("b",)])
import tltools
tltools.load_model("model.onnx").predict(["images/a.png"])
print("LOADED", *sys.modules)
"""


def test_the_image_contains_what_serving_imports(requirements, onnx_path, tmp_path):
    (tmp_path / "images").mkdir()
    save_image(tmp_path / "images" / "a.png", COLORS["red"], np.random.default_rng(0))
    shutil.copy(onnx_path, tmp_path / "model.onnx")
    command = [sys.executable, "-c", SERVE, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.partition("LOADED ")[2].split()
    ours = [name for name in loaded if name.split(".")[0] == "tltools"]
    assert {"tltools.classify.job", "tltools.classify.ledger", "tltools.api"} <= set(ours)
    names = {"onnxruntime-gpu": "onnxruntime"}
    distributions = {
        module: {names.get(one, one) for one in map(canonicalize_name, found)}
        for module, found in importlib.metadata.packages_distributions().items()
    }
    tops = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    third_party = {top: distributions[top] for top in tops if top in distributions}
    direct = {top for name in ours for top in imported_by(name)} & set(third_party)
    assert {name for top in direct for name in third_party[top]} == requirements[0]


def imported_by(module: str) -> set[str]:
    """Top-level names that a module of ours imports anywhere in it."""
    spec = importlib.util.find_spec(module)
    names = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names


def test_the_image_is_built_from_the_files_beside_its_dockerfile(real, tmp_path):
    laid = lay_out("docker", real, tmp_path)
    files = files_of(laid.folder)
    assert set(files) == {"Dockerfile", "README.md", "requirements.txt", "model.onnx", NAME}
    assert files["model.onnx"] == real.read_bytes()
    assert files[NAME] == make_wheel()
    steps = instructions(laid.folder / "Dockerfile")
    copied = [name for words in steps["COPY"] for name in shlex.split(words)[:-1]]
    assert sorted(copied) == sorted(set(files) - {"Dockerfile", "README.md"})
    assert steps["FROM"] == ["python:3.11-slim"]
    (user,) = steps["USER"]
    assert int(user.split(":")[0]) > 0
    readme = files["README.md"].decode()
    assert "$(id -u)" in readme
    assert not re.search(r"\$[a-z_]+\b", readme), "a value was not filled in"
    assert set(re.findall(r"^\| `(\S+)`", readme, re.MULTILINE)) == set(files) - {"README.md"}


def instructions(dockerfile: Path) -> dict[str, list[str]]:
    """Return a Dockerfile's instructions by kind, in order."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            kind, _, rest = line.partition(" ")
            found.setdefault(kind, []).append(rest)
    return found


@pytest.fixture
def image(real, tmp_path):
    """The Dockerfile's steps, done in a fresh environment in place of a container.

    Needs a package index: on a machine without one there is nothing to install from.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    probe = [
        *pip,
        "download",
        "--quiet",
        "--no-deps",
        "mdurl==0.1.2",
        "-d",
        str(tmp_path / "probe"),
    ]
    if subprocess.run(probe, capture_output=True, timeout=60).returncode:
        pytest.skip("needs a package index")
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    bin_, opt = tmp_path / "env" / "bin", tmp_path / "opt"
    (bin_ / "pip").write_text(f'#!/bin/sh\nexec {shlex.join(pip)} --python {bin_}/python "$@"\n')
    (bin_ / "pip").chmod(0o755)
    folder = lay_out("docker", real, tmp_path).folder
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    steps = instructions(folder / "Dockerfile")
    for words in steps["COPY"]:
        *names, target = shlex.split(words)
        for name in names:
            place = Path(target) / name if target.endswith("/") else Path(target)
            place = opt / place.relative_to("/opt")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, place)
    for command in steps["RUN"]:
        shell = ["sh", "-ec", command.replace("/opt/", f"{opt}/")]
        done = subprocess.run(shell, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (entry,) = steps["ENTRYPOINT"]
    return opt, bin_, env, json.loads(entry)


@pytest.mark.slow  # it installs from the package index
def test_an_environment_built_by_the_dockerfiles_steps_classifies_without_torch(
    image, images, tmp_path
):
    opt, bin_, env, entry = image
    (site,) = (bin_.parent / "lib").glob("*/site-packages")
    absent = {"torch", "torchvision", "pandas", "onnx", "scipy", "nvidia"}
    assert not absent & {path.name for path in site.iterdir()}
    total = sum(path.lstat().st_size for path in site.rglob("*"))
    own = sum(path.stat().st_size for path in (site / "tltools").rglob("*") if path.is_file())
    assert (total - own) / 1e6 == pytest.approx(docker.PACKAGES_MB, rel=0.1)
    command = [one.replace("/opt/", f"{opt}/").replace("/data", str(images)) for one in entry]
    (images / "bad.jpg").write_text("no image")
    told = [*command, "--verbose"]
    done = subprocess.run(told, cwd=images, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CPUExecutionProvider" in done.stderr
    made = (images / "predictions.csv").read_bytes()
    (images / "predictions.csv").unlink()
    arguments = ("classify", images, "--model", opt / "tltools" / "model.onnx")
    here = run_tltools(*arguments, "--device", "cpu", cwd=tmp_path)
    assert here.code == 0, here.err
    assert (tmp_path / "predictions.csv").read_bytes() == made
    assert len(made.splitlines()) == 1 + 31
    for options, message in (
        (("-o", "a.parquet"), "error: --output a.parquet needs pyarrow"),
        (
            ("-o", "a.csv", "--report", "a.html"),
            "error: --report needs jinja2 and matplotlib, which",
        ),
    ):
        done = subprocess.run(
            [*command, *options], cwd=images, env=env, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.startswith(message)
    assert not (images / "a.csv").exists()


# ------------------------------------------------------------------------------------ command


# ------------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images that a program of its own gets wrong: wide, rotated, transparent, gray, a palette."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:90, 0:160]
    pixels = np.stack([x * 255 / 159, y * 255 / 89, (x // 20 + y // 20) % 2 * 255], axis=2)
    image = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(folder / "rotated.jpg", exif=exif, quality=95)
    image.save(folder / "wide.png")
    image.rotate(90, expand=True).save(folder / "tall.webp", lossless=True)
    image.convert("L").save(folder / "gray.png")
    image.resize((SIZE, SIZE)).save(folder / "exact.png")
    image.quantize(16).save(folder / "palette.gif")
    image.putalpha(Image.fromarray((x * 255 / 159).astype(np.uint8)))
    image.save(folder / "transparent.png")
    return folder


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_program_answers_like_classify(make_onnx, make_card, photos, tmp_path, resize):
    rules = Preprocessing(size=SIZE, resize=resize, interpolation="bicubic")
    names = ("it's", 'a "b"\n\\', "Größe")
    card = make_card(preprocessing=rules, classes=names)
    export = make_onnx(tmp_path / "tiny.fp32.onnx", card.to_json())
    folder = lay_out("python", export, tmp_path / "out").folder
    assert sorted(one.name for one in folder.iterdir()) == [
        "model.onnx", "predict.py", "requirements.txt"
    ]  # fmt: skip
    program = runpy.run_path(str(folder / "predict.py"))
    assert program["CLASSES"] == list(names)
    for path in sorted(photos.iterdir()):
        pixels = program["load"](str(path))
        assert (pixels.shape, pixels.dtype) == ((1, SIZE, SIZE, 3), np.uint8)
        difference = np.abs(pixels[0].astype(int) - load_image(path, rules).astype(int))
        assert difference.mean() < 2, path.name
        if path.suffix != ".jpg":  # which `load_image` decodes at a fraction of its size
            assert difference.max() <= 2, path.name


def test_the_program_runs_without_tltools(real, photos, tmp_path):
    folder = lay_out("python", real, tmp_path / "out").folder
    paths = [str(path) for path in sorted(photos.iterdir())]
    done = subprocess.run(
        [sys.executable, "-I", folder / "predict.py", *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers = load_model(real, device="cpu").predict(paths)
    for line, path, answer in zip(done.stdout.splitlines(), paths, answers, strict=True):
        name, label, share = re.fullmatch(r"(.*): (\w+) ([\d.]+)%", line).groups()
        assert (name, label) == (path, answer.label)
        assert float(share) == pytest.approx(100 * answer.confidence, abs=1)


def test_the_program_names_what_it_cannot_read_and_goes_on(real, photos, tmp_path):
    folder = lay_out("python", real, tmp_path / "out").folder
    good = next(path for path in photos.iterdir() if path.suffix == ".jpg")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes((photos / "transparent.png").read_bytes()[:60])
    bad = [str(tmp_path / name) for name in ("text.jpg", "cut.png", "missing.jpg")]
    program = [sys.executable, "-I", folder / "predict.py"]
    done = subprocess.run([*program, *bad, good], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{good}: ")
    for path, line in zip(bad, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"cannot read {path}: ")
    usage = subprocess.run(program, capture_output=True, text=True)
    assert (usage.returncode, usage.stderr) == (1, "usage: python predict.py photo.jpg ...\n")


def test_the_command_lays_out_what_it_exports(cnn_run, tmp_path):
    arguments = ("export", cnn_run, "--layout", "triton", "--format", "all", "--json")
    done = run_tltools(*arguments, "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    found = {one["format"]: one for one in json.loads(done.out)}
    assert found["torchscript"]["layout"] is None
    assert found["onnx"]["layout"] == "out/triton/cnn_fp32"
    copy = tmp_path / "out" / "triton" / "cnn_fp32" / "1" / "model.onnx"
    assert copy.read_bytes() == (tmp_path / found["onnx"]["path"]).read_bytes()
    assert "triton: out/triton/cnn_fp32 (" in done.err


@pytest.mark.parametrize(
    ("layout", "file", "hint"),
    [
        ("python", "predict.py", "python exports/python/cnn_fp32/predict.py IMAGE"),
        ("triton", "config.pbtxt", "tritonserver --model-repository="),
        ("docker", "Dockerfile", "docker build"),
    ],
)
def test_the_command_lays_out_an_existing_export_without_torch(real, tmp_path, layout, file, hint):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tltools.cli import main\n"
        "main(['export', *sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(real), "--layout", layout],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "100.0%" in done.stdout
    assert hint in done.stderr
    assert (tmp_path / "exports" / layout / "cnn_fp32" / file).is_file()


def test_an_impossible_layout_is_refused_before_exporting(cnn_run, real, tmp_path):
    arguments = ("export", cnn_run, "--layout", "docker", "--format", "torchscript")
    done = run_tltools(*arguments, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "leave out --format torchscript" in done.err
    assert list(tmp_path.iterdir()) == []
    plain = run_tltools("export", real, cwd=tmp_path)
    assert plain.code == 1
    assert "Traceback" not in plain.err
