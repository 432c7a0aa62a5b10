"""`make data`: fetch the data sets that are open (pooch, the hub's client), and say step by step how to get the others.

Nothing that lies in a user's folder is overwritten, and nothing half-written is left there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import exclusive, write_text
from amif_lib.data import manifests
from amif_lib.data.check import check, presence, unusable
from amif_lib.data.manifests import Download, Manifest

GB = 1e9
RETRIES = 2
TIMEOUT = (10, 60)  # seconds: to connect, and between two pieces that arrive
BROKEN = (zipfile.BadZipFile, tarfile.TarError, shutil.ReadError, zlib.error, EOFError, RuntimeError)
RESTARTS = "a plain link starts again from zero after a break; the hub's files go on where they were"
WHY = {
    "credentialed": "credentialed data, not downloaded by this kit",
    "form": "its publisher asks for a form, which this kit does not fill in",
    "per-article": "its images come from many articles, and this kit does not download them in bulk",
}


class Plan(NamedTuple):
    """What `make data` would do about one set. `wanted` has one entry per file: its addresses, official ones first."""

    manifest: Manifest
    complete: bool  # at a glance
    wanted: list[list[Download]]
    size: int  # bytes over the network, as far as they are known
    disk: int  # bytes at the worst moment, when an archive and what it holds are both there
    unknown: int  # files of unknown size


def plan(name: str) -> Plan:
    """What is to be fetched of a set, at a glance: by names and sizes, without network and without checksums."""
    manifest = manifests.load(name)
    complete = presence(name)[0] == "found"
    targets: dict[str, list[Download]] = {}
    if manifest.access.level in ("open", "per-article") and not complete:
        for source in sorted(manifest.downloads, key=lambda source: not source.official):
            targets.setdefault(source.target, []).append(source)
    wanted = [sources for sources in targets.values() if not _is_there(manifest, sources[0])]
    sizes = [sources[0].bytes or sources[0].about_bytes for sources in wanted]
    unpacked = sum(size for size, sources in zip(sizes, wanted, strict=True) if sources[0].unpack)
    return Plan(manifest, complete, wanted, sum(sizes), sum(sizes) + unpacked, sizes.count(0))


def _is_there(manifest: Manifest, source: Download) -> bool:
    folder = manifests.folder_of(manifest)
    if not source.unpack:
        return (folder / source.target).is_file()
    try:  # what an archive gave is remembered, for the archive itself is not kept
        members = json.loads(_receipt(manifest, source).read_text(encoding="utf-8"))
        return all((folder / source.unpack / name).is_file() for name in members)
    except (OSError, ValueError):
        return False


def _receipt(manifest: Manifest, source: Download) -> Path:
    return paths.data_root() / ".amif" / "fetched" / manifest.name / f"{source.target.replace('/', '_')}.json"


def main(names: Iterable[str], dry_run: bool = False) -> int:
    """Fetch what is missing of the named sets, and check what was fetched.

    Exit status 0 also where sets were skipped because they need an account, a form or work by hand; 1 where a download or
    the check of what it gave failed. Raises InputError before anything is fetched for an unknown set or too small a disk.
    """
    plans = [plan(name) for name in dict.fromkeys(names)]
    print(table(plans).to_markdown(index=False) + "\n")
    for one in plans:
        if not one.complete and (not one.wanted or one.manifest.access.level == "per-article"):
            print(steps(one.manifest) + "\n")
    _require_space(plans, dry_run)
    sources = [source for one in plans for sources in one.wanted for source in sources]
    if untried := [f"  {_public(source.url)} {source.file}" for source in sources if not source.exercised]:
        print(
            "Addresses that the kit's makers took from documentation and never fetched from themselves:",
            *untried,
            sep="\n",
        )
    failed = []
    for one in plans if not dry_run else ():
        name = one.manifest.name
        try:
            if one.wanted:
                print(
                    f"[{name}] fetching into {paths.shown(manifests.folder_of(one.manifest))} ({RESTARTS})", flush=True
                )
                fetch(name)
            if one.wanted and one.manifest.access.level == "open":  # of the others, only lists came
                found = check([name])
                wrong = found[found["status"] != "ok"].drop(columns="data_set")
                print(f"[{name}] data check: {len(found) - len(wrong)} of {len(found)} ok")
                if len(wrong):
                    print(wrong.to_markdown(index=False))
                failed += [f"{name} (not as recorded)"] * (len(unusable(found)) > 0)
        except InputError as error:
            failed.append(f"{name} (not fetched)")
            print(f"error: {error}", file=sys.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def table(plans: Iterable[Plan]) -> pd.DataFrame:
    """The plans for people: set, what is fetched, how much, free disk, where to."""
    rows = []
    for one in plans:
        files = ", ".join(sources[0].target for sources in one.wanted)
        there = "made by the kit when needed" if one.manifest.generator else "it is there"
        why = WHY.get(one.manifest.access.level, "no address is recorded; by hand")
        folder = manifests.folder_of(one.manifest)
        rows.append(
            {
                "set": one.manifest.name,
                "what is fetched": files or f"nothing: {there if one.complete else why}",
                "size": f"{one.size / GB:.2f} GB" + f" and {one.unknown} unknown" * bool(one.unknown),
                "disk needed": f"{one.disk / GB:.2f} GB",
                "disk free": f"{_free(folder)[1] / GB:.0f} GB",
                "where": paths.shown(folder),
            }
        )
    return pd.DataFrame(rows)


def steps(manifest: Manifest) -> str:
    """How a person gets a set that is not fetched."""
    why = WHY.get(manifest.access.level, "not complete, and there is nothing more to fetch")
    lines = [f"[{manifest.name} {manifest.version}] SKIPPED: {why}."]
    lines += [f"  {i}. {step}" for i, step in enumerate(manifest.access.steps, 1)]
    folder = paths.shown(manifests.folder_of(manifest))
    lines += [f"  Then: make data-check DATASETS={manifest.name} (it is looked for in {folder})"]
    lines += [f"  Licence: {manifest.licence.text}. More: data_manifests/{manifest.name}.md"]
    expected = ((split.name, split.counts().items()) for split in manifest.splits)
    lines += [f"  Expected, {name}: {', '.join(f'{n} {key}' for key, n in found)}" for name, found in expected]
    return "\n".join(lines)


def _free(folder: Path) -> tuple[int, int]:
    """Which file system a folder will lie on, and its free bytes."""
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev, shutil.disk_usage(folder).free


def _require_space(plans: Iterable[Plan], dry_run: bool) -> None:
    needs: dict[int, int] = {}
    for one in plans:
        device, free = _free(manifests.folder_of(one.manifest))
        needs[device] = needs.get(device, 0) + one.disk
        if needs[device] > free:
            said = f"{needs[device] / GB:.1f} GB needed, {free / GB:.1f} GB free in {paths.shown(paths.data_root())}"
            if not dry_run:
                raise InputError(f"{said}; set DATA_ROOT to a larger disk, or name fewer sets: make data DATASETS=...")
            print(f"warning: {said}", file=sys.stderr)


def fetch(name: str) -> None:
    """Fetch and unpack what is missing of an open set. A second call for the same set waits for the first.

    Raises InputError for whatever keeps a file from coming; then nothing of it is left in the set's folder.
    """
    manifest = manifests.load(name)
    folder = manifests.folder_of(manifest)
    staging = folder / ".fetching"
    try:
        with exclusive(_receipt(manifest, manifest.downloads[0]).with_name("lock"), f"the download of {name}"):
            for sources in plan(name).wanted:  # looked up again: another process may have just fetched it
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                source, target = sources[0], folder / sources[0].target
                got = target if target.is_file() else _download(sources, staging)  # an archive may have been put there
                if source.unpack:
                    _unpack(got, staging / "unpacked", manifest, source.unpack)
                    receipt = json.dumps(_settle(staging / "unpacked", folder / source.unpack))
                    write_text(_receipt(manifest, source), receipt)
                if got != target and (not source.unpack or any(f.path == source.target for f in manifest.files)):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    got.replace(target)
    except OSError as error:
        said = f"{paths.shown(folder)}: cannot be written ({error.strerror or error})"
        raise InputError(f"{said}; set DATA_ROOT to a folder with room that you may write to") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _public(text: object) -> str:
    """A message in one line, without what may be secret in its addresses: what stands before an @, and queries."""
    return re.sub(r"(://)[^/\s]*@|\?[^\s'\")]*", r"\1", " ".join(str(text).split()))


def _download(sources: list[Download], staging: Path) -> Path:
    """The file, from the first of its addresses that gives it."""
    for number, source in enumerate(sources, 1):
        try:
            got = _from_hub(source) if source.kind == "huggingface" else _from_link(source, staging)
            if source.bytes and got.stat().st_size != source.bytes:
                raise ValueError(f"gave {got.stat().st_size} bytes, expected {source.bytes}")
            return got
        except Exception as error:  # of many kinds, which all mean that the file did not come
            if getattr(error, "errno", None):  # but for those of the disk
                raise
            said = f"{source.target}: {_public(source.url)} {source.file}: {_public(error)}"
            if number == len(sources):
                raise InputError(f"{said}; check the network, or fetch it by hand and put it there") from None
            print(f"  {said}\n  trying another address", flush=True)


def _from_link(source: Download, staging: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it would print addresses with what is secret in them
    file, known = Path(source.target).name, f"sha256:{source.sha256}" if source.sha256 else None
    web = pooch.create(staging, "", registry={file: known}, urls={file: source.url}, retry_if_failed=RETRIES)
    return Path(web.fetch(file, downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)))


def _from_hub(source: Download) -> Path:
    from huggingface_hub import hf_hub_download

    kept = paths.data_root() / ".amif" / "hub" / source.url  # kept after a break, so that the client goes on from there
    return Path(
        hf_hub_download(source.url, source.file, repo_type="dataset", revision=source.revision or None, local_dir=kept)
    )


def _unpack(archive: Path, folder: Path, manifest: Manifest, unpack: str) -> None:
    """Unpack into the folder `folder`; an archive inside, `a/images.zip`, where the manifest has a tree `a/images` too."""
    try:
        shutil.unpack_archive(archive, folder, **({} if archive.suffix == ".zip" else {"filter": "data"}))
        for junk in (folder / "__MACOSX", *folder.rglob("._*"), *folder.rglob(".DS_Store")):  # no data set means it
            shutil.rmtree(junk) if junk.is_dir() else junk.unlink(missing_ok=True)
        for tree in manifest.trees:
            home = folder / os.path.relpath(tree.path, unpack)
            inner = home.with_name(f"{home.name}.zip")
            if inner.is_file() and not home.exists():
                names = zipfile.ZipFile(inner).namelist()
                inside = all(name.startswith(f"{home.name}/") for name in names)  # else it has the files alone
                shutil.unpack_archive(inner, home.parent if inside else home)
                inner.unlink()
    except BROKEN as error:
        raise InputError(f"{archive.name}: cut, damaged or unsafe ({_public(error)}); fetch it again") from None


def _settle(folder: Path, home: Path) -> list[str]:
    """Move each file from a folder to its place under `home`, and return their names; one of the same size stays there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        there = home / path.relative_to(folder)
        if there.exists() and (not there.is_file() or there.stat().st_size != path.stat().st_size):
            size = there.stat().st_size
            raise InputError(
                f"{paths.shown(there)}: is there but is not what the archive has ({size} bytes, not {path.stat().st_size}); "
                "move it away to have it fetched"
            )
    for path in files:
        there = home / path.relative_to(folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        if not there.exists():
            path.replace(there)
    return [path.relative_to(folder).as_posix() for path in files]
