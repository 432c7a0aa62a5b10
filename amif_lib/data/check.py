"""Whether what lies on disk is what a manifest describes: thoroughly by checksum and count, or at a glance."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, sha256, write_text
from amif_lib.data import load, manifests
from amif_lib.data.manifests import FileEntry, Manifest, TreeEntry

Found = tuple[str, str]  # status, detail


def check(data_sets: Iterable[str]) -> pd.DataFrame:
    """Compare data sets on disk with their manifests: one line per file, tree and count.

    Columns `data_set, item, status, detail`; status is `ok`, `missing`, `changed`, `partial` (some files of a tree are
    absent) or `needs credential`. Nothing is raised for data that is absent or wrong: the table says it. Images are
    decoded when they are prepared for training (`store`), not here.
    """
    rows = [(name, item, *found) for name in data_sets for item, found in _lines(manifests.load(name))]
    return pd.DataFrame(rows, columns=["data_set", "item", "status", "detail"])


def require(checked: pd.DataFrame) -> None:
    """Raise InputError for the first line of a `check` that is not ok; a set that is partly there can be used."""
    wrong = checked[~checked["status"].isin(("ok", "partial"))]
    for name, item, status, detail in wrong.itertuples(index=False):
        raise InputError(
            f"data set {name}: {item} is {status}: {detail}; complete or replace it, or, if you changed it on purpose, "
            f"record it in data_manifests/{name}.yaml ({len(wrong)} lines of the check are not ok)"
        )


def presence(name: str) -> Found:
    """Whether a set is on disk: `found`, `partly there` or `missing`, and where or how to get it. Reads no file."""
    manifest = manifests.form_on_disk(manifests.load(name))
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        return "found", f"generated when needed, in {paths.shown(folder)}"
    wanted = [entry.path for entry in manifest.files if entry.required] + [tree.path for tree in manifest.trees]
    wanted = wanted or [source.target for source in manifest.downloads if not source.unpack] or ["."]
    absent = [path for path in wanted if not (folder / path).is_file() and not any((folder / path).glob("*"))]
    if not absent:
        return "found", f"in {paths.shown(folder)}"
    if len(absent) == len(wanted):
        return "missing", manifests.how_to_get(manifest)
    return "partly there", f"in {paths.shown(folder)}; {absent[0]} is missing (make data-check DATASETS={name})"


def _lines(manifest: Manifest) -> Iterator[tuple[str, Found]]:
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        manifests.location(manifest.name)
        yield "generator", ("ok", f"written by this code, seed {manifest.generator.seed}")
    elif not folder.is_dir():
        status = "needs credential" if manifest.access.level == "credentialed" else "missing"
        yield "folder", (status, manifests.how_to_get(manifest))
        return
    manifest = manifests.form_on_disk(manifest)
    if manifest.alternatives:
        yield "layout", ("ok", manifest.version)
    yield from ((entry.path, _file(entry, folder / entry.path)) for entry in manifest.files)
    yield from ((entry.path, _tree(entry, folder / entry.path)) for entry in manifest.trees)
    try:
        yield from _counts(manifest)
        yield "images of records", ("ok", f"{len(load.image_paths(manifest.name))} files, all there")
    except InputError as error:
        said = str(error)
        if manifests.is_credentialed(manifest.name):  # it names a patient's file
            file = manifests.derived_folder(manifest.name) / "check" / f"{manifest.name}.txt"
            write_text(file, f"{said}\n", PREPARED)
            said = f"cannot be read; see {paths.shown(file)}"
        yield "records", ("changed", said)


def _file(entry: FileEntry, path: Path) -> Found:
    if not path.is_file():
        return ("missing", "not there") if entry.required else ("ok", "absent, optional")
    if (size := path.stat().st_size) != entry.bytes:
        return "changed", f"{size} bytes, expected {entry.bytes}"
    same = sha256(path) == entry.sha256
    return "ok" if same else "changed", f"{size} bytes, sha256 {'as' if same else 'not as'} recorded"


def _tree(tree: TreeEntry, folder: Path) -> Found:
    """Contents are read only where a digest is recorded."""
    files = {os.fsencode(path.name): path for path in folder.glob("*") if path.is_file()}
    if len(files) != tree.count:
        status = "missing" if not files else "partial" if len(files) < tree.count else "changed"
        return status, f"{len(files)} of {tree.count} files"
    if tree.bytes and (size := sum(path.stat().st_size for path in files.values())) != tree.bytes:
        return "changed", f"{len(files)} files, {size} bytes, expected {tree.bytes}"
    if not tree.sha256:
        return "ok", f"{len(files)} files, no digest recorded"
    lines = b"".join(sha256(path).encode() + b"  " + name + b"\n" for name, path in sorted(files.items()))
    same = hashlib.sha256(lines).hexdigest() == tree.sha256
    return "ok" if same else "changed", f"{len(files)} files, digest {'as' if same else 'not as'} recorded"


def _counts(manifest: Manifest) -> Iterator[tuple[str, Found]]:
    found = load.counts(manifest.name, images=False)
    for split in manifest.splits:
        for key, expected in split.counts().items():
            number = found.get(split.name, {}).get(key, 0)
            status = "ok" if (1 - split.shortfall) * expected <= number <= expected else "changed"
            yield f"{split.name}: {key}", (status, f"{number}" + f", expected {expected}" * (number != expected))
