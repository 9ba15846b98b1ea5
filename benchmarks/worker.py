"""Run one measurement in a separate process: `worker.py REQUEST RESULT`, both JSON."""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run_system(
    *,
    system: str,
    job: dict[str, str],
    folder: str,
    warmup: str,
    output: str,
    settings: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Prepare a system, run it on the warm-up's images, then time it.

    Returns:
        `start_up_s`: imports and loading; `seconds`: from the first image to the last row.
    """
    from limits import LIMITS, LOADERS
    from loops import DATALOADERS, open_loop
    from systems import PEERS, Job, open_tltools

    systems = {"tltools": open_tltools, "loop": open_loop}
    systems |= DATALOADERS | PEERS | LIMITS | LOADERS
    start = time.perf_counter()
    work = systems[system](Job(**job), **(settings or {}))
    start_up_s = time.perf_counter() - start
    if warmup:
        work(Path(warmup), Path(output))
    start = time.perf_counter()
    ready = work(Path(folder), Path(output))
    end = time.perf_counter()
    return {"start_up_s": start_up_s, "seconds": end - (ready or start)}


MODULES = {
    "search_loops": "loops",
    "decoding": "steady",
    "nvjpeg": "steady",
    "bare_sessions": "steady",
    "bare_torch": "steady",
}
"""Module of each task; other tasks are in `processes`."""


def _run(request: dict[str, Any]) -> Any:
    task = request.pop("task")
    if task == "run_system":
        return run_system(**request)
    module = importlib.import_module(MODULES.get(task, "processes"))
    return getattr(module, task)(**request)


def _keep_rows(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Write each row as it comes, as a line of JSON; return the number of rows."""
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            number += 1
    return number


def main() -> None:
    """Run the requested task and write its result, or the error."""
    request, result = sys.argv[1:]
    try:
        found = _run(json.loads(request))
        if isinstance(found, Iterator):
            found = _keep_rows(found, Path(result).with_suffix(".rows"))
        answer = {"result": found}
    except Exception as error:
        error = getattr(error, "cause", None) or error  # Ray's own names what happened there
        # The last line; the lines before it may be the traceback of another process.
        reason = (str(error).strip().splitlines() or [""])[-1]
        answer = {"failure": f"{type(error).__name__}: {reason}"}
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
