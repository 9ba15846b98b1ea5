"""Write an export's layout: a folder with all that somebody else's server needs of it."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from tltools.atomic import atomic_path
from tltools.errors import ConfigError
from tltools.layouts.docker import docker_files
from tltools.layouts.triton import triton_files
from tltools.runtime import read_card
from tltools.runtime.formats import ONNX, format_of

Layout: TypeAlias = Literal["triton", "docker"]
FORMAT = ONNX
"""Of the exports that go into a layout: both run them with onnxruntime."""
Contents: TypeAlias = Mapping[str, str | bytes | Path]
"""What the files of a layout hold, by their place in its folder: text, bytes, or a file's copy."""


@dataclass(frozen=True)
class Laid:
    """One export in its layout."""

    folder: Path
    size_bytes: int
    """Of all files together."""


def lay_out(layout: Layout, export: Path, output: Path) -> Laid:
    """Write the layout of an export to `output`/LAYOUT/RUN_PRECISION/.

    Its files replace those of an earlier layout of that name together, when all are complete.

    Args:
        layout: `triton` or `docker`.
        export: An ONNX export. It is copied byte for byte.
        output: Where layouts go.

    Raises:
        ArtifactError: If it is no export, or a class has a name that the layout cannot hold.
        ConfigError: If it is of another format, or tltools is not installed as a package.
        TltoolsError: If the folder cannot be written.
    """
    if format_of(export) is not FORMAT:
        raise ConfigError(
            f"--layout {layout} takes {FORMAT.title} exports, and {export} is none: export it with "
            f"--format {FORMAT.name}"
        )
    card = read_card(export)
    assert card.export is not None
    name = f"{card.run}_{card.export.precision}"
    folder = output / layout / name
    contents: Contents
    contents = triton_files(export, card, name) if layout == "triton" else docker_files(export)
    with ExitStack() as stack:
        # All are complete before the first gets its name.
        opened = {name: stack.enter_context(atomic_path(folder / name)) for name in contents}
        for name, content in contents.items():
            if isinstance(content, Path):
                shutil.copyfile(content, opened[name])
            elif isinstance(content, bytes):
                opened[name].write_bytes(content)
            else:
                opened[name].write_text(content, encoding="utf-8", newline="\n")
    return Laid(folder, sum((folder / name).stat().st_size for name in contents))
