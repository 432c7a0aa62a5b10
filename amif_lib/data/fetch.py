"""`make data`: fetch the data sets that are open, and say step by step how to get the others.

Nothing that lies in a user's folder is overwritten. What was unpacked is remembered in `$DATA_ROOT/.amif/fetched/`, so that
an archive, which is removed once it is unpacked, is not fetched again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from tabulate import tabulate

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import exclusive, write_aside
from amif_lib.data import archives, download, manifests
from amif_lib.data import check as data_check
from amif_lib.data.manifests import Download, FileEntry, Manifest, TreeEntry

GB = 1e9
SMALL = 64 << 20  # bytes that any archive may unpack to


@dataclass(frozen=True)
class Plan:
    """What `make data` would do about one set. Bytes are 0 where nothing is known."""

    manifest: Manifest
    folder: Path
    state: Literal["generated", "there", "fetch", "skipped"]
    wanted: tuple[tuple[Download, ...], ...] = ()  # one entry per file, with its addresses, the official ones first
    arriving: int = 0  # over the network
    disk: int = 0  # at the worst moment, when an archive and what it holds are both there
    unknown: int = 0  # files whose size the manifest does not say


def plan(name: str) -> Plan:
    """What is to be fetched of a set, at a glance: by names and sizes, without network and without checksums."""
    manifest = manifests.load(name)
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        return Plan(manifest, folder, "generated")
    complete = data_check.presence(name)[0] == "found"
    by_article = manifest.access.level == "per-article"  # what is recorded for such a set are lists, not its images
    if not manifest.downloads or not (by_article or manifest.access.level == "open"):
        return Plan(manifest, folder, "there" if complete else "skipped")
    wanted = tuple(sources for sources in _files(manifest) if not _is_there(manifest, sources[0], complete))
    arriving, plain, passing, unknown = 0, 0, 0, 0
    unpacked: dict[str, int] = {}  # by folder: what the manifest says of it, or as much as its archives have
    for source in (sources[0] for sources in wanted):
        target = folder / source.target
        size = source.bytes or source.about_bytes
        coming = 0 if target.is_file() else max(0, size - _size(download.part_of(target)))
        arriving += coming
        unknown += not size and not target.is_file()
        if source.unpack:
            passing = max(passing, coming)
            known = _unpacked_bytes(manifest, source)
            unpacked[source.unpack] = known or unpacked.get(source.unpack, 0) + size
        else:
            plain += coming
    disk = plain + passing + sum(unpacked.values())
    state = "fetch" if wanted else "there" if complete and (manifest.trees or not by_article) else "skipped"
    return Plan(manifest, folder, state, wanted, arriving, disk, unknown)


def _files(manifest: Manifest) -> list[tuple[Download, ...]]:
    """The manifest's downloads by target: several addresses of one target stand in for each other."""
    targets: dict[str, list[Download]] = {}
    for source in manifest.downloads:
        targets.setdefault(source.target, []).append(source)
    return [tuple(sorted(sources, key=lambda source: not source.official)) for sources in targets.values()]


def _is_there(manifest: Manifest, source: Download, complete: bool) -> bool:
    folder = manifests.folder_of(manifest)
    if not source.unpack:
        optional = any(entry.path == source.target and not entry.required for entry in manifest.files)
        return (folder / source.target).is_file() or (complete and optional)
    try:
        members = json.loads(_receipt(manifest, source).read_text(encoding="utf-8"))["members"]
        if all(_size(folder / source.unpack / path, -1) == size for path, size in members):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never unpacked by this kit; what the manifest says of the archive's content may be there all the same
    inside = _inside(manifest, source)
    return bool(inside) and all(len(set(data_check.present(entry, folder))) == 1 for entry in inside)


def _inside(manifest: Manifest, source: Download) -> list[FileEntry | TreeEntry]:
    """What the manifest requires in the folder that an archive is unpacked into, and that is not fetched by itself."""
    home = Path(source.unpack)
    alone = {other.target for other in manifest.downloads if not other.unpack}
    entries: list[FileEntry | TreeEntry] = [*manifest.files, *manifest.trees]
    return [
        entry
        for entry in entries
        if entry.required and entry.path not in alone and (home == Path() or Path(entry.path).is_relative_to(home))
    ]


def _unpacked_bytes(manifest: Manifest, source: Download) -> int:
    """Bytes of what the manifest requires there, 0 unless it says them all."""
    inside = _inside(manifest, source)
    return sum(entry.bytes for entry in inside) if all(entry.bytes for entry in inside) else 0


def _receipt(manifest: Manifest, source: Download) -> Path:
    return paths.data_root() / ".amif" / "fetched" / manifest.name / f"{quote(source.target, safe='')}.json"


def _size(path: Path, absent: int = 0) -> int:
    return path.stat().st_size if path.is_file() else absent


# --- the command ---------------------------------------------------------------------------------------------------


def main(scale: str, names: Iterable[str] = (), dry_run: bool = False) -> int:
    """Fetch what is missing of the named sets, or of those that the scale needs, and check what was fetched.

    Exit status 0 also where sets were skipped because they need an account, a form or work by hand; 1 where a download or
    the check of what it gave failed. Raises InputError before anything is fetched for an unknown set or too small a disk.
    """
    from amif_lib.app.doctor import needs_of

    plans = [plan(name) for name in dict.fromkeys(names or needs_of(scale)[0])]
    print(table(plans) + "\n")
    for one in plans:
        if one.state == "skipped" or (one.wanted and one.manifest.access.level == "per-article"):
            print(steps(one) + "\n")
        elif one.state == "there":
            print(f"[{one.manifest.name}] there, in {paths.shown(one.folder)}; make data-check looks into it\n")
    try:  # after the steps: what is got by hand needs none of this disk's room
        require_space(plans)
    except InputError as error:
        if not dry_run:
            raise
        print(f"warning: {error}", file=sys.stderr)
    if dry_run:
        _say_untried(one.manifest for one in plans if one.wanted)
        return 0
    fetched, failed = [], []
    for one in plans:
        name = one.manifest.name
        try:
            if one.state == "fetch":
                print(f"[{name}] fetching into {paths.shown(one.folder)}", flush=True)
                fetch(name)
                fetched.append(one.manifest)
            elif one.state == "there":
                _compare_files(one.manifest)
        except InputError as error:
            failed.append(name)
            print(f"error: {error}", file=sys.stderr, flush=True)
    whole = [manifest for manifest in fetched if manifest.access.level == "open"]  # of the others, only lists came
    wrong = [manifest.name for manifest in whole if not _check(manifest)]
    _say_untried(one.manifest for one in plans if one.wanted)
    if failed or wrong:
        what = [f"not fetched: {', '.join(failed)}"] * bool(failed) + [f"not as recorded: {', '.join(wrong)}"] * bool(
            wrong
        )
        print("; ".join(what), file=sys.stderr)
    return int(bool(failed or wrong))


def table(plans: Iterable[Plan]) -> str:
    """The plans as text: set, what is fetched, how much, free disk, where to."""
    rows = []
    for one in plans:
        files = [sources[0].target for sources in one.wanted]
        what = {
            "generated": "nothing: made by the kit when needed",
            "there": "nothing: it is there",
            "skipped": f"nothing: {_why(one.manifest)}",
            "fetch": ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else ""),
        }[one.state]
        size = f"{one.arriving / GB:.2f} GB" * bool(one.arriving) + f" and {one.unknown} unknown" * bool(one.unknown)
        rows.append(
            {
                "set": one.manifest.name,
                "what is fetched": what,
                "size": size.removeprefix(" and ") or "-",
                "disk needed": f"{one.disk / GB:.2f} GB" if one.disk else "-",
                "disk free": f"{_disk(one.folder)[1] / GB:.0f} GB",
                "where": paths.shown(one.folder),
            }
        )
    return tabulate(rows, headers="keys", disable_numparse=True)


def require_space(plans: Iterable[Plan]) -> None:
    """Raise InputError where the sets together need more than a disk has free, as far as sizes are known."""
    needs: dict[int, list[Plan]] = {}
    for one in plans:
        if one.wanted:
            needs.setdefault(_disk(one.folder)[0], []).append(one)
    for group in needs.values():
        need, free = sum(one.disk for one in group), _disk(group[0].folder)[1]
        if need > free:
            sets = ", ".join(f"{one.manifest.name} {one.disk / GB:.1f} GB" for one in group)
            raise InputError(
                f"{paths.shown(group[0].folder.parent)}: {need / GB:.1f} GB needed ({sets}), {free / GB:.1f} GB free; set "
                "DATA_ROOT to a larger disk, or name fewer sets: make data DATASETS=..."
            )


def _disk(folder: Path) -> tuple[int, int]:
    """Which file system a folder will lie on, and its free bytes."""
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev, shutil.disk_usage(folder).free


def _why(manifest: Manifest) -> str:
    return {
        "credentialed": "credentialed data, not downloaded by this kit",
        "form": "its publisher asks for a form, which this kit does not fill in",
        "per-article": "its images come from many articles, and this kit does not download them in bulk",
    }.get(manifest.access.level, "no address is recorded to fetch it from; by hand")


def steps(one: Plan) -> str:
    """How a person gets a set that is not fetched."""
    manifest = one.manifest
    lines = [f"[{manifest.name} {manifest.version}] SKIPPED: {_why(manifest)}."]
    lines += [f"  {i}. {step}" for i, step in enumerate(manifest.access.steps, 1)]
    lines += [f"  Then: make data-check DATASETS={manifest.name} (it is looked for in {paths.shown(one.folder)})"]
    lines += [f"  Licence: {manifest.licence.text}. More: data_manifests/{manifest.name}.md"]
    if expected := [f"{split.name} {_expected(split.model_dump())}" for split in manifest.splits]:
        lines.append(f"  Expected: {'; '.join(expected)}.")
    return "\n".join(lines)


def _expected(split: dict[str, Any]) -> str:
    return ", ".join(f"{split[key]} {key}" for key in ("studies", "questions", "images") if split[key] is not None)


def _say_untried(used: Iterable[Manifest]) -> None:
    lines = [
        f"  {manifest.name}: {source.url} {source.file}".rstrip()
        for manifest in used
        for source in manifest.downloads
        if not source.exercised
    ]
    if lines:
        print("Addresses that the kit's makers took from documentation and never fetched from themselves:")
        print("\n".join(lines))


def _check(manifest: Manifest) -> bool:
    """The data check of one set, in one line and those that are not ok; whether the set can be trained on."""
    print(f"[{manifest.name}] checking", flush=True)
    found = manifests.check(manifest.name)
    wrong = found[found["status"] != "ok"]
    print(f"[{manifest.name}] data check: {len(found) - len(wrong)} of {len(found)} ok")
    for line in wrong.itertuples():
        print(f"  {line.item}: {line.status} {line.detail}".rstrip())
    return manifests.unusable(found).empty


# --- one set -------------------------------------------------------------------------------------------------------


def fetch(name: str) -> None:
    """Fetch and unpack what is missing of an open set. A second call for the same set waits for the first.

    Raises InputError for whatever keeps a file from coming (see `download.fetch`, `archives.unpack`).
    """
    manifest = manifests.load(name)
    folder = manifests.folder_of(manifest)
    lock = _receipt(manifest, manifest.downloads[0]).parent / "lock"
    with download.writing(folder), exclusive(lock, f"the download of {name}"):
        _compare_files(manifest)
        for sources in plan(name).wanted:  # looked up again: another process may have just fetched it
            target = folder / sources[0].target
            if not target.is_file():
                source, got = _from_any(sources, target)
            else:  # an archive that someone put there, or that was not unpacked to the end
                source, got = sources[0], _existing(sources, target)
            if source.unpack:
                members = _unpack(manifest, source, folder, target)
                _write(_receipt(manifest, source), {**got, "unpack": source.unpack, "members": members})
                if all(entry.path != source.target for entry in manifest.files):
                    target.unlink()


def _from_any(sources: tuple[Download, ...], target: Path) -> tuple[Download, dict[str, Any]]:
    for source in sources[:-1]:
        try:
            return source, download.fetch(source, target)
        except InputError as error:
            print(f"  {error}\n  trying another address", flush=True)
    return sources[-1], download.fetch(sources[-1], target)


def _compare_files(manifest: Manifest) -> None:
    """Raise InputError for a file that is there under the name of a download but is not it; it is left alone."""
    for sources in _files(manifest):
        target = manifests.folder_of(manifest) / sources[0].target
        if target.is_file():
            _existing(sources, target)


def _existing(sources: tuple[Download, ...], target: Path) -> dict[str, Any]:
    known = {source.sha256 for source in sources if source.sha256}
    sizes = {source.bytes for source in sources if source.bytes}
    size = target.stat().st_size
    if len(sizes) == 1 and size not in sizes:
        raise _not_it(target, f"{size} bytes", f"{sizes.pop()} bytes")
    digest = manifests.sha256(target) if known else ""
    if known and digest not in known:
        raise _not_it(target, f"sha256 {digest}", f"sha256 {' or '.join(sorted(known))}")
    return {"url": "", "revision": "", "bytes": size, "sha256": digest}


def _not_it(target: Path, found: str, expected: str) -> InputError:
    return InputError(
        f"{paths.shown(target)}: is there but is not the recorded file ({found}, expected {expected}); move it away to have "
        "it fetched, or leave it and use the set as it is"
    )


def _unpack(manifest: Manifest, source: Download, folder: Path, archive: Path) -> list[tuple[str, int]]:
    """Unpack aside, then move each file to its place; an existing file of the same size stays."""
    staging = folder / f".{archive.name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    limit = max(SMALL, 4 * _unpacked_bytes(manifest, source) or 100 * archive.stat().st_size)
    with download.writing(folder / source.unpack):
        try:
            members = archives.unpack(archive, staging, limit)
            trees = {Path(os.path.relpath(entry.path, source.unpack)).as_posix() for entry in manifest.trees}
            members = archives.unpack_nested(staging, members, trees, limit, paths.shown(archive))
        except InputError as error:
            aside = archive.with_name(archive.name + ".rejected")
            archive.replace(aside)
            raise InputError(f"{error} (set aside as {aside.name})") from None
        else:
            _settle(staging, folder / source.unpack, members, archive.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return members


def _settle(staging: Path, home: Path, members: list[tuple[str, int]], archive: str) -> None:
    for path, size in members:
        if (home / path).exists() and _size(home / path, -1) != size:
            raise _not_it(home / path, f"{_size(home / path, -1)} bytes", f"{size} bytes as in {archive}")
    for path, _ in members:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        if not (home / path).exists():
            (staging / path).replace(home / path)


def _write(path: Path, content: dict[str, Any]) -> None:
    with write_aside(path, "set DATA_ROOT to a folder with room that you may write to") as aside:
        aside.write_text(json.dumps(content), encoding="utf-8")
