"""One measurement in a process of its own: `worker.py REQUEST RESULT`, both JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any


def run_system(
    *, system: str, job: dict[str, str], folder: str, warmup: str, output: str
) -> dict[str, float]:
    """Prepare a system, let it do the job on the pictures of the warm-up, then time it.

    Returns:
        `start_up_s`: imports and loading; `seconds`: from the first picture to the last row.
    """
    from limits import LIMITS, LOADERS
    from systems import PEERS, Job, open_tltools

    systems = {"tltools": open_tltools, **PEERS, **LIMITS, **LOADERS}
    start = time.perf_counter()
    work = systems[system](Job(**job))
    start_up_s = time.perf_counter() - start
    if warmup:
        work(Path(warmup), Path(output))
    start = time.perf_counter()
    ready = work(Path(folder), Path(output))
    end = time.perf_counter()
    return {"start_up_s": start_up_s, "seconds": end - (ready or start)}


def _run(request: dict[str, Any]) -> Any:
    task = request.pop("task")
    if task == "run_system":
        return run_system(**request)
    import processes

    return getattr(processes, task)(**request)


def main() -> None:
    """Answer the request; an error of any kind is an answer too."""
    request, result = sys.argv[1:]
    try:
        answer = {"result": _run(json.loads(request))}
    except Exception as error:
        error = getattr(error, "cause", None) or error  # Ray's own names what happened there
        # The last line: those before it are the traceback of another process, where there is one.
        reason = (str(error).strip().splitlines() or [""])[-1]
        answer = {"failure": f"{type(error).__name__}: {reason}"}
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
