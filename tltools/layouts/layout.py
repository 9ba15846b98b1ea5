"""Write an export's layout: a folder with everything that a server needs to run it."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tltools.atomic import atomic_path
from tltools.card import Card
from tltools.errors import ArtifactError, ConfigError
from tltools.layouts.docker import docker_files
from tltools.layouts.program import program_files
from tltools.layouts.triton import triton_files
from tltools.runtime import read_card
from tltools.runtime.model_formats import ONNX, format_of

Layout: TypeAlias = Literal["python", "triton", "docker"]
FORMAT = ONNX
"""Format of the exports in a layout: all layouts run them with onnxruntime."""
Contents: TypeAlias = Mapping[str, str | bytes | Path]
"""Contents of a layout's files, by their path in its folder: text, bytes, or a file to copy."""


@dataclass(frozen=True)
class Laid:
    """The layout of one export."""

    folder: Path
    size_bytes: int
    """Total size of all files."""


def lay_out(layout: Layout, export: Path, output: Path) -> Laid:
    """Write the layout of an export to `output`/LAYOUT/RUN_PRECISION/.

    Its files replace those of an earlier layout of the same name only after all are complete, and
    only if their text has not been edited.

    Args:
        layout: `python`, `triton` or `docker`.
        export: An ONNX export, which is copied byte for byte.
        output: Parent folder of the layouts.

    Raises:
        ArtifactError: If it is not an export, or the layout does not support a class name.
        ConfigError: If it has another format, tltools is not installed as a package, or a text
            file is there that differs from the one to be written.
        TltoolsError: If the folder cannot be written.
    """
    if format_of(export) is not FORMAT:
        raise ConfigError(
            f"`layout={layout}` needs an {FORMAT.title} export, and {export} is not one: export "
            f"the run with `formats={FORMAT.name}`"
        )
    card = read_card(export)
    assert card.export is not None
    name = f"{card.run}_{card.export.precision}"
    folder = output / layout / name
    contents = _contents(layout, export, card, name)
    _refuse_edited(layout, folder, contents)
    with ExitStack() as stack:
        # All files are complete before the first one is renamed.
        opened = {name: stack.enter_context(atomic_path(folder / name)) for name in contents}
        for name, content in contents.items():
            if isinstance(content, Path):
                shutil.copyfile(content, opened[name])
            elif isinstance(content, bytes):
                opened[name].write_bytes(content)
            else:
                opened[name].write_text(content, encoding="utf-8", newline="\n")
    return Laid(folder, sum((folder / name).stat().st_size for name in contents))


def _contents(layout: Layout, export: Path, card: Card, name: str) -> Contents:
    if layout == "triton":
        return triton_files(export, card, name)
    return docker_files(export) if layout == "docker" else program_files(export, card)


def _refuse_edited(layout: Layout, folder: Path, contents: Contents) -> None:
    """Refuse to replace a program or a configuration that the user may have changed.

    Raises:
        ConfigError: If one differs from what is written for the export in the folder.
    """
    (model,) = (name for name, content in contents.items() if isinstance(content, Path))
    try:
        there = folder / model
        written = _contents(layout, there, read_card(there), folder.name)
    except ArtifactError:  # there is none, or a damaged one
        written = contents
    for name, content in written.items():
        path = folder / name
        if isinstance(content, str) and path.exists() and path.read_bytes() != content.encode():
            raise ConfigError(
                f"{path} was edited, or written by another version, and is not replaced; move "
                f"{folder} away, then run the command again"
            )
