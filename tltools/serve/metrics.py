"""What a service counts, in the text format that Prometheus reads.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLASSIFY = "/classify"
"""Path of the requests for labels."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the classes of the histogram of latencies, in seconds."""
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the classes of the histogram of batch sizes."""


class Histogram:
    """Counts values by size; to be used by one thread at a time."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Take the upper bounds of its classes, ascending."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Yield its lines."""
        total = 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{"+Inf" if bound is None else f"{bound:g}"}"}} {total}'
        yield f"{name}_sum {self._sum:.6g}"
        yield f"{name}_count {total}"


class Metrics:
    """The counts of a service since its start."""

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        """Start at zero.

        Args:
            gauges: Values of the moment: a description and a function, by name.
        """
        self._gauges = gauges
        self._requests: Counter[tuple[str, int]] = Counter()
        self._images: Counter[str] = Counter({"classified": 0, "failed": 0})
        self._seconds = Histogram(SECONDS)
        self._batches = Histogram(IMAGES)
        self._lock = threading.Lock()

    @property
    def num_requests(self) -> int:
        """Number of requests for labels that were answered, with whatever status."""
        return sum(count for (path, _), count in self._requests.items() if path == CLASSIFY)

    @property
    def num_errors(self) -> int:
        """Number of requests for labels whose answer is an error (400 and above)."""
        return sum(
            count
            for (path, status), count in self._requests.items()
            if path == CLASSIFY and status >= 400
        )

    @property
    def num_classified(self) -> int:
        """Number of images that got a label."""
        return self._images["classified"]

    @property
    def num_failed(self) -> int:
        """Number of images that got an error."""
        return self._images["failed"]

    def add_request(self, path: str, status: int, seconds: float | None) -> None:
        """Count an answer.

        Args:
            path: One of the service's own paths, or a common name for all others.
            status: HTTP status.
            seconds: Time from the request's head to the end of the answer; None: no latency.
        """
        self._requests[path, status] += 1
        if seconds is not None:
            self._seconds.add(seconds)

    def add_image(self, *, failed: bool) -> None:
        """Count an image."""
        self._images["failed" if failed else "classified"] += 1

    def add_batch(self, num_images: int) -> None:
        """Count a call of the model; from any thread."""
        with self._lock:
            self._batches.add(num_images)

    def text(self) -> str:
        """Return everything as text."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        name = "tltools_requests_total"
        yield from _head(name, "counter", "Answered requests by path and HTTP status.")
        for (path, status), count in sorted(self._requests.items()):
            yield f'{name}{{path="{path}",status="{status}"}} {count}'
        name = "tltools_images_total"
        yield from _head(name, "counter", "Images by outcome.")
        for outcome, count in self._images.items():
            yield f'{name}{{outcome="{outcome}"}} {count}'
        name = "tltools_request_seconds"
        yield from _head(name, "histogram", "Seconds from a request's head to its answer.")
        yield from self._seconds.lines(name)
        name = "tltools_batch_images"
        yield from _head(name, "histogram", "Images in one call of the model.")
        with self._lock:
            yield from list(self._batches.lines(name))
        for name, (text, value) in self._gauges.items():
            yield from _head(name, "gauge", text)
            yield f"{name} {value():g}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
