"""Pages of results: tables in Markdown, and their place between two marks of a page."""

from collections.abc import Sequence


def marks(block: str) -> tuple[str, str]:
    """Return the marks that a block of results stands between."""
    return f"<!-- {block} -->", f"<!-- end of {block} -->"


MARKS = marks("results")


def with_results(page: str, results: str, block: str = "results") -> str:
    """Replace the results in the text of a page, which stand between its two marks.

    Raises:
        ValueError: If the page lacks a mark.
    """
    first, last = marks(block)
    before, start, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        raise ValueError(f"the page lacks its marks {first} and {last}")
    return f"{before}{start}\n\n{results}\n{end}{after}"


def section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a heading and a table as Markdown; nothing where there are no rows."""
    if not rows:
        return []
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return [f"### {title}", "\n".join(f"| {' | '.join(line)} |" for line in cells)]


def rate_text(value: float) -> str:
    """Return a rate for a table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
