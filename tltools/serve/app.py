"""The routes of the service: classify, health, metrics, the page, and OpenAPI."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from tltools import __version__
from tltools.classify import Prediction
from tltools.classify.output_formats.json_lines import JsonLinesCodec
from tltools.data.image_ref import Content, ImageRef
from tltools.errors import TltoolsError
from tltools.runtime import Predictor
from tltools.runtime.live import LiveRunner
from tltools.serve.bodies import FORM, Capacity, Upload, read_uploads, without_name
from tltools.serve.front import Front
from tltools.serve.metrics import CLASSIFY, CONTENT_TYPE, Metrics
from tltools.serve.refusals import RefusedError, busy, error_response
from tltools.serve.settings import ServeSettings

JSON = "application/json"
ROW: dict[str, Any] = {
    "type": "object",
    "required": ["path", "label", "confidence", "probabilities", "error"],
    "properties": {
        "path": {"type": "string", "description": "Name of the file in the form."},
        "label": {"type": ["string", "null"], "description": "A class, uncertain or unknown."},
        "confidence": {"type": ["number", "null"], "description": "The label's probability."},
        "probabilities": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        "error": {"type": ["string", "null"], "description": "Why there is no label."},
        "distance": {
            "type": ["number", "null"],
            "description": "How far the image is from the training images; optional.",
        },
    },
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODIES = {
    FORM: {"schema": {"type": "object", "properties": {"file": _FILES}, "required": ["file"]}},
    "image/*": {"schema": {"type": "string", "format": "binary"}},
}
_REASONS = {
    400: "The request has no image, or its form is malformed.",
    403: "A page of another site sent the request.",
    408: "The request took too long to arrive.",
    413: "The image is too large.",
    503: "The service is busy, or its model fails; Retry-After says when to try again.",
}


_ONE_OR_SEVERAL = (
    "Send an image as the body, or as a file in a form. One image, in a form too, is answered with "
    "an object, its row; several files in a form with an array of rows, in their order. A client "
    "that sends any number of files in a form must expect both."
)


def _said(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": schema}}}


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _said(
        "One image: an object, its row. Several files in a form: an array of rows, in their order, "
        "a bad one with its error.",
        {"oneOf": [ROW, {"type": "array", "items": ROW}]},
    ),
    422: _said("The only image cannot be classified; the reason is in its row.", ROW),
    **{status: _said(text, ERROR) for status, text in _REASONS.items()},
}


class Service:
    """Answers requests; `front` is the application that a server runs."""

    def __init__(
        self,
        settings: ServeSettings,
        model: Predictor,
        runner: LiveRunner[Prediction],
        metrics: Metrics,
        capacity: Capacity,
        tell: Callable[[str], None],
    ) -> None:
        """Prepare the service.

        Args:
            settings: Its settings.
            model: The opened export.
            runner: Classifies images; started.
            metrics: Counts what happens.
            capacity: What may be held at a time.
            tell: Called with a line for each failure of the service itself.
        """
        self._settings = settings
        self._model = model
        self._runner = runner
        self._metrics = metrics
        self._capacity = capacity
        self._tell = tell
        self._codec = JsonLinesCodec(model.card.classes, distance=settings.unknown is not None)
        self._page, self._policy = _page()
        app = FastAPI(
            title="tltools serve",
            summary="Classifies the images that it is sent.",
            version=__version__,
            docs_url=None,  # FastAPI's pages of documentation load scripts from the internet
            redoc_url=None,
        )
        self._add_routes(app)
        self.front = Front(app, metrics=metrics, is_local=settings.is_local)

    def _add_routes(self, app: FastAPI) -> None:
        app.add_exception_handler(RefusedError, _refusal)
        app.add_exception_handler(HTTPException, _http_error)
        body = {"requestBody": {"required": True, "content": _BODIES}}
        app.post(
            CLASSIFY,
            description=_ONE_OR_SEVERAL,
            responses=_ANSWERS,
            openapi_extra=body,
            response_class=Response,
        )(self.classify)
        app.get("/health", responses={503: {"description": "Cannot classify at the moment."}})(
            self.health
        )
        app.get("/metrics", response_class=Response)(self.metrics)
        app.get("/", response_class=HTMLResponse)(self.page)

    async def classify(self, request: Request) -> Response:
        """Classify an image (the body), or the files of a form."""
        self._capacity.check(1, is_read=False)
        with self._capacity.hold() as hold:
            uploads = await read_uploads(request, self._settings, hold)
            hold.add_images(len(uploads))
            predictions = await self._predict(uploads)
        for one in predictions:
            self._metrics.add_image(failed=one.error is not None)
        rows = [self._codec.encode(without_name(one)).rstrip() for one in predictions]
        if len(rows) > 1:
            return Response(b"[" + b",".join(rows) + b"]", media_type=JSON)
        return Response(rows[0], 422 if predictions[0].error else 200, media_type=JSON)

    async def _predict(self, uploads: Sequence[Upload]) -> list[Prediction]:
        """Classify images.

        Raises:
            RefusedError: If the model, the device or the workers failed.
        """
        futures = [
            asyncio.wrap_future(self._runner.submit(ImageRef(name, Content.of(data))))
            for name, data in uploads
        ]
        found = await asyncio.gather(*futures, return_exceptions=True)
        answers: list[Prediction] = []
        for one in found:
            if isinstance(one, TltoolsError):
                self._tell(f"a request failed: {one}")
                raise busy("the model failed; see the messages of the service", is_read=True)
            if isinstance(one, BaseException):
                raise one
            answers.append(one)
        return answers

    async def health(self) -> Response:
        """Return whether images can be classified, by which model, and what decides the labels."""
        failure = self._runner.failure
        card, export = self._model.card, self._model.card.export
        status = "stopping" if self.front.is_draining else "failing" if failure else "ready"
        facts = {
            "status": status,
            "ready": status == "ready",
            "model": self._settings.model.name,
            "run": card.run,
            "classes": card.classes,
            **self._decisions(),
            "format": export and export.format,
            "precision": export and export.precision,
            "device": self._model.device,
            "provider": self._model.provider,
            "version": __version__,
        }
        return JSONResponse(facts, 200 if status == "ready" else 503)

    def _decisions(self) -> dict[str, Any]:
        """Return the options in force that decide labels; null for those that are not."""
        settings = self._settings
        one = settings.threshold
        return {
            "min_confidence": settings.min_confidence,
            "threshold": one and {"class": one.class_name, "value": one.value},
            "unknown": settings.unknown,
        }

    async def metrics(self) -> Response:
        """Return counts and latencies, in the format of Prometheus."""
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def page(self) -> Response:
        """Return a page to drop images on."""
        return HTMLResponse(self._page, headers={"content-security-policy": self._policy})


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _http_error(_request: Request, error: Exception) -> Response:
    """Return errors of the framework, such as unknown paths, in the form of all others."""
    assert isinstance(error, HTTPException)
    reason = (
        f"{str(error.detail).lower()}: POST an image to {CLASSIFY}; /openapi.json describes the "
        "other paths"
    )
    return error_response(error.status_code, reason, error.headers)


def _page() -> tuple[str, str]:
    """Return the page, and a policy that lets only its own script and style run."""
    text = (files("tltools") / "serve" / "page.html").read_text(encoding="utf-8")
    script, style = (
        _digest(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0])
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
