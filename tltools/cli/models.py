"""`tltools models`."""

from typing import TYPE_CHECKING, Annotated

import typer

from tltools.cli.command import Out, command

if TYPE_CHECKING:
    from tltools.training.published import Published


@command
def models(
    *,
    out: Out,
    every: Annotated[
        bool, typer.Option("--all", help="List every classification model of torchvision.")
    ] = False,
) -> None:
    """List the networks that train takes, with their size, cost and accuracy.

    Example: tltools models --all
    """
    from tltools.training.published import list_published

    found = list_published(every=every)
    out.result(found, lambda: _print_models(found))
    out.progress.say(
        "Next: tltools train DATA --model NAME; tltools models --all lists more, and timm:NAME "
        "takes a model of timm"
    )


def _print_models(found: "list[Published]") -> None:
    from tltools.console import print_table

    print_table(
        "Networks with default weights and their top-1 accuracy on ImageNet, as published",
        ("model", "parameters", "multiply-adds", "accuracy", "MB", "pixels"),
        [
            (
                one.model,
                _parameters(one),
                _number(one.multiply_adds, ".3g", " G"),
                _number(one.accuracy and 100 * one.accuracy, ".1f", "%"),
                _number(one.megabytes, ".0f"),
                str(one.input_size),
            )
            for one in found
        ],
    )


def _parameters(one: "Published") -> str:
    if one.megabytes is None:  # counted without a head, which may have most of them
        return f"{one.parameters:,} + head"
    return f"{one.parameters / 1e6:.3g} M"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
