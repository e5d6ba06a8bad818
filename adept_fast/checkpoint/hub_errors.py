"""Turns errors of the Hugging Face hub into one sentence."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from adept_fast.checkpoint.base import CheckpointError

_KEPT = "files that have arrived are kept, so try again"
_MAX_REASON_CHARACTERS = 200
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class HubUnavailableError(CheckpointError):
    """The hub did not list a repository's files; the cached ones may suffice.

    ``offline`` is whether ``HF_HUB_OFFLINE`` forbade the request; ``why`` is a clause with the reason that
    files missing in the cache cannot be downloaded.
    """

    def __init__(self, message: str, why: str, *, offline: bool = False) -> None:
        super().__init__(message)
        self.why = why
        self.offline = offline


@contextlib.contextmanager
def listing_errors(hub_id: str, revision: str) -> Iterator[None]:
    """Raises errors of the request for a repository's files as CheckpointError.

    It is a HubUnavailableError unless the hub answers that there is no such revision.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError

    # The package of the HTTP client changed between versions; its base class is also HfHubHTTPError's.
    client_error = HfHubHTTPError.__bases__[0]
    no_listing = f"{constants.ENDPOINT} does not list its files"
    try:
        yield
    except RevisionNotFoundError as error:
        raise CheckpointError(_refused(error, hub_id, revision)) from error
    except HfHubHTTPError as error:
        raise HubUnavailableError(_refused(error, hub_id, revision), no_listing) from error
    except OfflineModeIsEnabled as error:
        raise HubUnavailableError(
            f"{hub_id}: revision {revision} is not in the cache {constants.HF_HUB_CACHE}, "
            f"and HF_HUB_OFFLINE forbids to download it",
            "HF_HUB_OFFLINE forbids to complete it",
            offline=True,
        ) from error
    except (OSError, client_error) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise CheckpointError(f"{hub_id}: {error.filename} cannot be read ({error.strerror})") from error
        raise HubUnavailableError(
            f"{hub_id}: is not in the cache, and {constants.ENDPOINT} cannot be reached ({_reason(error)})",
            no_listing,
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubUnavailableError(
            f"{hub_id}: {constants.ENDPOINT} does not answer as a hub does ({_reason(error)})", no_listing
        ) from error


@contextlib.contextmanager
def download_errors(hub_id: str, revision: str, file_name: str) -> Iterator[None]:
    """Raises errors of a download as CheckpointError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    client_error = HfHubHTTPError.__bases__[0]
    try:
        yield
    except LocalEntryNotFoundError as error:  # its cause is the hub's answer, if there was one
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise CheckpointError(_refused(cause, hub_id, revision)) from error
        raise CheckpointError(
            f"{hub_id}: {file_name} cannot be downloaded from {constants.ENDPOINT} "
            f"({_reason(cause or error)}); {_KEPT}"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: {file_name} is missing, although the repository lists it"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{_refused(error, hub_id, revision)}; {_KEPT}") from error
    except OSError as error:
        raise CheckpointError(_local(error, hub_id, file_name)) from error
    except (client_error, RuntimeError, ValueError) as error:  # a RuntimeError is hf_xet's
        raise CheckpointError(_interrupted(error, hub_id, file_name)) from error


def _refused(error: Exception, hub_id: str, revision: str) -> str:
    """The sentence for the hub's answer, a HfHubHTTPError."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return (
            f"{hub_id}: is gated; expected a token (HF_TOKEN, or hf auth login) of an account that has been "
            f"granted access at {hub}/{hub_id}"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return (
            f"{hub_id}: is neither a path here nor a public model on {hub}; "
            f"a private one needs a token (HF_TOKEN, or hf auth login)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id}: has no revision {revision!r} on {hub}; expected a branch, a tag or a commit"
    if isinstance(error, DisabledRepoError):
        return f"{hub_id}: is disabled on {hub}"
    if status == 401:
        return f"{hub_id}: {hub} refuses the token (HF_TOKEN, or that of hf auth login) with status 401"
    return f"{hub_id}: {hub} answered with status {status} ({_reason(error)})"


def _local(error: OSError, hub_id: str, file_name: str) -> str:
    """The sentence for an error of the file system, or of the connection."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    if error.errno in _FULL:
        return f"{hub_id}: no space is left for {file_name} in the cache {cache}; HF_HOME moves it"
    # A PermissionError without a number comes from hf_xet and concerns its token.
    if error.errno in _NOT_WRITABLE:
        named = error.filename or cache
        return f"{hub_id}: {named} in the cache {cache} cannot be written ({error.strerror})"
    return _interrupted(error, hub_id, file_name)


def _interrupted(error: Exception, hub_id: str, file_name: str) -> str:
    return f"{hub_id}: {file_name} was interrupted while it was downloaded ({_reason(error)}); {_KEPT}"


def _reason(error: BaseException) -> str:
    lines = str(error).split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    return (first or type(error).__name__)[:_MAX_REASON_CHARACTERS]
