"""Whether what lies on disk is what a manifest describes: thoroughly by checksum and count, or at a glance."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, write_text
from amif_lib.data import images, load, manifests, readers
from amif_lib.data.manifests import FileEntry, Manifest, TreeEntry

IMAGES = "images decode"  # the item that may be `partial`
MOST_BAD = 0.01  # share of the images that training may leave out since they cannot be decoded
MANY = 20_000  # a tree with folders below it and more files than this is not counted at a glance
Line = tuple[str, str, str]  # item, status, detail


def check(data_sets: Iterable[str], *, decode: bool = True) -> pd.DataFrame:
    """Compare data sets on disk with their manifests: one line per file, tree and count.

    Columns `data_set, item, status, detail`; status is `ok`, `missing`, `changed`, `partial` (some files of a tree are
    absent, or some images, up to `MOST_BAD` of them and of training alone, cannot be decoded) or `needs credential`.
    Nothing is raised for data that is absent or wrong: the table says it. `decode` decodes every image that a record
    names.

    What readers and decoders say names files and records. Of a set that `manifests.stays_with_data` the table holds
    counts only, and what they say is written to `.amif/check/<set>.txt` beside the data.
    """
    rows = []
    for name in data_sets:
        notes = Notes(name)
        rows += [(name, *line) for line in _lines(manifests.load(name), decode, notes)]
        notes.store()
    return pd.DataFrame(rows, columns=["data_set", "item", "status", "detail"])


def unusable(checked: pd.DataFrame) -> pd.DataFrame:
    """The lines of a `check` that forbid training: all that are not ok, but for a few images that cannot be decoded."""
    return checked[(checked["status"] != "ok") & ~((checked["item"] == IMAGES) & (checked["status"] == "partial"))]


def require(checked: pd.DataFrame) -> None:
    """Raise InputError for the first `unusable` line of a `check`, before anything is trained on it."""
    for name, item, status, detail in unusable(checked).itertuples(index=False):
        raise InputError(
            f"data set {name}: {item} is {status}: {detail}; complete or replace it, or, if you changed it on purpose, "
            f"record it in data_manifests/{name}.yaml ({len(unusable(checked))} lines of the check are not ok)"
        )


class Notes:
    """What readers and decoders say of a set, for a table that others see."""

    def __init__(self, name: str) -> None:
        self.file = manifests.derived_folder(name) / "check" / f"{name}.txt"
        self.kept_back = manifests.stays_with_data(name)
        self.said: list[str] = []

    def of(self, what: str, messages: list[str]) -> str:
        """`what`, with the first messages, or where to find all of them."""
        if not self.kept_back:
            return f"{what}: {'; '.join(messages[:3])}" + " ..." * (len(messages) > 3)
        self.said += messages
        return f"{what}; see {paths.shown(self.file)}"

    def store(self) -> None:
        """Write the messages beside the data, one line each; a file of an earlier check goes."""
        if self.said:
            lines = "".join(f"{' '.join(message.split())}\n" for message in self.said)
            write_text(self.file, lines, PREPARED)
        elif self.kept_back:
            self.file.unlink(missing_ok=True)


def _lines(manifest: Manifest, decode: bool, notes: Notes) -> Iterator[Line]:
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        manifests.location(manifest.name)
        yield "generator", "ok", f"written by this code, seed {manifest.generator.seed}"
    elif not folder.is_dir():
        status = "needs credential" if manifest.access.level == "credentialed" else "missing"
        steps = " ".join(f"({i}) {step}" for i, step in enumerate(manifest.access.steps, 1))
        by_hand = manifest.access.level in ("form", "per-article")
        yield "folder", status, manifests.how_to_get(manifest) + f". Steps: {steps}" * by_hand
        return
    if manifest.alternatives:
        manifest = manifests.as_found(manifest)
        yield "layout", "ok", manifest.version
    for entry in (*manifest.files, *manifest.trees):
        try:
            found = _file(entry, folder) if isinstance(entry, FileEntry) else _tree(entry, folder)
        except OSError as error:
            found = "changed", f"cannot be read ({error.strerror or type(error).__name__})"
        yield entry.path, *found
    try:
        yield from _counts(manifest, notes)
        if decode:
            yield _images(manifest, notes)
    except InputError as error:
        yield "records", "changed", notes.of("cannot be read (1 error)", [str(error)])


def _file(entry: FileEntry, folder: Path) -> tuple[str, str]:
    path = folder / entry.path
    if not path.is_file():
        return ("missing", "") if entry.required else ("ok", "absent, optional")
    if (size := path.stat().st_size) != entry.bytes:
        return "changed", f"{size} bytes, expected {entry.bytes}"
    same = manifests.sha256(path) == entry.sha256
    return "ok" if same else "changed", f"{size} bytes, sha256 {'as' if same else 'not as'} recorded"


def _tree(tree: TreeEntry, folder: Path) -> tuple[str, str]:
    """Count first; only what the manifest records is read: sizes where it has `bytes`, contents where it has a digest."""
    folder = folder / tree.path
    if not folder.is_dir():
        return ("missing", "no such folder") if tree.required else ("ok", "absent, optional")
    names = list(tree_files(folder, tree.pattern, tree.recursive))
    if len(names) != tree.count:
        return "missing" if not names else "partial" if len(names) < tree.count else "changed", (
            f"{len(names)} of {tree.count} files"
        )
    said = f"{len(names)} files"
    if tree.bytes:
        size = sum((folder / name).stat().st_size for name in names)
        said += f", {size} bytes"
        if size != tree.bytes:
            return "changed", f"{said}, expected {tree.bytes}"
    if tree.sha256 and (found := tree_digest(folder, names)) != tree.sha256:
        return "changed", f"{said}, digest {found[:12]}, expected {tree.sha256[:12]}"
    return "ok", f"{said}, {'digest as recorded' if tree.sha256 else 'no digest recorded'}"


def tree_files(folder: Path | str, pattern: str = "*", recursive: bool = False) -> Iterator[str]:
    """Names of the regular files in a folder that match, in no order; below it too (`a/b.jpg`) if `recursive`.

    Links count as what they point to. Nothing is opened, so that some 100,000 files take seconds on a local disk.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                if fnmatch.fnmatchcase(entry.name, pattern):
                    yield entry.name
            elif recursive and entry.is_dir():
                yield from (f"{entry.name}/{name}" for name in tree_files(entry.path, pattern, True))


def tree_digest(folder: Path, names: Iterable[str]) -> str:
    """The digest of files in a folder that `TreeEntry` describes."""
    names, total = sorted(names, key=os.fsencode), hashlib.sha256()
    bar = progress.bar(len(names), f"checksums of {folder.name}", show=len(names) > 5000)
    for name in names:
        total.update(f"{manifests.sha256(folder / name)}  ".encode() + os.fsencode(name) + b"\n")
        bar.step()
    bar.close()
    return total.hexdigest()


def _compare(item: str, have: int, expected: int, shortfall: float = 0) -> Line:
    status = "ok" if (1 - shortfall) * expected <= have <= expected else "changed"
    return item, status, f"{have}" + f", expected {expected}" * (have != expected)


def _counts(manifest: Manifest, notes: Notes) -> Iterator[Line]:
    found = load.counts(manifest.name)
    if not manifest.splits:
        yield from ((f"all: {key}", "ok", f"{n}, nothing recorded to compare with") for key, n in found["all"].items())
    for split in manifest.splits:
        for key, expected in split.counts().items():
            yield _compare(f"{split.name}: {key}", found.get(split.name, {}).get(key, 0), expected, split.shortfall)
    for variant in manifest.variants:  # other choices of questions from the same files
        try:
            have = load.variant_counts(manifest.name, variant.name)
        except InputError as error:  # it may need files that the default does not
            status = "changed" if variant == manifest.variants[0] else "ok"
            yield f"{variant.name}: questions", status, notes.of("cannot be read (1 error)", [str(error)])
            continue
        for split in ("train", "val", "test"):
            if (expected := getattr(variant, split)) is not None:
                yield _compare(f"{variant.name}: {split} questions", have.get(split, 0), expected)


def _images(manifest: Manifest, notes: Notes) -> Line:
    """Decode all images. `partial`: training can leave the bad ones out; what is evaluated on is whole or not at all."""
    evaluated: set[Path] = set()
    if manifest.role == "questions":
        evaluated = {q.image_path for q in load.load_questions(manifest.name) if q.split != "train"}
    number, bad = images.verify(readers.image_paths(manifest.name), f"{manifest.name}: decoding")
    if not bad:
        return IMAGES, "ok", f"{number} images"
    said = f"{len(bad)} of {number} images cannot be decoded"
    if needed := len(evaluated & set(bad)):
        said += f", {needed} of validation or test questions"
    status = "changed" if needed or len(bad) > MOST_BAD * number else "partial"
    messages = [f"{path if notes.kept_back else path.name} ({reason})" for path, reason in bad.items()]
    return IMAGES, status, notes.of(said, messages)


# --- at a glance -----------------------------------------------------------------------------------------------------


def present(entry: FileEntry | TreeEntry, folder: Path) -> tuple[int, int]:
    """How many files of an entry are there, and how many should be; by name, number and size, without reading any.

    Of a tree with folders below it and more than `MANY` files, any file at all counts as the whole tree.
    """
    path = folder / entry.path
    if isinstance(entry, FileEntry):
        return int(path.is_file() and path.stat().st_size == entry.bytes), 1
    if not path.is_dir():
        return 0, entry.count
    names = tree_files(path, entry.pattern, entry.recursive)
    if entry.recursive and entry.count > MANY:
        return (entry.count if next(names, None) else 0), entry.count
    return min(sum(1 for _ in names), entry.count), entry.count


def presence(name: str) -> tuple[str, str]:
    """Whether a set is on disk at a glance: `found`, `partly there` or `missing`, and where or how to get it."""
    manifest = manifests.as_found(manifests.load(name))
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        return "found", f"generated when needed, in {paths.shown(folder)}"
    entries = [entry for entry in (*manifest.files, *manifest.trees) if entry.required]
    try:
        counts = [present(entry, folder) for entry in entries]
        empty = not folder.is_dir() or not any(folder.iterdir())
    except OSError as error:
        return "partly there", f"in {paths.shown(folder)}, which cannot be read ({error.strerror})"
    have, wanted = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if empty or (wanted and not have):
        return "missing", manifests.how_to_get(manifest)
    if have < wanted:
        lacking = next(entry.path for entry, (n, of) in zip(entries, counts, strict=True) if n < of)
        said = f"{have} of {wanted} files as recorded in {paths.shown(folder)}; {lacking} is not complete"
        return "partly there", f"{said} (make data-check DATASETS={name})"
    return "found", f"in {paths.shown(folder)}"
