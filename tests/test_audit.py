"""The dependency audit fails for a vulnerability and for nothing else."""

import json
import sys

import pytest
from audit import audit

GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {
    "name": "bad",
    "version": "2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": [], "description": ""}],
}
ABSENT = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}


def printing(text: str, *, to: str = "stdout", code: int = 0) -> tuple[str, ...]:
    script = f"import sys; sys.{to}.write({text!r}); sys.exit({code})"
    return (sys.executable, "-c", script)


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([GOOD, ABSENT], 0, "audit: 0 known vulnerabilities in 1 packages, 1 are not on PyPI"),
        ([GOOD, BAD], 1, "bad 2: PYSEC-1, mended in 3"),
        ([ABSENT], 0, "audit skipped: PyPI's vulnerabilities of 1 packages cannot be had"),
    ],
)
def test_only_a_vulnerability_fails_the_audit(capsys, packages, code, said):
    command = printing(json.dumps({"dependencies": packages}), code=code)
    assert audit(command) == code
    assert said in capsys.readouterr().out


def test_without_an_answer_the_audit_is_skipped_with_a_note(capsys):
    trouble = "Traceback\nServiceError: connection refused"
    assert audit(printing(trouble, to="stderr", code=1)) == 0
    assert capsys.readouterr().out == "audit skipped: ServiceError: connection refused\n"
    assert audit((sys.executable, "-c", "import time; time.sleep(60)"), limit_s=0.2) == 0
    assert capsys.readouterr().out == "audit skipped: no answer within 0.2 s\n"
