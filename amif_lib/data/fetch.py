"""`make data`: fetch the data sets that are open (pooch, the hub's client), and say step by step how to get the others.

Nothing that lies in a user's folder is overwritten, and nothing half-written is left there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError, public
from amif_lib.core.files import writing
from amif_lib.data import manifests
from amif_lib.data.check import check, presence, require
from amif_lib.data.manifests import Download, Manifest

RETRIES = 2
TIMEOUT = (10, 60)  # seconds: to connect, and to wait for the next bytes
WHY = {
    "credentialed": "credentialed data, not downloaded by this kit",
    "per-article": "its images come from many articles, and this kit does not download them in bulk",
}


def main(names: Iterable[str], dry_run: bool = False) -> int:
    """Fetch what is missing of the named sets, and check what was fetched.

    Exit status 1 if a download or the check of a fetched set failed, else 0. Sets that need an account, a form or
    manual steps are skipped, which is no failure.
    """
    wanted = {name: wanted_of(manifests.load(name)) for name in names}
    print(pd.DataFrame([_about(*each) for each in wanted.items()]).to_markdown(index=False) + "\n")
    failed = []
    for name, sources in wanted.items():
        manifest = manifests.load(name)
        if presence(name)[0] != "found" and (not sources or manifest.access.level == "per-article"):
            print(_steps(manifest) + "\n")
        if dry_run or not sources:
            continue
        print(f"[{name}] fetching into {paths.shown(manifests.folder_of(manifest))}", flush=True)
        try:
            fetch(name)
            if manifest.access.level == "open":  # of a per-article set only lists were fetched: its check would fail
                found = check([name])
                print(f"[{name}] data check: {(found['status'] == 'ok').sum()} of {len(found)} ok")
                require(found)
        except InputError as error:
            failed.append(name)
            print(f"error: {error}", file=sys.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def wanted_of(manifest: Manifest) -> list[Download]:
    """The downloads that a set still needs; asks neither the network nor for checksums."""
    if manifest.access.level not in ("open", "per-article") or presence(manifest.name)[0] == "found":
        return []
    folder = manifests.folder_of(manifest)
    return [source for source in manifest.downloads if source.unpack or not (folder / source.target).is_file()]


def _about(name: str, sources: list[Download]) -> dict[str, str]:
    """A line of the printed table: the set, what is fetched and from where, its size if known, and the folder."""
    manifest, size = manifests.load(name), sum(source.bytes for source in sources)
    none = "already there" if presence(name)[0] == "found" else WHY.get(manifest.access.level, "by hand")
    what = ", ".join(f"{source.target} from {public(source.url)}" for source in sources) or f"nothing: {none}"
    about = f"{size / 1e9:.2f} GB" if size else "unknown" if sources else "-"
    return {"set": name, "what is fetched": what, "size": about, "where": paths.shown(manifests.folder_of(manifest))}


def _steps(manifest: Manifest) -> str:
    """Instructions for a set that the kit cannot fetch."""
    why = WHY.get(manifest.access.level, "not complete, and there is nothing more to fetch")
    lines = [f"[{manifest.name} {manifest.version}] SKIPPED: {why}."]
    lines += [f"  {i}. {step}" for i, step in enumerate(manifest.access.steps, 1)]
    folder = paths.shown(manifests.folder_of(manifest))
    lines += [f"  Then: make data-check DATASETS={manifest.name} (it is looked for in {folder})"]
    lines += [f"  Licence: {manifest.licence.text}. More: data_manifests/{manifest.name}.md"]
    return "\n".join(lines)


def fetch(name: str) -> None:
    """Fetch and unpack what is missing of an open set.

    Raises InputError if a download fails or its archive is damaged; nothing of that file stays in the set's folder.
    """
    manifest = manifests.load(name)
    folder = manifests.folder_of(manifest)
    with writing(folder, "set DATA_ROOT to a writable folder with enough space"):
        for source in wanted_of(manifest):
            with TemporaryDirectory(prefix=".fetching", dir=folder) as staging:
                got = _get(source, Path(staging))
                for file in sorted(got.rglob("*")) if source.unpack else [got]:
                    _move(file, folder / (source.unpack or source.target) / file.relative_to(got))


def _get(source: Download, staging: Path) -> Path:
    """Fetch a file into `staging`; returns the file, or the folder that it was unpacked into."""
    import pooch
    from huggingface_hub import hf_hub_download

    pooch.get_logger().setLevel("WARNING")  # else it prints addresses, which may hold passwords
    try:
        if source.kind == "huggingface":
            kept = paths.data_root() / ".amif" / "hub" / source.url  # an interrupted download resumes from here
            where = {"repo_type": "dataset", "revision": source.revision or None, "local_dir": kept}
            got = Path(hf_hub_download(source.url, source.file, **where))
        else:
            file, known = Path(source.target).name, f"sha256:{source.sha256}" if source.sha256 else None
            web = pooch.create(staging, "", registry={file: known}, urls={file: source.url}, retry_if_failed=RETRIES)
            got = Path(web.fetch(file, downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)))
        if not source.unpack:
            return got
        safe = {} if got.suffix == ".zip" else {"filter": "data"}  # zip members never leave the folder, tar's might
        shutil.unpack_archive(got, staging / "unpacked", **safe)
        return staging / "unpacked"
    except Exception as error:  # no connection, wrong checksum, damaged archive: libraries raise many kinds
        if getattr(error, "errno", None):  # a failed write, which `fetch` reports
            raise
        said = f"{source.target}: {public(source.url)} {source.file}: {public(error)}"
        raise InputError(f"{said}; check the network, or put the file into the set's folder by hand") from None


def _move(file: Path, home: Path) -> None:
    """Move a file to `home` unless one is there; files that macOS adds to archives are left out."""
    junk = "__MACOSX" in file.parts or file.name.startswith((".DS_", "._"))
    if file.is_file() and not home.exists() and not junk:
        home.parent.mkdir(parents=True, exist_ok=True)
        file.replace(home)
