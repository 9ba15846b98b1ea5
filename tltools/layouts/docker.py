"""Create a Docker build context: a slim image that classifies a mounted folder without torch."""

from importlib.resources import files
from pathlib import Path
from string import Template

from tltools.layouts.wheel import NAME, make_wheel

PYTHON = "3.11"
"""Python version of the base image; requirements.txt is tested with it."""
PACKAGES_MB = 182
"""Installed size of requirements.txt in megabytes, including bytecode; a test measures it."""
PYARROW = "26.0.1"
"""Version for users who add Parquet, as in constraints.txt."""


def docker_files(export: Path) -> dict[str, str | bytes | Path]:
    """Return the files of the build context; they contain no text from the export.

    Raises:
        ConfigError: If this tltools is not installed as a package.
    """
    wheel = make_wheel()
    values = {
        "python": PYTHON,
        "wheel": NAME,
        "model_mb": f"{export.stat().st_size / 1e6:.1f}",
        "wheel_mb": f"{len(wheel) / 1e6:.1f}",
        "packages_mb": PACKAGES_MB,
        "pyarrow": PYARROW,
    }
    return {
        "Dockerfile": Template(_read("Dockerfile")).substitute(values),
        "README.md": Template(_read("README.md")).substitute(values),
        "requirements.txt": _read("requirements.txt"),
        NAME: wheel,
        "model.onnx": export,
    }


def _read(name: str) -> str:
    return (files("tltools.layouts") / "image" / name).read_text(encoding="utf-8")
