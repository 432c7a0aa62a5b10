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
from amif_lib.data import load, manifests, readers
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
        notes: list[str] = []
        rows += [(name, *line) for line in _lines(manifests.load(name), decode, notes)]
        if notes:
            write_text(_notes(name), "".join(f"{' '.join(message.split())}\n" for message in notes), PREPARED)
        elif manifests.stays_with_data(name):
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
    """Whether a set is on disk at a glance: `found`, `partly there` or `missing`, and where or how to get it.

    By names, numbers and sizes, without reading any file.
    """
    manifest = manifests.as_found(manifests.load(name))
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        return "found", f"generated when needed, in {paths.shown(folder)}"
    if not folder.is_dir() or not any(folder.iterdir()):
        return "missing", manifests.how_to_get(manifest)
    found = [(entry.path, *_look(entry, folder, glance=True)) for entry in (*manifest.files, *manifest.trees)]
    wrong = [f"{path} is {status}" for path, status, _ in found if status != "ok"]
    if wrong and all(status == "missing" for _, status, detail in found if detail != ABSENT):
        return "missing", manifests.how_to_get(manifest)
    if wrong:
        return "partly there", f"in {paths.shown(folder)}; {wrong[0]} (make data-check DATASETS={name})"
    return "found", f"in {paths.shown(folder)}"


# --- files -----------------------------------------------------------------------------------------------------------

ABSENT = "absent, optional"


def _look(entry: FileEntry | TreeEntry, folder: Path, glance: bool = False) -> tuple[str, str]:
    """Status and detail of a file or tree. Contents are read only where a digest is recorded, and not at a glance."""
    path, is_file = folder / entry.path, isinstance(entry, FileEntry)
    try:
        if not (path.is_file() if is_file else path.is_dir()):
            return ("missing", "not there") if entry.required else ("ok", ABSENT)
        return _file(entry, path, glance) if is_file else _tree(entry, path, glance)
    except OSError as error:
        return "changed", f"cannot be read ({error.strerror or type(error).__name__})"


def _file(entry: FileEntry, path: Path, glance: bool) -> tuple[str, str]:
    if (size := path.stat().st_size) != entry.bytes:
        return "changed", f"{size} bytes, expected {entry.bytes}"
    same = glance or manifests.sha256(path) == entry.sha256
    return "ok" if same else "changed", f"{size} bytes, sha256 {'as' if same else 'not as'} recorded"


def _tree(tree: TreeEntry, folder: Path, glance: bool) -> tuple[str, str]:
    names = tree_files(folder, tree.pattern, tree.recursive)
    if glance and tree.recursive and tree.count > MANY:
        return ("ok", "not counted") if next(names, None) else ("missing", "no files")
    names = list(names)
    if len(names) != tree.count:
        status = "missing" if not names else "partial" if len(names) < tree.count else "changed"
        return status, f"{len(names)} of {tree.count} files"
    said = f"{len(names)} files"
    if tree.bytes and not glance:
        size = sum((folder / name).stat().st_size for name in names)
        said += f", {size} bytes"
        if size != tree.bytes:
            return "changed", f"{said}, expected {tree.bytes}"
    if tree.sha256 and not glance and (found := tree_digest(folder, names)) != tree.sha256:
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


# --- records ---------------------------------------------------------------------------------------------------------


def _notes(name: str) -> Path:
    return manifests.derived_folder(name) / "check" / f"{name}.txt"


def _said(name: str, what: str, messages: list[str], notes: list[str]) -> str:
    """`what`, with the first messages, or where all of them are put."""
    if not manifests.stays_with_data(name):
        return f"{what}: {'; '.join(messages[:3])}" + " ..." * (len(messages) > 3)
    notes += messages
    return f"{what}; see {paths.shown(_notes(name))}"


def _lines(manifest: Manifest, decode: bool, notes: list[str]) -> Iterator[Line]:
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        manifests.location(manifest.name)
        yield "generator", "ok", f"written by this code, seed {manifest.generator.seed}"
    elif not folder.is_dir():
        status = "needs credential" if manifest.access.level == "credentialed" else "missing"
        yield "folder", status, manifests.how_to_get(manifest)
        return
    manifest = manifests.as_found(manifest)
    if manifest.alternatives:
        yield "layout", "ok", manifest.version
    yield from ((entry.path, *_look(entry, folder)) for entry in (*manifest.files, *manifest.trees))
    for item, lines in (("records", _counts), (IMAGES, _images if decode else _all_there)):
        try:
            yield from lines(manifest, notes)
        except InputError as error:
            yield item, "changed", _said(manifest.name, "cannot be read (1 error)", [str(error)], notes)
            return


def _all_there(manifest: Manifest, notes: list[str]) -> list[Line]:
    """Nothing; InputError where a question's image is absent (images of studies are looked for with the counts)."""
    if manifest.role == "questions":
        load.load_questions(manifest.name)
    return []


def _compare(item: str, have: int, expected: int, shortfall: float = 0) -> Line:
    status = "ok" if (1 - shortfall) * expected <= have <= expected else "changed"
    return item, status, f"{have}" + f", expected {expected}" * (have != expected)


def _counts(manifest: Manifest, notes: list[str]) -> Iterator[Line]:
    found = load.counts(manifest.name, images=False)
    if not manifest.splits:
        yield from ((f"all: {key}", "ok", f"{n}, nothing recorded to compare with") for key, n in found["all"].items())
    for split in manifest.splits:
        for key, expected in split.counts().items():
            yield _compare(f"{split.name}: {key}", found.get(split.name, {}).get(key, 0), expected, split.shortfall)
    for variant in manifest.variants:  # other choices of questions from the same files
        try:
            have = load.variant_counts(manifest.name, variant.name, images=False)
        except InputError as error:  # it may need files that the default does not
            said = _said(manifest.name, "cannot be read (1 error)", [str(error)], notes)
            yield f"{variant.name}: questions", "changed" if variant == manifest.variants[0] else "ok", said
            continue
        for split in ("train", "val", "test"):
            if (expected := getattr(variant, split)) is not None:
                yield _compare(f"{variant.name}: {split} questions", have.get(split, 0), expected)


def _images(manifest: Manifest, notes: list[str]) -> list[Line]:
    """Decode all images. `partial`: training can leave the bad ones out; what is evaluated on must be whole."""
    from amif_lib.data import images

    name, evaluated = manifest.name, set()
    if manifest.role == "questions":
        evaluated = {question.image_path for question in load.load_questions(name) if question.split != "train"}
    number, bad = images.verify(readers.image_paths(name), f"{name}: decoding")
    if not bad:
        return [(IMAGES, "ok", f"{number} images")]
    said = f"{len(bad)} of {number} images cannot be decoded"
    if needed := len(evaluated & set(bad)):
        said += f", {needed} of validation or test questions"
    status = "changed" if needed or len(bad) > MOST_BAD * number else "partial"
    shown = (path if manifests.stays_with_data(name) else path.name for path in bad)
    messages = [f"{path} ({reason})" for path, reason in zip(shown, bad.values(), strict=True)]
    return [(IMAGES, status, _said(name, said, messages, notes))]
