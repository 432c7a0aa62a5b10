"""Whether what lies on disk is what a manifest describes: thoroughly by checksum and count, or at a glance."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, write_text
from amif_lib.data import images, load, manifests
from amif_lib.data.manifests import FileEntry, Manifest, TreeEntry

IMAGES = "images decode"  # the item that may be `partial`
Line = tuple[str, str, str]  # item, status, detail


def check(data_sets: Iterable[str]) -> pd.DataFrame:
    """Compare data sets on disk with their manifests: one line per file, tree and count.

    Columns `data_set, item, status, detail`; status is `ok`, `missing`, `changed`, `partial` (some files of a tree are
    absent, or up to `images.MOST_BAD` of the images, of training alone, cannot be decoded) or `needs credential`.
    Nothing is raised for data that is absent or wrong: the table says it. Every image that a record names is decoded.

    What readers and decoders say names files and records. Of a set that `manifests.is_credentialed` the table holds
    counts only, and what they say is written to `.amif/check/<set>.txt` beside the data.
    """
    rows = []
    for name in data_sets:
        notes: list[str] = []
        rows += [(name, *line) for line in _lines(manifests.load(name), notes)]
        if notes:
            write_text(_notes(name), "".join(f"{' '.join(message.split())}\n" for message in notes), PREPARED)
        elif manifests.is_credentialed(name):
            _notes(name).unlink(missing_ok=True)
    return pd.DataFrame(rows, columns=["data_set", "item", "status", "detail"])


def require(checked: pd.DataFrame) -> None:
    """Raise InputError for the first line of a `check` that forbids training: all but `ok` and `partial` images."""
    wrong = checked[(checked["status"] != "ok") & ((checked["item"] != IMAGES) | (checked["status"] != "partial"))]
    for name, item, status, detail in wrong.itertuples(index=False):
        raise InputError(
            f"data set {name}: {item} is {status}: {detail}; complete or replace it, or, if you changed it on purpose, "
            f"record it in data_manifests/{name}.yaml ({len(wrong)} lines of the check are not ok)"
        )


def presence(name: str) -> tuple[str, str]:
    """Whether a set is on disk: `found`, `partly there` or `missing`, and where or how to get it. Reads no file."""
    manifest = manifests.form_on_disk(manifests.load(name))
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        return "found", f"generated when needed, in {paths.shown(folder)}"
    wanted = [entry.path for entry in (*manifest.files, *manifest.trees) if entry.required]
    absent = [path for path in wanted if not (folder / path).is_file() and not any((folder / path).glob("*"))]
    if not absent:
        return "found", f"in {paths.shown(folder)}"
    if len(absent) == len(wanted):
        return "missing", manifests.how_to_get(manifest)
    return "partly there", f"in {paths.shown(folder)}; {absent[0]} is missing (make data-check DATASETS={name})"


def _lines(manifest: Manifest, notes: list[str]) -> Iterator[Line]:
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        manifests.location(manifest.name)
        yield "generator", "ok", f"written by this code, seed {manifest.generator.seed}"
    elif not folder.is_dir():
        status = "needs credential" if manifest.access.level == "credentialed" else "missing"
        yield "folder", status, manifests.how_to_get(manifest)
        return
    manifest = manifests.form_on_disk(manifest)
    if manifest.alternatives:
        yield "layout", "ok", manifest.version
    yield from ((entry.path, *_file(entry, folder / entry.path)) for entry in manifest.files)
    yield from ((entry.path, *_tree(entry, folder / entry.path)) for entry in manifest.trees)
    for item, lines in (("records", _counts), (IMAGES, _images)):
        try:
            yield from lines(manifest, notes)
        except InputError as error:
            yield item, "changed", _said(manifest.name, "cannot be read (1 error)", [str(error)], notes)
            return


# --- files -----------------------------------------------------------------------------------------------------------


def _file(entry: FileEntry, path: Path) -> tuple[str, str]:
    if not path.is_file():
        return ("missing", "not there") if entry.required else ("ok", "absent, optional")
    if (size := path.stat().st_size) != entry.bytes:
        return "changed", f"{size} bytes, expected {entry.bytes}"
    same = manifests.sha256(path) == entry.sha256
    return "ok" if same else "changed", f"{size} bytes, sha256 {'as' if same else 'not as'} recorded"


def _tree(tree: TreeEntry, folder: Path) -> tuple[str, str]:
    """Status and detail of a folder of files; contents are read only where a digest is recorded."""
    if not folder.is_dir():
        return ("missing", "not there") if tree.required else ("ok", "absent, optional")
    names = tree_files(folder, tree.pattern, tree.recursive)
    if len(names) != tree.count:
        status = "missing" if not names else "partial" if len(names) < tree.count else "changed"
        return status, f"{len(names)} of {tree.count} files"
    if tree.bytes and (size := sum((folder / name).stat().st_size for name in names)) != tree.bytes:
        return "changed", f"{len(names)} files, {size} bytes, expected {tree.bytes}"
    if tree.sha256 and (found := tree_digest(folder, names)) != tree.sha256:
        return "changed", f"{len(names)} files, digest {found[:12]}, expected {tree.sha256[:12]}"
    return "ok", f"{len(names)} files, {'digest as recorded' if tree.sha256 else 'no digest recorded'}"


def tree_files(folder: Path, pattern: str = "*", recursive: bool = False) -> list[str]:
    """Names of the regular files in a folder that match, in no order; below it too (`a/b.jpg`) if `recursive`."""
    pattern = f"**/{pattern}" if recursive else pattern
    found = glob.iglob(pattern, root_dir=folder, recursive=True, include_hidden=True)  # noqa: PTH207, follows links
    return [name for name in found if (folder / name).is_file()]


def tree_digest(folder: Path, names: Iterable[str]) -> str:
    """The digest of files in a folder that `TreeEntry` describes."""
    names, total = sorted(names, key=os.fsencode), hashlib.sha256()
    bar = progress.bar(len(names), f"checksums of {folder.name}", show=len(names) > 5000)
    for name in names:
        total.update(f"{manifests.sha256(folder / name)}  ".encode() + os.fsencode(name) + b"\n")
        bar.step()
    bar.close()
    return total.hexdigest()


# --- records ---------------------------------------------------------------------------------------------------------


def _notes(name: str) -> Path:
    return manifests.derived_folder(name) / "check" / f"{name}.txt"


def _said(name: str, what: str, messages: list[str], notes: list[str]) -> str:
    """`what`, with the first messages, or where all of them are put."""
    if not manifests.is_credentialed(name):
        return f"{what}: {'; '.join(messages[:3])}" + " ..." * (len(messages) > 3)
    notes += messages
    return f"{what}; see {paths.shown(_notes(name))}"


def _counts(manifest: Manifest, _: list[str]) -> Iterator[Line]:
    found = load.counts(manifest.name, images=False)
    for split in manifest.splits:
        for key, expected in split.counts().items():
            number = found.get(split.name, {}).get(key, 0)
            status = "ok" if (1 - split.shortfall) * expected <= number <= expected else "changed"
            yield f"{split.name}: {key}", status, f"{number}" + f", expected {expected}" * (number != expected)


def _images(manifest: Manifest, notes: list[str]) -> list[Line]:
    """Decode all images. `partial`: training can leave the bad ones out; what is evaluated on must be whole."""
    name, evaluated = manifest.name, set()
    if manifest.role == "questions":
        evaluated = {question.image_path for question in load.load_questions(name) if question.split != "train"}
    files = load.image_paths(name)
    reasons = zip(files, images.in_parallel(images.trouble, files, f"{name}: decoding"), strict=True)
    bad = {path: reason for path, reason in reasons if reason}
    if not bad:
        return [(IMAGES, "ok", f"{len(files)} images")]
    said = f"{len(bad)} of {len(files)} images cannot be decoded"
    if needed := len(evaluated & set(bad)):
        said += f", {needed} of validation or test questions"
    status = "changed" if needed or len(bad) > images.MOST_BAD * len(files) else "partial"
    shown = (path if manifests.is_credentialed(name) else path.name for path in bad)
    messages = [f"{path} ({reason})" for path, reason in zip(shown, bad.values(), strict=True)]
    return [(IMAGES, status, _said(name, said, messages, notes))]
