"""The start of a reply or a chat: streams, model and view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwchat.chat.display import Rendering
from qwchat.chat.view.colour import ColourChoice, can_rewrite
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.thoughts import ThoughtView
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.options import ReplyOptions
from qwchat.cli.reply_models import LocalReplyModel, ReplyModel
from qwchat.cli.streams import Streams
from qwchat.cli.upload_status import UploadStatus
from qwchat.errors import NotEnoughMemoryError
from qwchat.models_folder import LocatedModel
from qwchat.settings.resolve import Settings

if TYPE_CHECKING:
    from qwchat.api import Model


def open_model(options: ReplyOptions, dependencies: Dependencies, streams: Streams) -> ReplyModel:
    """Open the model on the endpoint; without one, find the model, convert it if it is a checkpoint, and load it."""
    settings = options.settings
    if settings["endpoint"] is not None:
        from qwchat.cli.open_endpoint import open_configured

        return open_configured(settings, streams)
    located = ensure_model(settings["model"], dependencies, streams, settings["threads"])
    return LocalReplyModel(located, load_located(located, settings, dependencies, streams))


def load_located(located: LocatedModel, settings: Settings, dependencies: Dependencies, streams: Streams) -> Model:
    """Load a model that was found, with the engine settings in `settings`, after a look at the free memory."""
    _warn_of_short_memory(located, settings, streams)
    with UploadStatus(located.name, streams) as progress:
        return dependencies.load(
            located.path,
            threads=settings["threads"],
            context=settings["ctx"],
            device=settings["device"],
            gpu_layers=settings["gpu-layers"],
            kv=settings["kv"],
            activations=settings["activations"],
            progress=progress,
        )


def _warn_of_short_memory(located: LocatedModel, settings: Settings, streams: Streams) -> None:
    """Warn that the weights do not fit the free memory, unless a GPU holds them.

    Raises:
        NotEnoughMemoryError: KV cache and work space do not fit either.
    """
    from qwchat.store.memory_check import check_memory

    try:
        warning = check_memory(
            located.path, settings["ctx"], settings["kv"], settings["threads"], settings["activations"]
        )
    except NotEnoughMemoryError:
        if not _fits_gpu(located, settings):
            raise
        return
    if warning and not _fits_gpu(located, settings):
        streams.screen.notice(warning)


def _fits_gpu(located: LocatedModel, settings: Settings) -> bool:
    """Return whether a GPU may run some layers of a converted model."""
    from quant.container import open_model as open_folder
    from qwchat.placement import DeviceRequest, preview

    allowed = DeviceRequest(settings["device"], settings["gpu-layers"]).allows_gpu
    return allowed and preview(open_folder(located.path), activations=settings["activations"]).gpu is not None


def open_streams(options: ReplyOptions) -> Streams:
    """Return the standard streams, after printing notices about the configuration."""
    settings = options.settings
    colour: ColourChoice = "never" if settings["plain"] else settings["color"]
    streams = Streams(colour, quiet=settings["quiet"], static=settings["plain"], figures=settings["stats"])
    for notice in options.settings.notices:
        streams.screen.notice(notice)
    return streams


def reply_view(options: ReplyOptions, streams: Streams) -> ReplyView:
    """Return the view that shows replies."""
    rendering = rendering_of(options.settings["render"], options, streams)
    return ReplyView(streams.out, streams.out_styling, rendering, live=can_rewrite(streams.out))


def thought_view(options: ReplyOptions, streams: Streams, advice: str = "") -> ThoughtView:
    """Return the view that shows thoughts; `advice`: what a chat adds to the line of a folded one."""
    return ThoughtView(streams.screen, options.settings["think"], live=streams.rewritable, advice=advice)


def rendering_of(choice: str, options: ReplyOptions, streams: Streams) -> Rendering:
    """Return how to show replies: Markdown on a terminal, unless `choice` or --plain says otherwise."""
    if choice == "plain" or (choice == "auto" and (options.settings["plain"] or not streams.out_styling.terminal)):
        return "plain"
    return "markdown"
