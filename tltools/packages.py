"""Describe tltools to pip: its distribution name and the requirements of its extras."""

import re

DISTRIBUTION = "tltools-classifiers"
"""The name to install, upgrade and uninstall. `tltools` on PyPI is an unrelated project."""
PYPI_NAMESAKE = "tltools"
"""The unrelated project, which installs into the same folder."""

_EXTRA = re.compile(r"""\bextra == ["']([^"']+)["']""")


def extra_requirements(extra: str) -> tuple[str, ...]:
    """Return the requirements of an extra, such as `ray[data]>=2.60`, as pip accepts them.

    Args:
        extra: A name in `[project.optional-dependencies]`.

    Raises:
        PackageNotFoundError: If this tltools is not installed as a package.
    """
    from importlib.metadata import requires  # takes 15 ms and is needed only for errors

    found: list[str] = []
    for line in requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        match = _EXTRA.search(marker)
        if match and match[1] == extra:
            found.append(requirement.strip())
    return tuple(found)


def pip_install(extra: str) -> str:
    """Return the command that installs the requirements of an extra.

    It names the packages: `pip install 'tltools[ray]'` would install an unrelated project.
    """
    try:
        needed = extra_requirements(extra)
    except ImportError:  # run from a checkout that is not installed
        return f"pip install -e '.[{extra}]' in the checkout of tltools"
    return " ".join(["pip install", *(f'"{one}"' for one in needed)])
