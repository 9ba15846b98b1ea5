"""Write results into Markdown pages: tables, and the two marks that they stand between."""

import re
from collections.abc import Sequence
from typing import Any


def marks(block: str) -> tuple[str, str]:
    """Return the marks that a block of results stands between."""
    return f"<!-- {block} -->", f"<!-- end of {block} -->"


MARKS = marks("results")
SPEED = "speed"
"""Name of the block in `SPEED_PAGES` that is made from the tables in benchmarks/README.md."""
SPEED_PAGES = ("README.md", "tltools/docs/benchmarks.md")


def with_results(page: str, results: str, block: str = "results") -> str:
    """Replace the results between two marks in the text of a page.

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
    """Return a heading and a table as Markdown; an empty list if there are no rows."""
    if not rows:
        return []
    return [f"### {title}", _table(columns, ["---"] * len(columns), rows)]


def _table(columns: Sequence[str], alignment: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (columns, alignment, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def rate_text(value: float) -> str:
    """Format a rate for a table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


# ------------------------------------------------------------------------- the table of speed


def speed_table(page: str) -> str:
    """Return the table for README and the chapter, made from the tables in benchmarks/README.md.

    The limit is the smaller of decoding alone and the bare session. A missing figure is "-".

    Args:
        page: The text of benchmarks/README.md.
    """
    cpu, gpu = _rates(page, "cores"), _rates(page, "gpu")
    cores = re.search(r"^- (\d+) cores of", _between(page, "cores"), re.MULTILINE)
    many = max(gpu.get("CNN on the CPU alone", {"16": 0}), key=int)
    loops = cpu.get("CNN beside the fastest DataLoader loops", {})
    rows: list[list[Any]] = [
        [f"CNN, {cores[1] if cores else 'some'} CPU cores", loops.get("tltools"),
         _best(loops, "loop:"), None],
        [f"CNN, {many} CPU cores", gpu.get("CNN on the CPU alone", {}).get(many), None, None],
        ["CNN, GPU", *_on_gpu(gpu, "cnn fp32", "cnn loop", "session cnn fp32")],
        ["VGG16 fp16, GPU",
         *_on_gpu(gpu, "vgg16 fp16", "vgg16 loop.*fp16", "session vgg16 fp16")],
        ["VGG16 TF32, GPU",
         *_on_gpu(gpu, "vgg16 fp32 --tf32", "vgg16 loop.*tf32", "session vgg16 fp32.*tf32")],
    ]  # fmt: skip
    columns = ["images/s", "tltools", "best PyTorch loop", "limit"]
    texts = [
        [name, *("-" if one is None else rate_text(one) for one in rest)] for name, *rest in rows
    ]
    return _table(columns, ["---", "--:", "--:", "--:"], texts) + "\n"


def _on_gpu(
    gpu: dict[str, dict[str, float]], job: str, loop: str, session: str
) -> list[float | None]:
    limits = gpu.get("Limits", {})
    parts = [_best(limits, r"decoding, \d+ processes"), _best(limits, session)]
    known = [one for one in parts if one is not None]
    end_to_end = gpu.get("tltools classify, end to end", {})
    return [
        end_to_end.get(f"classify {job}"),
        _best(gpu.get("DataLoader loops", {}), loop),
        min(known, default=None),
    ]


def _best(rates: dict[str, float], pattern: str) -> float | None:
    """Return the highest rate of the rows whose names match a pattern at their start."""
    return max((rate for name, rate in rates.items() if re.match(pattern, name)), default=None)


def _rates(page: str, block: str) -> dict[str, dict[str, float]]:
    """Return the second column of a block's tables, by title of the table and name of the row."""
    found: dict[str, dict[str, float]] = {}
    for part in re.split("^### ", _between(page, block), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        rows = re.findall(r"^\| ([^|]+) \| ([\d,.]+)\b", body, re.MULTILINE)
        values = {name.strip(): float(text.replace(",", "")) for name, text in rows}
        found[re.sub(r", (by cores|[\d,]+ images)$", "", title)] = values
    return found


def _between(page: str, block: str) -> str:
    first, last = marks(block)
    return page.partition(first)[2].partition(last)[0]
