"""What pip knows of tltools: its name there, and what its optional parts need."""

import re

DISTRIBUTION = "tltools-classifiers"
"""The name to install, upgrade and uninstall. `tltools` on PyPI is somebody else's project."""
PYPI_NAMESAKE = "tltools"
"""The other project, whose files would lie where ours do."""

_EXTRA = re.compile(r"""\bextra == ["']([^"']+)["']""")


def extra_requirements(extra: str) -> tuple[str, ...]:
    """Return what an optional part of tltools needs, such as `ray[data]>=2.60`, as pip takes it.

    Args:
        extra: A name in `[project.optional-dependencies]`.

    Raises:
        PackageNotFoundError: If this tltools is not installed as a package.
    """
    from importlib.metadata import requires  # 15 ms, which only an error has to wait for

    found: list[str] = []
    for line in requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        match = _EXTRA.search(marker)
        if match and match[1] == extra:
            found.append(requirement.strip())
    return tuple(found)


def pip_install(extra: str) -> str:
    """Return the command that installs what an optional part needs.

    It names the packages themselves: `pip install 'tltools[ray]'` would fetch another project.
    """
    try:
        needed = extra_requirements(extra)
    except ImportError:  # run from a checkout that pip has not seen
        return f"pip install -e '.[{extra}]' in the checkout of tltools"
    return " ".join(["pip install", *(f'"{one}"' for one in needed)])
