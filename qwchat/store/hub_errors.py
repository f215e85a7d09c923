"""Errors of the hub's client as errors of qwchat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qwchat.errors import HubError, ModelError


@contextmanager
def translated(name: str, revision: str, file: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's client into one line of ours.

    Args:
        name: the repository that is asked for.
        revision: its revision.
        file: the file that is asked for, if any.

    Raises:
        ModelError: the repository cannot be used.
        HubError: the hub does not answer, or not with what it announced.
        OSError: errors of files, unchanged.
    """
    import httpx2
    from huggingface_hub import errors

    where = f"{name}@{revision}" if file is None else f"{name}: {file}"
    try:
        yield
    except errors.GatedRepoError as error:
        from huggingface_hub.constants import ENDPOINT

        raise ModelError(
            f"{name} asks for consent to its licence: accept it at {ENDPOINT}/{name}, then set HF_TOKEN and pull again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"there is no repository {name}, or HF_TOKEN does not open it: check the name") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision}: give a branch, a tag or a commit") from error
    except errors.EntryNotFoundError as error:
        raise ModelError(f"{where} is not there any more: pull again") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set: unset it to pull a model") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelError(f"{where}: the hub refuses HF_TOKEN: set a valid token, or unset it") from error
        raise HubError(f"{where}: the hub answers with status {status}; pull again later to resume") from error
    except httpx2.HTTPError as error:
        raise HubError(f"{where}: the connection failed ({type(error).__name__}); pull again to resume") from error
    except OSError as error:
        if isinstance(next(iter(error.args), None), int):  # Of the operating system.
            raise
        # The length is not what was announced.
        raise HubError(f"{where}: {str(error).splitlines()[0][:200]}; pull again to resume") from error
