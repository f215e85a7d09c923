"""The application: its endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qwchat.errors import QwchatError
from qwchat.server.api_errors import ApiError
from qwchat.server.chat_body import read_chat
from qwchat.server.completion_body import read_completion, read_detokenize, read_tokenize
from qwchat.server.guards import AccessRules, GuardedApp, error_response
from qwchat.server.replies import ApiResponse, StreamedReply, whole_reply
from qwchat.server.reply_fields import ReplySpec
from qwchat.server.reply_formats import ChatFormat, CompletionFormat, ReplyFormat, ReplyHead
from qwchat.server.service import Service

_METRICS_TYPE = "text/plain; version=0.0.4"
_MESSAGES = {
    HTTPStatus.NOT_FOUND: "there is no such path: see the guide of this server",
    HTTPStatus.METHOD_NOT_ALLOWED: "this path has another method",
}


def make_app(service: Service, rules: AccessRules, log: Callable[[str], None]) -> ASGIApp:
    """Return the application.

    Args:
        service: the model with its queue.
        rules: who may use it.
        log: called with a line per request; it gets neither prompts nor replies.
    """
    endpoints = Endpoints(service)
    routes = [
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        Route("/v1/completions", endpoints.completion, methods=["POST"]),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/tokenize", endpoints.tokenize, methods=["POST"]),
        Route("/detokenize", endpoints.detokenize, methods=["POST"]),
        Route("/health", endpoints.health),
        Route("/metrics", endpoints.metrics),
    ]
    # Starlette raises what the last one answers again, so that `GuardedApp` logs it.
    handlers = {
        ApiError: _answer_error,
        QwchatError: _answer_error,
        HTTPException: _answer_http_error,
        Exception: _answer_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]  # Keys of two classes.
    app.router.redirect_slashes = False
    paths = frozenset(route.path for route in routes if "{" not in route.path)
    return GuardedApp(app, rules, service.metrics, paths, log)


class Endpoints:
    """The endpoints of a server.

    Args:
        service: the model with its queue.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._started = service, int(time.time())

    async def chat(self, request: Request) -> Response:
        """Generate a chat reply."""
        service = self._service
        spec = await service.read(
            request, lambda fields: read_chat(fields, service.model, service.names, service.limits, service.loop_guard)
        )
        return await self._reply(request, spec, ChatFormat(self._head(spec)), "messages")

    async def completion(self, request: Request) -> Response:
        """Continue a text."""
        service = self._service
        spec = await service.read(
            request,
            lambda fields: read_completion(fields, service.model, service.names, service.limits, service.loop_guard),
        )
        return await self._reply(request, spec, CompletionFormat(self._head(spec)), "prompt")

    def _head(self, spec: ReplySpec) -> ReplyHead:
        model = self._service.model
        return ReplyHead(self._service.name, model.folder.fingerprint, spec, model.tokenizer.token_bytes)

    async def _reply(self, request: Request, spec: ReplySpec, reply_format: ReplyFormat, param: str) -> Response:
        service = self._service
        job = service.submit(spec, param)
        if spec.streaming:
            return StreamedReply(job, reply_format, service.discard, service.limits.comment_seconds)
        return await whole_reply(job, reply_format, request.receive, service.discard)

    async def models(self, request: Request) -> Response:
        """List the model."""
        return ApiResponse({"object": "list", "data": [self._model_fields()]})

    async def model(self, request: Request) -> Response:
        """Describe the model."""
        if request.path_params["name"] not in self._service.names:
            raise ApiError(
                404, f"there is no such model: this server has {self._service.name!r}", code="model_not_found"
            )
        return ApiResponse(self._model_fields())

    def _model_fields(self) -> dict[str, object]:
        model = self._service.model
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._started,
            "owned_by": "qwchat",
            "max_model_len": model.context,
            "thinks": model.thinks,
            "fingerprint": model.folder.fingerprint,
        }

    async def tokenize(self, request: Request) -> Response:
        """Return the token ids of a text or a conversation."""
        service = self._service
        ids = await service.read(request, lambda fields: read_tokenize(fields, service.model, service.limits))
        return ApiResponse({"tokens": ids, "count": len(ids), "max_model_len": service.model.context})

    async def detokenize(self, request: Request) -> Response:
        """Return the text of token ids."""
        service = self._service
        text = await service.read(request, lambda fields: read_detokenize(fields, service.model, service.limits))
        return ApiResponse({"prompt": text, "content": text})

    async def health(self, request: Request) -> Response:
        """Tell that the server accepts requests."""
        if self._service.worker.closed:
            raise ApiError(503, "the server is shutting down")
        return ApiResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Return the counters."""
        return PlainTextResponse(self._service.metrics.page(), media_type=_METRICS_TYPE)


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    status = HTTPStatus(error.status_code)
    message = _MESSAGES.get(status, status.phrase)
    allowed = {"Allow": error.headers["Allow"]} if error.headers and "Allow" in error.headers else {}
    return error_response(ApiError(status, message, headers=allowed))
