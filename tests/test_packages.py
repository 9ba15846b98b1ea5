"""Printed install commands: the right packages, never the other project named tltools."""

import re
import tomllib
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
