"""Rules for the code as a whole, checked by reading or running it."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import save_image

from tltools import cli
from tltools.backbones import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "tltools").rglob("*.py"))
COMMANDS = [command.callback.__name__ for command in cli.app.registered_commands]
HEAVY = (
    "torch", "torchvision", "pandas", "onnx", "onnxruntime", "sklearn", "matplotlib", "pyarrow",
    "scipy", "captum", "mlflow", "tensorboard", "fsspec", "tenacity",
)  # fmt: skip
DEVICE = "runtime/device.py"


def name_of(module: Path) -> str:
    return module.relative_to(ROOT / "tltools").as_posix()


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def python(code: str, *args: object, cwd: Path = ROOT) -> str:
    """Run code in a new process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------- imports


def test_a_command_does_not_import_the_others():
    loaded = python(
        "import sys\n"
        "from tltools.cli import main\n"
        "try:\n"
        "    main(['classify', '--help'])\n"
        "except SystemExit as leaving:\n"
        "    assert not leaving.code\n"
        "print('LOADED', *sys.modules)\n",
    )
    names = loaded.partition("LOADED ")[2].split()
    commands = {f"tltools.cli.{name}" for name in cli.COMMANDS}
    assert commands & set(names) == {"tltools.cli.classify"}


def test_help_imports_nothing_heavy():
    loaded = python(
        "import sys\n"
        "from tltools.cli import main\n"
        "for command in ([], *([name] for name in sys.argv[1:])):\n"
        "    try:\n"
        "        main([*command, '--help'])\n"
        "    except SystemExit as leaving:\n"
        "        assert not leaving.code\n"
        "print('LOADED', *sys.modules)\n",
        *COMMANDS,
    ).partition("LOADED")[2]
    assert "tltools.cli" in loaded.split()
    assert set(HEAVY) & set(loaded.split()) == set()


@pytest.mark.parametrize(
    "words",
    [
        "train nope",
        "train photo.jpg",
        "train images --model vgg61",
        "train images --weights nope.pth",
        "train images --run-dir photo.jpg",
        "train images --lr -1",
        "train images --model cnn --head pooled",
        "train images --class-level 9",
        "evaluate nope nope",
        "evaluate runs/tiny nope",
    ],
)
def test_a_mistake_is_told_before_pytorch_is_imported(words, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "card.json").touch()
    loaded = python(
        "import os, sys\n"
        "from tltools.cli import main\n"
        "os.chdir(sys.argv.pop(1))\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as leaving:\n"
        "    assert leaving.code in (1, 2)\n"
        "print('LOADED', *sys.modules)\n",
        str(tmp_path),
        *words.split(),
    ).partition("LOADED")[2]
    assert "tltools.cli" in loaded.split()
    assert {"torch", "torchvision"} & set(loaded.split()) == set()


@pytest.fixture
def place(tmp_path, onnx_path):
    import numpy as np

    (tmp_path / "images").mkdir()
    for name, color in (("r", (250, 10, 20)), ("g", (5, 240, 15))):
        save_image(tmp_path / "images" / f"{name}.png", color, np.random.default_rng(0))
    (tmp_path / "model.onnx").write_bytes(onnx_path.read_bytes())
    return tmp_path


CLASSIFY = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # so that an import of it fails
from tltools.cli import main
try:
    main(["classify", "images", "--model", "model.onnx", "--device", "cpu"])
except SystemExit as leaving:
    assert not leaving.code
print(*(name for name, module in sys.modules.items() if module is not None))
"""


def test_classify_works_without_the_training_packages(place):
    absent = ("torch", "torchvision", "pandas", "sklearn", "matplotlib", "scipy", "onnx", "pyarrow")
    python(CLASSIFY, *absent, cwd=place)
    rows = (place / "predictions.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["g.png", "green"], ["r.png", "red"]]


def test_classify_imports_no_more_than_it_needs(place):
    loaded = set(python(CLASSIFY, cwd=place).split())
    assert "onnxruntime" in loaded
    assert set(HEAVY) & loaded == {"onnxruntime"}
    # OpenSSL takes 3.5 MB, and what only some jobs need takes time.
    unused = {"hashlib", "sqlite3", "zipfile", "tarfile"}
    unused |= {f"tltools.classify.{name}" for name in ("ledger", "merge", "shard_record")}
    unused |= {"tltools.ray"}
    assert unused & loaded == set()


REPORT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None  # so that an import of it fails
from tltools.cli import main
for command in (
    ["classify", "images", "--model", "model.onnx", "--device", "cpu", "--report", "job.html"],
    ["report", "predictions.csv", "--images", "images"],
):
    try:
        main(command)
    except SystemExit as leaving:
        assert not leaving.code
"""


def test_reports_of_jobs_work_without_the_training_packages(place):
    absent = ("torch", "torchvision", "pandas", "sklearn", "scipy", "onnx", "pyarrow")
    python(REPORT, *absent, cwd=place)
    for name in ("job.html", "report.html"):
        page = (place / name).read_text(encoding="utf-8")
        assert page.count("data:image/webp") == 2


IMPORT_NAMES = {
    "pillow": "PIL", "scikit-learn": "sklearn", "onnxruntime-gpu": "onnxruntime",
    "mlflow-skinny": "mlflow",
}  # fmt: skip
"""Of distributions that are imported under another name."""
INDIRECT = {"onnxscript", "alembic", "sqlalchemy"}
"""Needed by torch.onnx.export and by mlflow-skinny's SQLite store, which do not declare them."""
BY_NAME = {"adlfs", "aiohttp", "gcsfs", "pi_heif", "s3fs", "sshfs", "tenacity"}
"""Imported by their names where a URL or an image asks for them; fsspec imports some by itself."""
EXTRAS = ("az", "gs", "heic", "https", "mlflow", "s3", "serve", "sftp", "tensorboard")
"""What the product imports only where it is asked for."""


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    names = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"] + lines}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield str(node.module).partition(".")[0]


def test_imported_and_declared_packages_are_the_same():
    found = {name for module in MODULES for name in imported(module)}
    third_party = found - set(sys.stdlib_module_names) - {"tltools"}
    assert third_party - declared() == set(), "imported and not declared"
    assert declared() - third_party - INDIRECT - BY_NAME == set(), "declared and not imported"


"""Pairs of modules that import each other still; to be empty."""


def names_of_modules() -> dict[str, Path]:
    """All modules by the names that they are imported by; benchmarks/ is no package."""
    ours = {
        ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): module
        for module in MODULES
    }
    return ours | {module.stem: module for module in (ROOT / "benchmarks").glob("*.py")}


def imports_in(tree: ast.AST, *, with_types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports anywhere in a module, in functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif with_types or not is_for_types(node):
            yield from imports_in(node, with_types=with_types)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each one imports."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        # A package's own `__init__` names for types what it imports when it is asked for.
        for node in imports_in(tree_of(path), with_types=path.stem != "__init__"):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            else:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (members & modules.keys()) or {str(node.module)}
        graph[name] = (found & modules.keys()) - {name}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules of which each one imports the next, and the last one is the first."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_there_are_no_circular_imports():
    graph = import_graph(names_of_modules())
    assert len(graph) > 100
    assert circle_in(graph) is None


def test_the_check_finds_a_circular_import_inside_a_function(tmp_path):
    for name, other in (("first", "second"), ("second", "first")):
        (tmp_path / f"{name}.py").write_text(f"def work():\n    from {other} import done\n")
    graph = import_graph({path.stem: path for path in tmp_path.iterdir()})
    assert set(circle_in(graph)) == {"first", "second"}


# ---------------------------------------------------------------------------------------- code


def test_only_the_command_line_prints():
    """`print` nowhere; `echo` and writes to standard output in cli, console and `-o -` alone."""
    printing = {
        name_of(module)
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing == set()
    streams = {
        name_of(module)
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute)
        and node.attr in ("stdout", "stderr")
        and isinstance(node.value, ast.Name)
        and node.value.id == "sys"
    }
    assert streams <= {"console.py", "classify/writer.py", "cli/streams.py"}


def gpu_names(module: Path) -> Iterator[int]:
    """Lines that decide by a kind of GPU: a name of CUDA's as a value, or torch's part for it.

    Types are left out (`Literal["auto", "cpu", "cuda"]` says what a user may ask for), and so are
    sentences, which are longer than a name.
    """
    tree = tree_of(module)
    types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Literal"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in types:
            if re.fullmatch(r"cuda(:\d+)?|CUDAExecutionProvider", node.value):
                yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in ("cuda", "cudnn"):
            yield node.lineno


def test_one_module_decides_which_gpus_to_use():
    found = {name_of(module): list(gpu_names(module)) for module in MODULES}
    assert found.pop(DEVICE)
    # doctor asks device.py for CUDA, once for each runtime, to report what it answers.
    asked = [
        node.args[0].lineno
        for node in ast.walk(tree_of(ROOT / "tltools" / "doctor.py"))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("torch_device", "_run_small_model")
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == "cuda"
    ]
    assert found.pop("doctor.py") == asked
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_only_a_backbones_own_file_depends_on_its_name():
    """Others look up what they need: a comparison with a name would be one more place to touch."""
    deciding = {
        name_of(module)
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Constant) and node.value in BACKBONES
    }
    assert deciding == {f"backbones/{name}.py" for name in ("cnn", "vgg16", "torchvision_models")}


LONG, TOO_LONG, MAX_LONG = 50, 80, 8
"""Lines of a function, docstring included; so many functions may be longer than `LONG`."""


def function_lengths() -> dict[str, int]:
    """Lines of all functions and methods, from `def` to the last one."""
    return {
        f"{name_of(module)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_are_short():
    long = {name: number for name, number in function_lengths().items() if number > LONG}
    offenders = "\n".join(f"{long[name]:4d} {name}" for name in sorted(long, key=long.__getitem__))
    assert max(long.values(), default=0) <= TOO_LONG, offenders
    assert len(long) <= MAX_LONG, offenders


def test_every_module_and_public_function_says_what_it_is_for():
    silent = [
        f"{name_of(module)}: {getattr(node, 'name', 'the module')}"
        for module in MODULES
        for node in (tree_of(module), *tree_of(module).body)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and not getattr(node, "name", "").startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
