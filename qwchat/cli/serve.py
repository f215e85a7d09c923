"""`qwchat serve`: a model behind HTTP, in the protocol of OpenAI's API."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import socket
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model, requested_model
from qwchat.cli.error_messages import error_message
from qwchat.cli.exit_codes import ExitCode, is_expected
from qwchat.cli.serve_options import ServeOptions
from qwchat.cli.startup import load_located
from qwchat.cli.streams import Streams
from qwchat.errors import ServerError, UsageError

if TYPE_CHECKING:
    from qwchat.api import Model

_PACKAGES = ("starlette", "uvicorn")
_INSTALL = "pip install 'qwchat[serve]'"


def run(options: ServeOptions, dependencies: Dependencies) -> int:
    """Serve the model until SIGINT or SIGTERM. Returns the exit code."""
    options.check()
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ServerError(f"qwchat serve needs {' and '.join(missing)}: {_INSTALL}")
    from qwchat.server.tokens import read_token

    streams, settings = Streams(quiet=options.quiet), options.settings()
    for notice in settings.notices:
        streams.screen.notice(notice)
    token = read_token(options.token_file, os.environ)
    with _bind(options) as bound:
        _check_access(options, bound, token, streams)
        located = ensure_model(options.model, dependencies, streams, settings["threads"])
        name = Path(requested_model(options.model)).name.strip(".") or located.name
        with load_located(located, settings, dependencies, streams) as model:
            signals = _serve(options, (name, located.name), model, bound, token, settings["loop-guard"], streams)
    return ExitCode.INTERRUPTED if signal.SIGINT in signals else ExitCode.OK


def _bind(options: ServeOptions) -> socket.socket:
    """Return the socket. The port is taken before the model is loaded, which may take long."""
    from qwchat.server.http_server import bind

    try:
        return bind(options.host, options.port)
    except OSError as error:
        raise _address_error(options, error) from error


def _address_error(options: ServeOptions, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return ServerError(f"port {options.port} of {options.host} is in use: choose another with --port")
    reason = error.strerror or str(error)
    return ServerError(f"cannot listen on port {options.port} of {options.host} ({reason}): change --host or --port")


def _check_access(options: ServeOptions, bound: socket.socket, token: str | None, streams: Streams) -> None:
    """Refuse to listen for other machines without a token."""
    from qwchat.server.http_server import is_loopback
    from qwchat.server.tokens import TOKEN_VARIABLE

    if is_loopback(bound):
        return
    if token is None:
        remedy = f"set {TOKEN_VARIABLE} or give --token-file"
        raise UsageError(f"--host {options.host} can be reached by other machines and needs a token: {remedy}")
    streams.screen.notice("requests and replies are not encrypted: use a trusted network or a TLS proxy")


def _serve(
    options: ServeOptions,
    names: tuple[str, str],
    model: Model,
    bound: socket.socket,
    token: str | None,
    loop_guard: int,
    streams: Streams,
) -> list[int]:
    """Serve until a signal; return the signals.

    Args:
        options: options of the command line.
        names: names of the model that clients may use; the first one is shown.
        model: the model.
        bound: the socket.
        token: bearer token of clients, if they need one.
        loop_guard: repeated tokens after which a reply ends; 0 is off.
        streams: the standard streams.
    """
    from qwchat.server.endpoints import make_app
    from qwchat.server.guards import AccessRules
    from qwchat.server.http_server import HttpServer, ending_signals, is_loopback, url_of
    from qwchat.server.metrics import Metrics
    from qwchat.server.model_worker import ModelWorker
    from qwchat.server.server_limits import ServerLimits
    from qwchat.server.service import Service

    def report(error: Exception) -> None:
        if options.debug:
            traceback.print_exception(error)
        expected = is_expected(error)
        streams.screen.error(error_message(error) if expected else f"internal error: {type(error).__name__}")

    url, limits, metrics = url_of(bound), ServerLimits(waiting=options.queue), Metrics()
    worker = ModelWorker(model, options.keep, limits.waiting, metrics, report)
    service = Service(model, names, worker, metrics, limits, loop_guard)
    rules = AccessRules(bound.getsockname()[1], limits.head_bytes, token, is_loopback(bound))
    server = HttpServer(make_app(service, rules, streams.screen.notice), bound, worker, limits, streams.screen.notice)
    try:
        with ending_signals(server.end) as signals:
            server.run(lambda: streams.screen.hint(f"serving {names[0]} at {url}/v1"))
    except OSError as error:
        raise _address_error(options, error) from error
    finally:
        service.close()
    return signals
