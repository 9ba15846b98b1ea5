"""`tltools doctor`."""

from typing import TYPE_CHECKING

import typer

from tltools.cli.command import Out, command

if TYPE_CHECKING:
    from tltools.doctor import Check


@command
def doctor(*, out: Out) -> None:
    """Check versions, devices and execution providers, and say what to mend.

    Example: tltools doctor
    """
    from tltools.doctor import diagnose

    checks = diagnose()
    out.result(checks, lambda: _print_checks(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


def _print_checks(checks: "list[Check]") -> None:
    from tltools.console import print_table

    print_table(
        "tltools doctor",
        ("", "check", "finding"),
        [
            (
                check.status,
                check.name,
                ". To do: ".join(filter(None, (check.detail, check.remedy))),
            )
            for check in checks
        ],
    )
