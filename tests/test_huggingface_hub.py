"""Assumptions of `qwchat.store.hub` about the hub's client."""

from __future__ import annotations

import inspect

from huggingface_hub import constants, file_download


def test_downloads_arrive_in_pieces_of_the_size_that_is_set() -> None:
    """Check the constant with which `qwchat.store.hub` shortens the piece that a broken connection loses."""
    assert isinstance(constants.DOWNLOAD_CHUNK_SIZE, int)
    assert "constants.DOWNLOAD_CHUNK_SIZE" in inspect.getsource(file_download.http_get)


def test_a_download_resumes_at_a_position() -> None:
    parameters = inspect.signature(file_download.http_get).parameters
    assert {"url", "temp_file", "resume_size", "headers", "expected_size"} <= set(parameters)
