"""`tltools doctor`."""

from typing import TYPE_CHECKING

import typer

from tltools.cli.command import Out, command

if TYPE_CHECKING:
    from tltools.doctor import Check


@command
def doctor(*, out: Out) -> None:
    """Check versions, devices and execution providers, and suggest fixes.

    Example: tltools doctor
    """
    from dataclasses import replace

    from tltools.console import in_options
    from tltools.doctor import diagnose

    checks = [
        replace(
            check,
            name=in_options(check.name),
            detail=in_options(check.detail),
            remedy=in_options(check.remedy),
        )
        for check in diagnose()
    ]
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
                ". Fix: ".join(filter(None, (check.detail, check.remedy))),
            )
            for check in checks
        ],
    )
