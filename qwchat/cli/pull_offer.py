"""Offer to pull a model of the catalogue that was asked for and is not on this machine."""

from __future__ import annotations

from quant.families import parameter_count
from quant.presets import DEFAULT_PRESET
from quant.units import data_size
from qwchat.cli.confirmation import confirm
from qwchat.cli.pull import pull_model
from qwchat.cli.streams import Streams, stdin_is_terminal

_BF16_BYTES = 2


def offer_to_pull(name: str, streams: Streams) -> bool:
    """Ask whether to pull a model, and pull it. Without a terminal, or for other names, nothing is asked.

    Returns:
        Whether the model was pulled.

    Raises:
        QwchatError, QuantError: the pull failed.
    """
    from qwchat.store.catalogue import find_entry

    entry = find_entry(name)
    if entry is None or streams.screen.quiet or not stdin_is_terminal() or not streams.screen.styling.terminal:
        return False
    download = data_size(_BF16_BYTES * parameter_count(entry.config))
    licence = f"licence {entry.licence}"
    if not confirm(streams, f"{entry.name} is not on this machine. Download {download} ({licence}) and convert it?"):
        return False
    pull_model(entry.name, DEFAULT_PRESET, streams)
    return True
