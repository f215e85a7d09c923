"""Open a model on the server that the setting `endpoint` names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quant.wording import ArgumentMessage, SuggestedArgument
from qwchat.cli.reply_models import RemoteReplyModel
from qwchat.cli.streams import Streams
from qwchat.errors import EndpointError, ModelError, UsageError
from qwchat.settings.endpoint import KEY_VARIABLE, Endpoint
from qwchat.settings.resolve import BUILT_IN, Settings
from qwchat.settings.specs import closest_match

if TYPE_CHECKING:
    from qwchat.remote.client import EndpointClient, ServerModel

_MAX_NAMED = 8


def configured_endpoint(settings: Settings) -> Endpoint | None:
    """Return the endpoint that the settings name, or None."""
    url = settings["endpoint"]
    return None if url is None else Endpoint.parse(url, settings.origin("endpoint"))


def open_configured(settings: Settings, streams: Streams) -> RemoteReplyModel:
    """Open the model on the endpoint of `settings`.

    Raises:
        UsageError: the key cannot be read, or would travel unencrypted.
        EndpointError, ModelError: the server does not answer, or has no such model.
    """
    endpoint = configured_endpoint(settings)
    assert endpoint is not None, "the settings name an endpoint"
    return open_endpoint(endpoint, _model_name(settings), settings, streams)


def open_endpoint(endpoint: Endpoint, name: str | None, settings: Settings, streams: Streams) -> RemoteReplyModel:
    """Open the model `name` on a server, or its first one. Raises what `open_configured` raises."""
    return open_with(connect(endpoint, settings, streams), name, settings, streams)


def open_with(client: EndpointClient, name: str | None, settings: Settings, streams: Streams) -> RemoteReplyModel:
    """Open the model `name` on the server of `client`, or its first one. Raises what `open_configured` raises."""
    from qwchat.remote.model import RemoteModel

    chosen = choose_model(client.endpoint, client.models(), name, streams)
    model = RemoteModel(client, chosen, settings["ctx"])
    if not model.reports_context and settings["ctx"] is None:
        notice = f"{model.host} does not say how long its context window is: assuming {model.context:,} tokens, which "
        streams.screen.notice(ArgumentMessage(notice, SuggestedArgument("context", ...), " changes"))
    identity = f"{client.endpoint.url} {chosen.name}"
    return RemoteReplyModel(model, client, hashlib.sha256(identity.encode()).hexdigest())


def connect(endpoint: Endpoint, settings: Settings, streams: Streams) -> EndpointClient:
    """Return a client of the server, with the key for it. Raises UsageError."""
    from qwchat.remote.client import EndpointClient
    from qwchat.settings.endpoint_key import read_key

    key = read_key(settings["endpoint-key-file"])
    configured = configured_endpoint(settings)
    if key is not None and configured is not None and configured.origin != endpoint.origin:
        streams.screen.notice(f"the key from {key.source} is for {configured.name} and is not sent to {endpoint.name}")
        key = None
    if not endpoint.is_encrypted:
        if key is not None:
            raise UsageError(
                f"the key from {key.source} would travel unencrypted to {endpoint.name}: use https, or a tunnel to a "
                f"port of this machine; without {KEY_VARIABLE} and the file, no key is sent"
            )
        streams.screen.notice(f"the conversation travels unencrypted to {endpoint.name}")
    return EndpointClient(endpoint, key, settings["endpoint-timeout"], streams.screen.notice)


def choose_model(
    endpoint: Endpoint, models: Sequence[ServerModel] | None, name: str | None, streams: Streams
) -> ServerModel:
    """Return the model called `name`, or the first one.

    Args:
        endpoint: the server.
        models: its models; None if it does not list them.
        name: the model to choose; None for any.
        streams: where a choice among several is reported.

    Raises:
        ModelError: there is no such model.
        EndpointError: the server lists no models and `name` is None.
    """
    from qwchat.remote.client import ServerModel

    give = SuggestedArgument("model", "NAME")
    if models is None or (not models and name is not None):
        if name is None:
            raise EndpointError(ArgumentMessage(f"{endpoint.name} does not list its models: give ", give))
        return ServerModel(name)
    if not models:
        raise EndpointError(f"{endpoint.name} has no model: load one there")
    if name is None:
        if len(models) > 1:
            among = f"using {models[0].name}, the first of {len(models)} models at {endpoint.name}; "
            streams.screen.notice(ArgumentMessage(among, give, " chooses another"))
        return models[0]
    for model in models:
        if model.name in (name, f"{name}:latest"):
            return model
    names = [model.name for model in models]
    close = closest_match(name, names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    known = f"did you mean {close}?" if close else f"choose from {', '.join(names[:_MAX_NAMED])}{more}"
    here = ArgumentMessage("; for a model on this machine, give ", SuggestedArgument("endpoint", "none"))
    raise ModelError(ArgumentMessage(f"{endpoint.name} has no model {name!r}: {known}", here))


def _model_name(settings: Settings) -> str | None:
    """Return the model to use on the endpoint; None unless it was set beside the endpoint, or above it."""
    name, rank = settings["model"], _rank(settings.origin("model"))
    return str(name) if rank >= max(1, _rank(settings.origin("endpoint"))) else None


def _rank(origin: str) -> int:
    """Return the precedence of the source of a setting: flag, variable, file or persona, built in."""
    if origin == BUILT_IN:
        return 0
    return 3 if origin.startswith("--") else 2 if origin.startswith("QWCHAT_") else 1
