"""Whether what lies on disk is what a manifest describes: thoroughly by checksum and count, or at a glance."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, write_text
from amif_lib.data import manifests
from amif_lib.data.manifests import FileEntry, LeakCounts, Manifest, TreeEntry

Status = Literal["ok", "missing", "changed", "partial", "needs credential"]
Presence = Literal["found", "partly there", "missing"]
LEAKS = tuple(LeakCounts.model_fields)[2:]  # the numbers, after the names of the parts
MANY = 20_000  # a tree with folders below it and more files than this is not counted at a glance


class Line(NamedTuple):
    """One line of the check. `kind` says what was looked at; a count's item is `<split>: <what>`."""

    kind: Literal["folder", "file", "tree", "count", "variant", "records", "images", "leak"]
    item: str
    status: Status
    detail: str = ""


def lines(
    name: str, *, decode: bool = True, most_bad_images: float = 0.01, reports: dict[str, pd.DataFrame] | None = None
) -> pd.DataFrame:
    """`manifests.check` with the column `kind` (see `Line`) beside its own.

    What readers and decoders say names files and records. Of a set that `manifests.stays_with_data` the table holds
    counts only, and what they say is written to `.amif/check/<set>.txt` beside the data. The set's `leaks.report`, where
    it has one, is also put into `reports`, for callers that show it.
    """
    manifest, notes = manifests.load(name), Notes(name)
    found = [(name, *line) for line in _lines(manifest, decode, most_bad_images, notes)]
    notes.store()
    if manifest.role == "questions" and manifests.folder_of(manifest).is_dir():
        found += [(name, *line) for line in _leaks(manifest, {} if reports is None else reports)]
    return pd.DataFrame(found, columns=["data_set", *Line._fields])


class Notes:
    """What readers and decoders say of a set, for a table that others see."""

    def __init__(self, name: str) -> None:
        self.file = manifests.derived_folder(name) / "check" / f"{name}.txt"
        self.kept_back = manifests.stays_with_data(name)
        self.said: list[str] = []

    def of(self, error: Exception, what: str = "records cannot be read (1 error)") -> str:
        """The message, or `what` and where to find the message."""
        return self.several(what, [str(error)]) if self.kept_back else str(error)

    def several(self, what: str, messages: list[str], most: int = 3) -> str:
        """`what`, with the first messages, or where to find all of them."""
        if self.kept_back:
            self.said += messages
            return f"{what}; see {paths.shown(self.file)}"
        return f"{what}: {'; '.join(messages[:most])}" + (" ..." if len(messages) > most else "")

    def store(self) -> None:
        """Write the messages beside the data, one line each; a file of an earlier check goes."""
        if not self.said:
            if self.kept_back and self.file.is_file():
                self.file.unlink()
            return
        write_text(self.file, "".join(f"{' '.join(line.split())}\n" for line in self.said), PREPARED)


def _lines(manifest: Manifest, decode: bool, most_bad: float, notes: Notes) -> Iterator[Line]:
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        folder = manifests.location(manifest.name)
        yield Line("folder", "generator", "ok", f"written by this code, seed {manifest.generator.seed}")
    if not folder.is_dir():
        level = manifest.access.level
        if level == "credentialed":
            see = f"not downloaded by this kit; see data_manifests/{manifest.name}.md"
            yield Line("folder", "folder", "needs credential", see)
        elif level == "open":
            fetch = f", or fetch it: make data DATASETS={manifest.name}" if manifest.downloads else ""
            yield Line(
                "folder", "folder", "missing", f"set DATA_ROOT to the folder that holds {manifest.folder}/{fetch}"
            )
        else:  # a form, or one download per article
            steps = " ".join(f"({i}) {step}" for i, step in enumerate(manifest.access.steps, 1))
            see = f"not downloaded by this kit; {manifest.folder}/ under DATA_ROOT holds it. Steps: {steps}"
            yield Line("folder", "folder", "missing", " ".join(see.split()))
        return
    if manifest.alternatives:
        manifest = manifests.as_found(manifest)
        yield Line("folder", "layout", "ok", manifest.version)
    for entry in (*manifest.files, *manifest.trees):
        look = _file if isinstance(entry, FileEntry) else _tree
        try:
            yield look(entry, folder / entry.path)
        except OSError as error:
            kind = "file" if isinstance(entry, FileEntry) else "tree"
            yield Line(kind, entry.path, "changed", f"cannot be read ({error.strerror or type(error).__name__})")
    try:
        yield from _counts(manifest, notes)
        if decode:
            yield _images(manifest, most_bad, notes)
    except InputError as error:
        yield Line("records", "records", "changed", notes.of(error))


def _file(entry: FileEntry, path: Path) -> Line:
    if not path.is_file():
        return Line("file", entry.path, "missing") if entry.required else _optional("file", entry.path)
    size = path.stat().st_size
    if size != entry.bytes:
        return Line("file", entry.path, "changed", f"{size} bytes, expected {entry.bytes}")
    same = manifests.sha256(path) == entry.sha256
    said = f"{entry.bytes} bytes, sha256 {'as' if same else 'not as'} recorded"
    return Line("file", entry.path, "ok" if same else "changed", said)


def _tree(tree: TreeEntry, folder: Path) -> Line:
    """Count first; only what the manifest records is read: sizes where it has `bytes`, contents where it has a digest."""
    if not folder.is_dir():
        return Line("tree", tree.path, "missing", "no such folder") if tree.required else _optional("tree", tree.path)
    names = sorted(manifests.tree_files(folder, tree.pattern, tree.recursive), key=os.fsencode)
    if len(names) < tree.count:
        status = "partial" if names else "missing"
        return Line("tree", tree.path, status, f"{len(names)} of {tree.count} files")
    if len(names) > tree.count:
        return Line("tree", tree.path, "changed", f"{len(names)} files, expected {tree.count}")
    if not tree.bytes and not tree.sha256:
        return Line("tree", tree.path, "ok", f"{len(names)} files, no digest recorded")
    size = sum((folder / name).stat().st_size for name in names)
    if tree.bytes and size != tree.bytes:
        return Line("tree", tree.path, "changed", f"{size} bytes in {len(names)} files, expected {tree.bytes}")
    if not tree.sha256:
        return Line("tree", tree.path, "ok", f"{len(names)} files, {size} bytes, no digest recorded")
    total, bar = hashlib.sha256(), progress.bar(len(names), f"checksums of {tree.path}", show=len(names) > 5000)
    for name in names:
        total.update(f"{manifests.sha256(folder / name)}  ".encode() + os.fsencode(name) + b"\n")
        bar.step()
    bar.close()
    if total.hexdigest() != tree.sha256:
        said = f"digest {total.hexdigest()[:12]}, expected {tree.sha256[:12]}"
        return Line("tree", tree.path, "changed", f"{len(names)} files, {said}")
    return Line("tree", tree.path, "ok", f"{len(names)} files, {size} bytes, digest as recorded")


def _optional(kind: Literal["file", "tree"], item: str) -> Line:
    return Line(kind, item, "ok", "absent, optional")


def _counts(manifest: Manifest, notes: Notes) -> Iterator[Line]:
    from amif_lib.data import load as datasets

    found = datasets.counts(manifest.name)
    if not manifest.splits:
        for key, value in found["all"].items():
            yield Line("count", f"all: {key}", "ok", f"{value}, nothing recorded to compare with")
    for split in manifest.splits:
        have: dict[str, int] = found.get(split.name, {})
        for key, value in split.counts().items():
            same = (1 - split.shortfall) * value <= have.get(key, 0) <= value
            detail = f"{have.get(key, 0)}" + ("" if have.get(key, 0) == value else f", expected {value}")
            yield Line("count", f"{split.name}: {key}", "ok" if same else "changed", detail)
    for variant in manifest.variants:  # other choices of questions from the same files
        try:
            have = datasets.variant_counts(manifest.name, (variant,))[variant.name]
        except InputError as error:  # it may need files that the default does not
            yield Line(
                "count",
                f"{variant.name}: questions",
                "ok" if variant != manifest.variants[0] else "changed",
                notes.of(error, "questions cannot be read (1 error)"),
            )
            continue
        for split in ("train", "val", "test"):
            if (value := getattr(variant, split)) is not None:
                same = have.get(split, 0) == value
                detail = f"{have.get(split, 0)}" + ("" if same else f", expected {value}")
                yield Line("variant", f"{variant.name}: {split} questions", "ok" if same else "changed", detail)


def _images(manifest: Manifest, most_bad: float, notes: Notes) -> Line:
    """Decode all images. `partial`: training can leave the bad ones out, as `store.usable` will."""
    from amif_lib.data import images
    from amif_lib.data import load as datasets

    evaluated: set[Path] = set()  # what is evaluated on is whole or not at all
    if manifest.role == "questions":
        questions = datasets.load_questions(manifest.name)
        evaluated = {question.image_path for question in questions if question.split != "train"}
    number, bad = images.verify(datasets.image_paths(manifest.name), f"{manifest.name}: decoding")
    if not bad:
        return Line("images", manifests.IMAGES, "ok", f"{number} images")
    said = f"{len(bad)} of {number} images cannot be decoded"
    if needed := len(evaluated & set(bad)):
        said += f", {needed} of validation or test questions"
    status: Status = "changed" if needed or len(bad) > most_bad * number else "partial"
    messages = [f"{path if notes.kept_back else path.name} ({reason})" for path, reason in bad.items()]
    return Line("images", manifests.IMAGES, status, notes.several(said, messages))


def _leaks(manifest: Manifest, reports: dict[str, pd.DataFrame]) -> Iterator[Line]:
    """Leakage and ceilings against the recorded ones; needs the questions, not their images."""
    from amif_lib.scoring import leaks

    try:
        report = reports[manifest.name] = leaks.report(manifest.name)
    except (InputError, OSError, ValueError) as error:  # other lines say what is wrong with the files
        wanted = any(variant.leaks_expected for variant in manifest.variants)
        why = "see the lines above" if manifests.stays_with_data(manifest.name) else " ".join(str(error).split())
        yield Line("leak", "leakage", "changed" if wanted else "ok", f"not measured: {why}")
        return
    expected = {variant.name: variant.leaks_expected for variant in manifest.variants}
    measured = dict(iter(report.groupby("training_file", sort=False)))
    for name in [*measured, *(name for name in expected if name not in measured)]:
        if name not in measured:  # it needs files that the default does not
            yield Line("leak", f"{name}: leakage", "ok", "not measured: it needs files that are absent")
            continue
        table = measured[name]
        for wanted in expected.get(name, ()):
            row = table[(table["training"] == wanted.training) & (table["test"] == wanted.test)]
            plain = (wanted.training, wanted.test) == ("train", "test")
            parts = "" if plain else f" ({wanted.training}, {wanted.test})"
            for key, value in wanted.recorded().items():
                have = float(row[key].iloc[0]) if len(row) else float("nan")
                same = abs(have - value) < 0.006  # percentages are recorded with two decimals
                detail = f"{have:.10g}" + ("" if same else f", expected {value:.10g}")
                yield Line("leak", f"{name}: {key}{parts}", "ok" if same else "changed", detail)
        if not expected.get(name):
            for _, row in leaks.main_lines(table).iterrows():
                parts = "" if row["test"] == "test" else f" ({row['training']}, {row['test']})"
                values = ", ".join(f"{key} {row[key]:.10g}" for key in LEAKS)
                yield Line("leak", f"{name}: leakage{parts}", "ok", f"{values}; nothing recorded to compare with")


# --- at a glance ---------------------------------------------------------------------------------------------------


def present(entry: FileEntry | TreeEntry, folder: Path) -> tuple[int, int]:
    """How many files of an entry are there, and how many should be; by name, number and size, without reading any.

    Of a tree with folders below it and more than `MANY` files, any file at all counts as the whole tree.
    """
    path = folder / entry.path
    if isinstance(entry, FileEntry):
        return int(path.is_file() and path.stat().st_size == entry.bytes), 1
    if not path.is_dir():
        return 0, entry.count
    names = manifests.tree_files(path, entry.pattern, entry.recursive)
    if entry.recursive and entry.count > MANY:
        return (entry.count if next(names, None) else 0), entry.count
    return min(sum(1 for _ in names), entry.count), entry.count


def presence(name: str) -> tuple[Presence, str]:
    """Whether a set is on disk, at a glance (see `present`), and where, or how to get it; `check` is the real answer."""
    manifest = manifests.as_found(manifests.load(name))
    folder = manifests.folder_of(manifest)
    if manifest.generator:
        return "found", f"generated when needed, in {paths.shown(folder)}"
    entries = [entry for entry in itertools.chain(manifest.files, manifest.trees) if entry.required]
    try:
        counts = [present(entry, folder) for entry in entries]
        empty = not folder.is_dir() or not any(folder.iterdir())
    except OSError as error:
        return "partly there", f"in {paths.shown(folder)}, which cannot be read ({error.strerror})"
    have, wanted = sum(count for count, _ in counts), sum(count for _, count in counts)
    if empty or (wanted and not have):
        how = f"make data DATASETS={name} fetches it" if manifest.access.level == "open" and manifest.downloads else ""
        how = how or f"data_manifests/{name}.md says how to get it"
        return "missing", f"set DATA_ROOT to the folder that holds {manifest.folder}/ ({how})"
    if have < wanted:
        lacking = next(entry.path for entry, (n, of) in zip(entries, counts, strict=True) if n < of)
        said = f"{have} of {wanted} files as recorded in {paths.shown(folder)}; {lacking} is not complete"
        return "partly there", f"{said} (make data-check DATASETS={name})"
    return "found", f"in {paths.shown(folder)}"
