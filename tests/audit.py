"""Ask PyPI whether an installed package has a known vulnerability: part of make check.

A vulnerability fails the check. That PyPI cannot be asked does not: it is said, and one goes on.
"""

import json
import subprocess
import sys

LIMIT_S = 120
COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--local", "--skip-editable"),
    *("--progress-spinner=off", "--format=json", "--timeout=10"),
)


def audit(command: tuple[str, ...] = COMMAND, limit_s: float = LIMIT_S) -> int:
    """Run pip-audit, print what it found in a few lines, and return the exit code."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        print(f"audit skipped: no answer within {limit_s:g} s")
        return 0
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        lines = done.stderr.strip().splitlines()
        print(f"audit skipped: {lines[-1] if lines else 'pip-audit says nothing'}")
        return 0
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        print(f"audit skipped: PyPI's vulnerabilities of {len(packages)} packages cannot be had")
        return 0
    found = [(package, one) for package in known for one in package["vulns"]]
    for package, one in found:
        mended = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {one['id']}, mended in {mended}")
    print(
        f"audit: {len(found)} known vulnerabilities in {len(known)} packages, "
        f"{len(packages) - len(known)} are not on PyPI"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(audit())
