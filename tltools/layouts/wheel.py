"""Pack the running tltools as a wheel, offline and however it was installed.

A regular build would need a build backend and the sources' pyproject.toml, which an installed
package does not have. But a wheel is simple: a zip archive with the package, its metadata and a
list of the files (https://packaging.python.org/specifications/binary-distribution-format/).
"""

import base64
import hashlib
import io
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import tltools
from tltools.errors import ConfigError
from tltools.packages import DISTRIBUTION

_STEM = f"{DISTRIBUTION.replace('-', '_')}-{tltools.__version__}"
NAME = f"{_STEM}-py3-none-any.whl"
_DIST_INFO = f"{_STEM}.dist-info"
_METADATA = ("METADATA", "entry_points.txt", "licenses/LICENSE")
_WHEEL = "Wheel-Version: 1.0\nGenerator: tltools\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644


def make_wheel() -> bytes:
    """Return the wheel; the same package always yields the same bytes.

    Raises:
        ConfigError: If tltools is not installed as a package, or another version of it is.
    """
    files = _package_files() | _metadata_files()
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{_DIST_INFO}/RECORD"] = f"{record}{_DIST_INFO}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = _MODE << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def _package_files() -> dict[str, bytes]:
    root = Path(tltools.__file__).parent
    return {
        f"tltools/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }


def _metadata_files() -> dict[str, bytes]:
    remedy = "run pip install -e . in its checkout, then run this again"
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise ConfigError(f"this tltools is not installed as a package: {remedy}") from None
    if installed.version != tltools.__version__:
        raise ConfigError(
            f"tltools {tltools.__version__} is running, but {installed.version} is installed: "
            f"{remedy}"
        )
    texts = {name: installed.read_text(name) for name in _METADATA}
    files = {name: text.encode() for name, text in texts.items() if text is not None}
    return {
        f"{_DIST_INFO}/{name}": data for name, data in (files | {"WHEEL": _WHEEL.encode()}).items()
    }


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"
