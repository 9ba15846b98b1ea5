"""Find the files that a CSV names, also where the spelling differs from the file system's."""

import os
from collections.abc import Callable, Sequence

from tltools.data.suffixes import is_image_name
from tltools.data.text import clean


class NamedFiles:
    """Files in a few folders, by the names that a table gives them.

    A folder is listed only if a name in it does not exist as written, and only once.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        """Search `roots`, absolute paths, in this order."""
        self._roots = tuple(roots)
        self._listed: dict[str, tuple[str, ...]] = {}
        self._keys: dict[tuple[str, Callable[[str], str]], dict[str, list[str]]] = {}

    def exact(self, name: str) -> str | None:
        """Return the first root in which a file has exactly this name; None if there is none."""
        paths = ((root, os.path.join(root, name)) for root in self._roots)  # noqa: PTH118
        return next((root for root, path in paths if os.path.isfile(path)), None)  # noqa: PTH113

    def similar(self, name: str) -> list[str]:
        r"""Return the paths of files whose names differ from `name` as systems and people do.

        Compared are, in this order, and up to the first that finds a file: names without blanks at
        the ends, invisible characters and differences in Unicode normal form, with `\\` for `/`;
        names regardless of case; names without their image suffix, if `name` has none.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        roots = ("/",) if name.startswith("/") else self._roots
        if not parts:
            return []
        keys: list[Callable[[str], str]] = [clean, _folded]
        if not is_image_name(clean(name)):
            keys.append(_stem)
        for key in keys:
            found = [path for root in roots for path in self._matches(root, parts, key)]
            if found:
                return list(dict.fromkeys(found))
        return []

    def other_suffixes(self, name: str) -> list[str]:
        """Return the paths of images with the name of `name`, but another image suffix."""
        stem, _, _ = name.rpartition(".")
        return self.similar(stem) if stem and is_image_name(name) else []

    def _matches(self, folder: str, parts: Sequence[str], key: Callable[[str], str]) -> list[str]:
        """Return the paths below `folder` whose parts have the same keys as `parts`."""
        first, *rest = parts
        if first == "..":
            above = os.path.join(folder, "..")  # noqa: PTH118
            return self._matches(above, rest, key) if rest else []
        # A folder has no image suffix to leave out.
        names = self._by_key(folder, _folded if rest and key is _stem else key)
        wanted = (_folded if rest or key is _stem else key)(first)
        paths = [os.path.join(folder, name) for name in names.get(wanted, ())]  # noqa: PTH118
        if not rest:
            return [path for path in paths if os.path.isfile(path)]  # noqa: PTH113
        return [match for path in paths for match in self._matches(path, rest, key)]

    def _by_key(self, folder: str, key: Callable[[str], str]) -> dict[str, list[str]]:
        place = (folder, key)
        if place not in self._keys:
            found: dict[str, list[str]] = {}
            for name in self._list(folder):
                if key is not _stem or is_image_name(name):
                    found.setdefault(key(name), []).append(name)
            self._keys[place] = found
        return self._keys[place]

    def _list(self, folder: str) -> tuple[str, ...]:
        """Return the names in a folder; empty if it cannot be listed, so that files are missing."""
        if folder not in self._listed:
            try:
                self._listed[folder] = tuple(sorted(os.listdir(folder)))  # noqa: PTH208
            except OSError:
                self._listed[folder] = ()
        return self._listed[folder]


def _folded(name: str) -> str:
    return clean(clean(name).casefold())


def _stem(name: str) -> str:
    return _folded(name.rpartition(".")[0])
