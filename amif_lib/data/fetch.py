"""`make data`: fetch the data sets that are open (pooch, the hub's client), and say step by step how to get the others.

Nothing that lies in a user's folder is overwritten, and nothing half-written is left there.
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import writing
from amif_lib.data import manifests
from amif_lib.data.check import check, presence, require
from amif_lib.data.manifests import Download, Manifest

RETRIES = 2
TIMEOUT = (10, 60)  # seconds: to connect, and between two pieces that arrive
BROKEN = (zipfile.BadZipFile, tarfile.TarError, shutil.ReadError, zlib.error, EOFError, RuntimeError)
WHY = {
    "credentialed": "credentialed data, not downloaded by this kit",
    "per-article": "its images come from many articles, and this kit does not download them in bulk",
}


def main(names: Iterable[str], dry_run: bool = False) -> int:
    """Fetch what is missing of the named sets, and check what was fetched.

    Exit status 0 also where sets were skipped since they need an account, a form or work by hand; 1 where a download or
    the check of what it gave failed.
    """
    wanted = {name: wanted_of(name) for name in names}
    print(table(wanted).to_markdown(index=False) + "\n")
    for name, sources in wanted.items():
        manifest = manifests.load(name)
        if presence(name)[0] != "found" and (not sources or manifest.access.level == "per-article"):
            print(steps(manifest) + "\n")
    failed = []
    for name in filter(wanted.get, () if dry_run else wanted):
        print(f"[{name}] fetching into {paths.shown(_folder(name))}", flush=True)
        try:
            fetch(name)
            if manifests.load(name).access.level == "open":  # of the others, only lists came
                found = check([name])
                print(f"[{name}] data check: {(found['status'] == 'ok').sum()} of {len(found)} ok")
                require(found)
        except InputError as error:
            failed.append(name)
            print(f"error: {error}", file=sys.stderr, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def wanted_of(name: str) -> list[Download]:
    """What is to be fetched of a set, at a glance: without network and without checksums."""
    manifest = manifests.load(name)
    if manifest.access.level not in ("open", "per-article") or presence(name)[0] == "found":
        return []
    return [source for source in manifest.downloads if source.unpack or not (_folder(name) / source.target).is_file()]


def _folder(name: str) -> Path:
    return manifests.folder_of(manifests.load(name))


def table(wanted: dict[str, list[Download]]) -> pd.DataFrame:
    """For people: set, what is fetched from where, how much as far as it is known, where to."""
    rows = []
    for name, sources in wanted.items():
        size = sum(source.bytes for source in sources)
        there = presence(name)[0] == "found"
        none = "nothing: " + ("it is there" if there else WHY.get(manifests.load(name).access.level, "by hand"))
        what = [f"{s.target} from {_public(s.url)}" + " (untried)" * (not s.exercised) for s in sources]
        about = f"{size / 1e9:.2f} GB" if size else "unknown" if sources else "-"
        where = paths.shown(_folder(name))
        rows.append({"set": name, "what is fetched": ", ".join(what) or none, "size": about, "where": where})
    return pd.DataFrame(rows)


def steps(manifest: Manifest) -> str:
    """How a person gets a set that is not fetched."""
    why = WHY.get(manifest.access.level, "not complete, and there is nothing more to fetch")
    lines = [f"[{manifest.name} {manifest.version}] SKIPPED: {why}."]
    lines += [f"  {i}. {step}" for i, step in enumerate(manifest.access.steps, 1)]
    folder = paths.shown(manifests.folder_of(manifest))
    lines += [f"  Then: make data-check DATASETS={manifest.name} (it is looked for in {folder})"]
    lines += [f"  Licence: {manifest.licence.text}. More: data_manifests/{manifest.name}.md"]
    return "\n".join(lines)


def fetch(name: str) -> None:
    """Fetch and unpack what is missing of an open set.

    Raises InputError for whatever keeps a file from coming; then nothing of it is left in the set's folder.
    """
    folder = _folder(name)
    with writing(folder, "set DATA_ROOT to a folder with room that you may write to"):
        for source in wanted_of(name):
            with TemporaryDirectory(prefix=".fetching", dir=folder) as staging:
                got = _download(source, Path(staging))
                if source.unpack:
                    _unpack(got, Path(staging) / "unpacked")
                    _settle(Path(staging) / "unpacked", folder / source.unpack)
                else:
                    _settle(got, folder / source.target)


def _public(text: object) -> str:
    """A message in one line, without what may be secret in its addresses: what stands before an @, and queries."""
    return re.sub(r"(://)[^/\s]*@|\?[^\s'\")]*", r"\1", " ".join(str(text).split()))


def _download(source: Download, staging: Path) -> Path:
    import pooch
    from huggingface_hub import hf_hub_download

    pooch.get_logger().setLevel("WARNING")  # it would print addresses with what is secret in them
    try:
        if source.kind == "huggingface":
            kept = paths.data_root() / ".amif" / "hub" / source.url  # kept after a break, so that it goes on from there
            where = {"repo_type": "dataset", "revision": source.revision or None, "local_dir": kept}
            return Path(hf_hub_download(source.url, source.file, **where))
        file, known = Path(source.target).name, f"sha256:{source.sha256}" if source.sha256 else None
        web = pooch.create(staging, "", registry={file: known}, urls={file: source.url}, retry_if_failed=RETRIES)
        return Path(web.fetch(file, downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)))
    except Exception as error:  # of many kinds, which all mean that the file did not come
        if getattr(error, "errno", None):  # but for those of the disk
            raise
        said = f"{source.target}: {_public(source.url)} {source.file}: {_public(error)}"
        raise InputError(f"{said}; check the network, or fetch it by hand and put it there") from None


def _unpack(archive: Path, folder: Path) -> None:
    try:
        shutil.unpack_archive(archive, folder, **({} if archive.suffix == ".zip" else {"filter": "data"}))
    except BROKEN as error:
        raise InputError(f"{archive.name}: cut, damaged or unsafe ({_public(error)}); fetch it again") from None


def _settle(source: Path, home: Path) -> None:
    """Move a file, or a folder's files, to their place; what is there already stays."""
    for path in [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]:
        there = home / path.relative_to(source)
        if not there.exists() and "__MACOSX" not in path.parts and not path.name.startswith((".DS_", "._")):
            there.parent.mkdir(parents=True, exist_ok=True)
            path.replace(there)
