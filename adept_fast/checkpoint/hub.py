"""Checkpoints on the Hugging Face hub: found in the local cache, or downloaded into it."""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from adept_fast.checkpoint.base import CheckpointError
from adept_fast.checkpoint.hub_errors import HubUnavailableError, download_errors, listing_errors
from adept_fast.checkpoint.hub_files import (
    COMMIT,
    DEFAULT_REVISION,
    SMALL_FILES,
    cached_file,
    cached_snapshot,
    choose_weights,
    is_index,
    shards_of,
)
from adept_fast.checkpoint.huggingface import CONFIG_FILE
from adept_fast.config import PersimmonConfig

_HUB_ID = re.compile(r"\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
_MAX_FILES = 10_000  # of a repository
_MAX_SMALL_BYTES = 2**28  # of a file that holds no weights
_MAX_REVISION_CHARACTERS = 250


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a repository; ``path`` is its directory in the local cache, with all needed files."""

    hub_id: str
    revision: str
    commit: str
    path: Path


def is_hub_id(text: str) -> bool:
    """Whether the text has the form ``owner/name`` that the hub allows."""
    return (
        _HUB_ID.fullmatch(text) is not None
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )


def fetch_snapshot(
    hub_id: str,
    revision: str | None = None,
    *,
    tokenizer: bool = True,
    progress: bool = True,
    token: str | bool | None = None,
) -> HubSnapshot:
    """The snapshot of a revision, whose missing files are downloaded first.

    If the hub does not answer, or ``HF_HUB_OFFLINE`` forbids requests, this is the complete snapshot in the
    cache.

    Args:
        revision: a branch, a tag or a commit; None for ``main``.
        tokenizer: whether a repository without one is refused.
        progress: show progress bars on stderr.
        token: of the hub; None for the stored one, False for none.

    Raises CheckpointError, and ConfigError for another architecture, before its weights are downloaded.
    """
    revision = DEFAULT_REVISION if revision is None else revision
    _check_library(hub_id)
    _check_endpoint()
    _check_revision(hub_id, revision)
    try:
        commit = _commit_of(hub_id, revision, token)
    except HubUnavailableError as error:
        path = cached_snapshot(hub_id, revision, error.why, tokenizer=tokenizer)
        if path is None:
            raise
        if not error.offline:
            warnings.warn(f"{error}; commit {path.name} in the cache is used", stacklevel=2)
        return HubSnapshot(hub_id, revision, path.name, path)
    with _progress_bars(progress):
        path = commit.snapshot(revision, tokenizer=tokenizer)
    return HubSnapshot(hub_id, revision, commit.commit, path)


def fetch_config(hub_id: str, revision: str | None = None, *, token: str | bool | None = None) -> Path:
    """The ``config.json`` of a revision, without its weights; arguments and errors of ``fetch_snapshot``."""
    revision = DEFAULT_REVISION if revision is None else revision
    _check_library(hub_id)
    _check_endpoint()
    _check_revision(hub_id, revision)
    try:
        return _commit_of(hub_id, revision, token).config()
    except HubUnavailableError:
        if (path := cached_file(hub_id, revision, CONFIG_FILE)) is None:
            raise
        return path


def _check_library(hub_id: str) -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: there is no such file or directory here, and a hub id needs the package "
            f"huggingface_hub, which is not installed: pip install 'adept-fast[hub]'"
        ) from error


def _check_endpoint() -> None:
    from huggingface_hub import constants

    try:
        parts = urlsplit(constants.ENDPOINT)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise CheckpointError(f"HF_ENDPOINT is {constants.ENDPOINT!r}; expected the URL of a hub")


def _check_revision(hub_id: str, revision: str) -> None:
    """A branch's name becomes a path in the cache."""
    valid = (
        isinstance(revision, str)
        and revision.isprintable()
        and len(revision) <= _MAX_REVISION_CHARACTERS
        and all(part not in ("", ".", "..") for part in revision.split("/"))
    )
    if not valid:
        raise CheckpointError(
            f"{hub_id}: revision is {revision!r:.100}; expected a branch, a tag or a commit"
        )


def _commit_of(hub_id: str, revision: str, token: str | bool | None) -> _Commit:
    from huggingface_hub import HfApi, constants

    with listing_errors(hub_id, revision):
        info = HfApi(library_name="adept-fast", token=token).model_info(
            hub_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = [(file.rfilename, file.size) for file in info.siblings or ()]
        if not (isinstance(info.sha, str) and COMMIT.fullmatch(info.sha)):
            raise ValueError(f"the commit is {info.sha!r:.100}")
    if len(files) > _MAX_FILES:
        raise CheckpointError(f"{hub_id}: has {len(files)} files; expected at most {_MAX_FILES}")
    sizes = {
        name: max(size, 0) if isinstance(size, int) else 0
        for name, size in files
        if isinstance(name, str) and "/" not in name
    }
    return _Commit(hub_id, info.sha, sizes, token)


@dataclass(frozen=True)
class _Commit:
    """One commit of a repository: its id, and the files in the top folder with their sizes in bytes."""

    hub_id: str
    commit: str
    sizes: Mapping[str, int]
    token: str | bool | None = None

    def snapshot(self, revision: str, *, tokenizer: bool) -> Path:
        """The directory with all needed files. The config comes first: another architecture costs nothing."""
        weights = choose_weights(self.sizes, self.hub_id, tokenizer=tokenizer)
        config = self.config()
        for name in sorted(SMALL_FILES & self.sizes.keys() - {CONFIG_FILE}):
            self._small_file(name)
        needed = [weights]
        if is_index(weights):
            needed = shards_of(self._small_file(weights), self.sizes, self.hub_id)
        self._check_space(needed)
        for name in needed:
            self._file(name, self.commit)
        if cached_file(self.hub_id, revision, CONFIG_FILE) != config:
            # The cache records the revision's commit last, so that offline use finds complete snapshots only.
            self._file(CONFIG_FILE, revision)
        return config.parent

    def config(self) -> Path:
        """The checked ``config.json``."""
        if CONFIG_FILE not in self.sizes:
            raise CheckpointError(
                f"{self.hub_id}: {CONFIG_FILE} is missing; expected a checkpoint in Hugging Face's format"
            )
        path = self._small_file(CONFIG_FILE)
        PersimmonConfig.from_json(path)
        return path

    def _small_file(self, name: str) -> Path:
        if self.sizes[name] > _MAX_SMALL_BYTES:
            raise CheckpointError(
                f"{self.hub_id}: {name} has {self.sizes[name]} bytes; expected at most {_MAX_SMALL_BYTES}"
            )
        return self._file(name, self.commit)

    def _file(self, name: str, revision: str) -> Path:
        from huggingface_hub import hf_hub_download

        with download_errors(self.hub_id, revision, name):
            own = {"library_name": "adept-fast", "token": self.token}
            path = Path(hf_hub_download(self.hub_id, name, revision=revision, **own))
        if path.parent.name != self.commit:
            raise CheckpointError(
                f"{self.hub_id}: {name} is of commit {path.parent.name}, and the others of "
                f"{self.commit}; expected one commit, so try again"
            )
        return path

    def _check_space(self, names: list[str]) -> None:
        from huggingface_hub import constants

        needed = sum(self.sizes[name] for name in names if not cached_file(self.hub_id, self.commit, name))
        cache = Path(constants.HF_HUB_CACHE)
        # huggingface_hub before version 2 keeps partial downloads, which count.
        blobs = cache / f"models--{self.hub_id.replace('/', '--')}" / "blobs"
        arrived = sum(partly.stat().st_size for partly in blobs.glob("*.incomplete"))
        free = shutil.disk_usage(blobs if blobs.is_dir() else cache).free
        if free + arrived < needed:
            raise CheckpointError(
                f"{self.hub_id}: needs {needed / 1e9:.2f} GB of disk space in the cache {cache}; "
                f"{free / 1e9:.2f} GB are free (HF_HOME moves it)"
            )


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Without ``shown``, huggingface_hub shows no bars meanwhile, in any thread."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
