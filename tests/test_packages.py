"""Printed install commands: the right packages, never the other project named tltools."""

import re
import subprocess
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command

from tltools import cli, packages
from tltools.packages import DISTRIBUTION, PYPI_NAMESAKE, extra_requirements, pip_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PRINTED = [
    *(path for path in (ROOT / "tltools").rglob("*") if path.suffix in (".py", ".md", ".txt")),
    ROOT / "tltools" / "layouts" / "image" / "Dockerfile",
    *(ROOT / name for name in ("README.md", "Makefile", "exports/README.md", "CHANGELOG.md")),
    *(ROOT / "benchmarks").glob("*.md"),
]


def test_the_distribution_does_not_use_the_name_taken_on_pypi():
    assert PROJECT["name"] == DISTRIBUTION != PYPI_NAMESAKE
    assert PROJECT["scripts"] == {"tltools": "tltools.cli:main"}


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "dev"])
def test_an_optional_part_needs_the_packages_in_pyproject(extra):
    expected = {(one.name, frozenset(one.extras), one.specifier) for one in requirements(extra)}
    found = map(Requirement, extra_requirements(extra))
    assert {(one.name, frozenset(one.extras), one.specifier) for one in found} == expected


def requirements(extra: str) -> list[Requirement]:
    return [Requirement(text) for text in EXTRAS[extra]]


def test_the_command_names_each_package_with_its_version():
    assert pip_install("ray") == 'pip install "ray[data]>=2.60"'
    assert pip_install("s3") == 'pip install "s3fs>=2025.3" "tenacity>=9"'


def test_without_metadata_the_remedy_is_to_install_from_the_checkout(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", absent)
    assert packages.pip_install("ray") == "pip install -e '.[ray]' in the checkout of tltools"


def test_no_text_tells_users_to_install_the_other_tltools():
    for path in PRINTED:
        if path.name == "packages.py":
            continue  # says so in a docstring
        text = path.read_text(encoding="utf-8")
        assert "tltools[" not in text, path
        assert r"tltools\\[" not in text, path
        for line in re.findall(r"pip install ([^`\n]*)", text):
            assert not re.search(rf"(?<![\w./-]){PYPI_NAMESAKE}(?![\w./-])", line), (path, line)


@pytest.mark.parametrize("command", ["train", "evaluate", "classify"])
def test_help_names_the_packages_of_the_ray_engine(command):
    parameters = get_command(cli.app).commands[command].params
    (engine,) = (one for one in parameters if one.name == "engine")
    assert engine.help.replace("\\[", "[").endswith(f"({pip_install('ray')}).")


IN_SDIST = {
    "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml",
    ".ci/run", "benchmarks/README.md", "benchmarks/run.py", "exports/README.md",
    "tests/audit.py", "tests/conftest.py", "tests/golden/options.txt", "tests/test_packages.py",
}  # fmt: skip
"""What `make test` reads besides the package, and what people look for."""
IN_WHEEL = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "tltools").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}
"""The program, the pages, the images and the templates as well as the modules."""


@pytest.fixture(scope="module")
def dists(tmp_path_factory):
    """Build both distributions; return the names in the sdist and in the wheel."""
    pytest.importorskip("hatchling", reason="hatchling, of the extra dev, is not installed")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    folder = str(tmp_path_factory.mktemp("dist"))
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=folder)
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"])
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        return {name.partition("/")[2] for name in tar.getnames()}, set(archive.namelist())


def test_the_sdist_builds_and_tests_itself(dists):
    assert dists[0] >= IN_SDIST | IN_WHEEL


def test_every_file_under_version_control_is_in_the_sdist(dists):
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout")
    command = ("git", "ls-files", "-z")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    tracked = {name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}
    assert tracked <= dists[0] | {".gitignore"}


def test_the_wheel_has_every_file_of_the_package(dists):
    assert "tltools/layouts/program/predict.py.txt" in IN_WHEEL
    assert "tltools/docs/images/report.png" in IN_WHEEL
    assert dists[1] >= IN_WHEEL
    assert not {name for name in dists[1] if not name.startswith(("tltools/", "tltools_class"))}
