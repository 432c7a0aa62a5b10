"""One file from the network to disk: resumed where it was cut, checked before it gets its name.

What has arrived lies in `<name>.part`, and `<name>.part.json` says of which version of which address it is the beginning.
A cut, stalled or busy connection is tried again; what cannot get better by trying again is an InputError.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import amif_lib
from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.data.manifests import Download

TIMEOUT = (10.0, 60.0)  # seconds: to connect, and between two pieces that arrive
ATTEMPTS = 6  # in a row that bring nothing new
WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the first new attempt, doubled each time, and at most
CHUNK = 1 << 16
BUSY = (408, 425, 429, 500, 502, 503, 504)


class _Again(Exception):
    """An attempt that failed in a way that the next one may not; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def fetch(source: Download, target: Path) -> dict[str, Any]:
    """Fetch a file to `target`, which must not exist; returns its `url, revision, bytes, sha256`.

    Raises:
        InputError: no such file, no permission, disk full, another size or checksum than the manifest's, or no
            connection after `ATTEMPTS` attempts; names the file, the address and what to do. What has arrived is kept
            and the next call goes on from there, except where it is wrong: that is set aside as `<name>.rejected`.
    """
    part = part_of(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _beside(target, ".rejected").unlink(missing_ok=True)
        revision = source.revision
        if source.kind == "huggingface":
            revision = _from_hub(source, target, part)
        else:
            _from_address(source, target, part)
        size = part.stat().st_size
        if size > 1e9:
            print(f"  {target.name}: computing its checksum", flush=True)
        digest = manifests.sha256(part)
        if source.bytes and size != source.bytes:
            raise reject(part, target, f"{size} bytes from {source.url}, expected {source.bytes}")
        if source.sha256 and digest != source.sha256:
            raise reject(part, target, f"sha256 of what {source.url} gave is {digest}, expected {source.sha256}")
        part.replace(target)
        _state(part).unlink(missing_ok=True)
    return {"url": source.url, "revision": revision, "bytes": size, "sha256": digest}


def part_of(target: Path) -> Path:
    """Where a file grows until it is whole."""
    return _beside(target, ".part")


def reject(path: Path, target: Path, why: str) -> InputError:
    """Set a wrong file aside as `<target>.rejected` and return the error that says so."""
    aside = _beside(target, ".rejected")
    path.replace(aside)
    _state(part_of(target)).unlink(missing_ok=True)
    return InputError(
        f"{paths.shown(target)}: {why}; set aside as {aside.name}. Run it again; if it is the same once more, the "
        "publisher has changed the file: see the set's homepage, or fetch it by hand and put it there"
    )


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what goes wrong on the disk into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{paths.shown(target)}: the disk is full; free some space, or set DATA_ROOT to a larger disk, and run it "
                "again: what has arrived is kept"
            ) from None
        raise InputError(
            f"{paths.shown(target)}: cannot be written ({error.strerror or error}); set DATA_ROOT to a folder that you "
            "may write to"
        ) from None


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _state(part: Path) -> Path:
    return _beside(part, ".json")


# --- HTTP ----------------------------------------------------------------------------------------------------------


def _from_address(source: Download, target: Path, part: Path) -> None:
    """Fill `part`, in as many attempts as it takes."""
    import requests

    failures, most = 0, _size(part)
    with requests.Session() as session:
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": f"amif-kit/{amif_lib.__version__}"})
        while True:
            try:
                return _attempt(session, source, target, part)
            except _Again as error:
                failures = 0 if _size(part) > most else failures + 1
                most = max(most, _size(part))
                if failures >= ATTEMPTS:
                    raise InputError(
                        f"{paths.shown(target)}: {source.url}: {error}, {ATTEMPTS} times in a row; check the network (a "
                        "proxy is set by HTTPS_PROXY) and run it again: what has arrived is kept"
                    ) from None
                wait = min(max(WAIT * 2 ** max(0, failures - 1), error.wait), LONGEST_WAIT)
                print(f"  {target.name}: {error}; trying again in {wait:.0f} s", flush=True)
                time.sleep(wait)


def _attempt(session: Any, source: Download, target: Path, part: Path) -> None:
    """One request; returns when `part` is whole, raises `_Again` when another request may complete it."""
    import requests

    state = _read_state(part, source)
    have = _size(part) if state else 0
    if have and have == state["total"]:
        return  # whole, and only not checked yet
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := state["etag"] if _strong(state["etag"]) else state["modified"]:
            headers["If-Range"] = validator  # a changed file is then sent whole
    try:
        with session.get(source.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416 or (answer.status_code == 206 and not _continues(answer, state, have)):
                _state(part).unlink(missing_ok=True)  # the file has changed, or the server counts otherwise
                if not have:
                    raise InputError(f"{source.url}: answered {answer.status_code} though nothing was asked of it")
                raise _Again("the file has changed since it was cut; starting from zero")
            _refuse(answer, source, target)
            if answer.status_code != 206:
                have = 0
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else source.bytes
            _expect(total if length.isdigit() else 0, have, source, target, part)
            if not have:
                part.unlink(missing_ok=True)  # first, so that the state never speaks of another version's bytes
                found = {"etag": answer.headers.get("ETag", ""), "modified": answer.headers.get("Last-Modified", "")}
                _state(part).write_text(json.dumps({"url": source.url, "total": total, **found}), encoding="utf-8")
            _receive(answer, part, have, total)
    except (
        requests.exceptions.SSLError,
        requests.exceptions.TooManyRedirects,
        requests.exceptions.InvalidURL,
    ) as error:
        raise InputError(f"{paths.shown(target)}: {source.url}: {_plain(error)}; not fetched") from None
    except (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise InputError(f"{paths.shown(target)}: {source.url!r} is no http address; mend the manifest") from None
    except requests.exceptions.RequestException as error:
        raise _Again(f"the connection was refused, cut or stalled ({type(error).__name__})") from None
    if total and _size(part) < total:  # HTTP/1.0, which ends a file by hanging up
        raise _Again("the connection was cut")


def _receive(answer: Any, part: Path, have: int, total: int) -> None:
    bar = progress.bar(max(1, total >> 20), f"{part.stem} (MiB)", show=bool(total))
    bar.step(have >> 20)
    done = have
    try:
        with part.open("ab" if have else "wb") as file:
            for block in answer.iter_content(CHUNK):
                file.write(block)
                bar.step(((done + len(block)) >> 20) - (done >> 20))
                done += len(block)
                if total and done > total:
                    _state(part).unlink(missing_ok=True)
                    raise _Again("more arrived than was announced; starting from zero")
    finally:
        bar.close()


def _continues(answer: Any, state: dict[str, Any], have: int) -> bool:
    """Whether a partial answer is the rest of what `part` holds the beginning of."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not have or not found or int(found[1]) != have:
        return False
    etag, modified = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
    same = found[2] in ("*", str(state["total"])) or not state["total"]
    return same and etag in ("", state["etag"]) and (bool(etag) or modified in ("", state["modified"]))


def _refuse(answer: Any, source: Download, target: Path) -> None:
    """Raise for an answer that is not the file."""
    code = answer.status_code
    if code in BUSY:
        asked = answer.headers.get("Retry-After", "")
        raise _Again(f"the server is busy (HTTP {code})", float(asked) if asked.isdigit() else 0.0)
    where = f"{paths.shown(target)}: {source.url}: HTTP {code}"
    by_hand = f"fetch the file by hand and put it there; data_manifests/ names the set's homepage ({answer.reason})"
    if code in (404, 410):
        raise InputError(f"{where}: there is no such file any more; {by_hand}")
    if code in (401, 403):
        raise InputError(f"{where}: the server does not give it to everyone; {by_hand}")
    if code not in (200, 206):
        raise InputError(f"{where}; {by_hand}")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InputError(f"{where}: sent compressed though that was not asked for; {by_hand}")
    if "text/html" in answer.headers.get("Content-Type", "") and target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{where}: a web page instead of the file, perhaps a form to fill in; {by_hand}")


def _expect(total: int, have: int, source: Download, target: Path, part: Path) -> None:
    """Compare the size that the server announces (0: none) with the manifest's and with the disk, before it is sent."""
    if total and source.bytes and total != source.bytes:
        raise InputError(
            f"{paths.shown(target)}: {source.url} has {total} bytes, the manifest expects {source.bytes}: another "
            "version; nothing was fetched. See the set's homepage, or mend the manifest"
        )
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise InputError(
            f"{paths.shown(target)}: {(total - have) / 1e9:.1f} GB to come, {free / 1e9:.1f} GB free; set DATA_ROOT to a "
            "larger disk"
        )


def _read_state(part: Path, source: Download) -> dict[str, Any]:
    """What `part` is the beginning of; empty where it cannot be continued and has to start from zero."""
    try:
        state = json.loads(_state(part).read_text(encoding="utf-8"))
        known = state["url"] == source.url and (state["etag"] or state["modified"] or source.sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return state if known else {}


def _strong(etag: str) -> bool:
    return bool(etag) and not etag.startswith("W/")  # RFC 9110, 13.1.5: a weak one says nothing about bytes


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


# --- Hugging Face hub ----------------------------------------------------------------------------------------------


def _from_hub(source: Download, target: Path, part: Path) -> str:
    """Fill `part` from a data repository of the hub, whose client resumes by itself; returns the commit."""
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise InputError(f"{paths.shown(target)}: the package huggingface_hub is not installed; run make env") from None

    staging = _beside(target, ".hub")
    where = f"{source.url}, file {source.file}, on the hub"
    try:
        revision = source.revision
        if not revision:
            revision = HfApi().dataset_info(source.url).sha or ""
            print(f"  {target.name}: the manifest pins no revision of {source.url}; taking {revision[:12]}", flush=True)
        found = hf_hub_download(source.url, source.file, repo_type="dataset", revision=revision, local_dir=staging)
    except Exception as error:  # its many kinds all mean that the file did not come; only the disk's are told apart
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise InputError(
            f"{paths.shown(target)}: {where}: {type(error).__name__} ({_plain(error)}); check the network and "
            "HF_HUB_OFFLINE, or fetch it by hand and put it there"
        ) from None
    Path(found).replace(part)
    shutil.rmtree(staging)
    return revision
