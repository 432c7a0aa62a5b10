"""Data manifests: what a data set consists of, where it lies, and whether what lies there is it.

A manifest (`data_manifests/<name>.yaml`) holds only what determines the data (files, checksums, counts, generator
settings) and what decides its use (licence, redistribution); prose belongs into the data card beside it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import digest, read_yaml

SCHEMA_VERSION = 1  # of the manifests that this kit reads
DATA_FIELDS = {"name", "version", "reader", "layout", "files", "trees", "splits", "generator"}
DAY = r"^(\d{4}-\d{2}-\d{2})?$"


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Strict):
    """One file of the set; `path` is relative to the set's folder."""

    path: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    required: bool = True
    role: Literal["annotations", "documentation"] = "annotations"


class TreeEntry(Strict):
    """A folder of files. `sha256` hashes the lines `<sha256>  <name>`, sorted by name bytewise; empty: not recorded.

    `recursive`: files in folders below count too, and the name is the path relative to `path`, with slashes.
    """

    path: str
    count: int = Field(gt=0)
    bytes: int = Field(0, ge=0, description="0: not recorded")
    recursive: bool = False
    pattern: str = Field("*", description="only files whose name matches count, as in `*.jpg`")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    required: bool = True
    role: Literal["images", "reports"] = "images"


class SplitEntry(Strict):
    """Expected counts of a split: of studies for a pre-training set, of questions for a question set."""

    name: Literal["train", "val", "test", "all"]
    studies: int | None = None
    questions: int | None = None
    images: int | None = None
    closed_field: int | None = Field(None, description="closed by the set's own field")
    closed_yes_no: int | None = Field(None, description="closed by the paper's definition: the answer is yes or no")
    distinct_answers: int | None = Field(None, description="after normalisation")
    shortfall: float = Field(
        0, ge=0, lt=1, description="share by which a count may fall short: images that are gone, texts that are empty"
    )

    def counts(self) -> dict[str, int]:
        """The counts that are recorded, by name."""
        return self.model_dump(exclude={"name", "shortfall"}, exclude_none=True)


class LeakCounts(Strict):
    """Expected leakage of one training part and test part (columns of `leaks.report`); what is None is not recorded."""

    training: str = Field("train", description="`train` or `train+val`, after the language where there are several")
    test: str = Field("test", description="`test`, after the language where there are several")
    on_train_image: int | None = Field(None, description="test questions on an image that is in training")
    paraphrase_in_train: int | None = Field(None, description="test questions with a paraphrase and answer in training")
    unseen_answer: int | None = Field(None, description="test questions whose answer no training question has")
    ceiling_overall: float | None = Field(None, description="%, the most that training answers can reach")
    lookup_overall: float | None = Field(None, description="%, by the nearest question on the same image")

    def recorded(self) -> dict[str, float]:
        """The numbers that are recorded, by column."""
        return self.model_dump(exclude={"training", "test"}, exclude_none=True)


class Variant(Strict):
    """A choice of questions from the same files: a value of `data.training_file`, or of `data.language` for SLAKE."""

    name: str
    rule: str = Field(description="how it is made from the official files")
    train: int | None = Field(None, description="expected training questions")
    val: int | None = Field(None, description="expected validation questions")
    test: int | None = Field(None, description="expected test questions")
    leaks: bool = Field(False, description="holds answers to test questions")
    leaks_expected: tuple[LeakCounts, ...] = Field((), description="compared by the data check; empty: only printed")


class Download(Strict):
    """A file that `make data` fetches, and where it goes.

    For `huggingface`, `url` is the repository id and `file` the path in it at `revision`; else `url` is the address.
    """

    kind: Literal["http", "huggingface", "zenodo", "osf", "github"]
    url: str
    file: str = ""
    revision: str = ""
    target: str = Field(description="path under the set's folder; an archive is unpacked beside it where `unpack` says")
    bytes: int = Field(0, ge=0, description="0: size not known beforehand")
    about_bytes: int = Field(
        0, ge=0, description="a rounded size, where `bytes` is not known: to plan with, never checked"
    )
    sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="empty: no checksum is known; the data check decides"
    )
    unpack: str = Field(
        "", description="folder under the set's folder that the archive is unpacked into; empty: kept as it is"
    )
    official: bool = Field(True, description="the data set's own place, not a mirror")
    exercised: bool = Field(False, description="whether this address was ever fetched by the kit's makers")


class Evidence(Strict):
    """What is known how: computed from the real files, or taken from documentation and never checked."""

    verified: tuple[str, ...] = ()
    documented: tuple[str, ...] = ()


class Alternative(Strict):
    """Another form of the same records, with the paths that the reader finds in it and its own checksums."""

    version: str
    layout: dict[str, str]
    files: tuple[FileEntry, ...]
    trees: tuple[TreeEntry, ...] = ()


class Redistribution(Strict):
    """What of the set may appear in a figure, an executed notebook, a report or a repository."""

    fixtures: bool = False
    images: bool = False
    texts: bool = False


class Access(Strict):
    level: Literal["open", "form", "credentialed", "per-article", "generated"]
    steps: tuple[str, ...] = ()
    env_vars: tuple[str, ...] = Field((), description="environment variables that say where the set lies")


class Licence(Strict):
    text: str
    evidence: str = ""
    url: str = Field("", description="page that states the terms, or where they are to be looked up")
    checked_on: str = Field("", pattern=DAY, description="day that page was looked at; empty: only stored copies were")


class Mirror(Strict):
    """Another place that has the set, or most of it; `make data` fetches from `downloads` alone."""

    kind: Literal["http", "huggingface", "zenodo", "osf", "github", "physionet"]
    id: str
    revision: str = Field("", description="commit or version; empty: not known")
    official: bool = Field(False, description="kept by the set's makers")
    note: str = Field("", description="how it differs from what the kit reads")


class Leakage(Strict):
    """How images of this set are told in others, and what is known to be shared."""

    protected_by: tuple[str, ...] = Field((), description="test sets that this pre-training set is to be cleaned of")
    id_key: str = Field("", description="field whose id other sets share; empty: none, only image hashes tell")
    known_overlaps: tuple[str, ...] = ()


class Verified(Strict):
    """Who compared the manifest with the files, when (empty: not noted) and how; the facts are in `Evidence`."""

    by: str = ""
    date: str = Field("", pattern=DAY)
    how: str = ""


class Generator(Strict):
    """Settings of `phantom.generate`; they determine every file."""

    kind: Literal["mimic_cxr", "roco", "medicat", "shapes", "vqa_rad", "slake", "pathvqa", "vqa_med_2019"]
    seed: int = Field(ge=0)
    size: int = Field(gt=0)
    counts: dict[str, int]
    version: int = Field(1, description="raised whenever the generator draws or writes anything differently")


class Manifest(Strict):
    schema_version: Literal[1]
    name: str
    version: str
    title: str
    reader: Literal["mimic_cxr", "roco", "medicat", "medpix2", "vqa_rad", "slake", "pathvqa", "vqa_med_2019"]
    role: Literal["pretraining", "questions", "protected"]
    folder: str = Field(description="folder under $DATA_ROOT, or under the phantom's root for generated data")
    layout: dict[str, str] = Field(description="the reader's paths, relative to the folder")
    homepage: str = ""
    mirrors: tuple[Mirror, ...] = ()
    licence: Licence
    redistribution: Redistribution = Redistribution()
    citation: str
    access: Access
    files: tuple[FileEntry, ...] = ()
    trees: tuple[TreeEntry, ...] = ()
    alternatives: tuple[Alternative, ...] = Field((), description="other forms; found by the first file of each")
    downloads: tuple[Download, ...] = ()
    splits: tuple[SplitEntry, ...] = ()
    variants: tuple[Variant, ...] = ()
    quirks: tuple[str, ...] = Field((), description="what the reader evens out, one line each")
    normalisation: str = Field("", description="how texts and answers are compared and counted")
    fields: tuple[str, ...] = Field((), description="of the records, as the files name them")
    encoding: str = Field("", description="of the text files; empty: not known")
    checks: tuple[Literal["file", "tree", "count", "variant", "leak", "images"], ...] = Field(
        (), description="kinds of line that the data check gives for the complete set (`data_check.Line.kind`)"
    )
    leakage: Leakage = Leakage()
    verified: Verified = Verified()
    evidence: Evidence = Evidence()
    generator: Generator | None = None


def names() -> list[str]:
    """All data sets that have a manifest."""
    return sorted(path.stem for path in paths.MANIFESTS.glob("*.yaml"))


@lru_cache
def load(name: str) -> Manifest:
    """The manifest of a data set.

    Raises:
        InputError: no such manifest, unknown key or wrong value; names the file and the field.
    """
    path = paths.MANIFESTS / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"data set {name!r} has no manifest {paths.shown(path)}; known: {', '.join(names())}")
    content = read_yaml(path)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{paths.shown(path)}: schema_version: {version}: written for a newer kit; update the kit "
            f"(this one reads version {SCHEMA_VERSION})"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise InputError(f"{paths.shown(path)}: {field}: {first['msg']}; mend the manifest") from None
    if manifest.name != name:
        raise InputError(f"{paths.shown(path)}: name: {manifest.name!r} must equal the file's name; mend the manifest")
    return manifest


def overview(data_sets: Iterable[str]) -> pd.DataFrame:
    """One line per data set: what it is, on what terms, and what of it may be shown."""
    rows = []
    for manifest in map(load, data_sets):
        allowed = manifest.redistribution
        shown = [kind for kind in ("images", "texts") if getattr(allowed, kind)]
        rows.append(
            {
                "data_set": manifest.name,
                "title": manifest.title,
                "used_for": manifest.role,
                "licence": manifest.licence.text,
                "access": manifest.access.level,
                "may_be_shown": " and ".join(shown) or "nothing",
            }
        )
    return pd.DataFrame(rows)


IMAGES = "images decode"  # the line of a `check` that may be `partial`


def unusable(checked: pd.DataFrame) -> pd.DataFrame:
    """The lines of a `check` table that forbid training: all that are not ok, but for a few images that cannot be
    decoded (`partial`), which training leaves out (`store.usable`)."""
    return checked[(checked["status"] != "ok") & ~((checked["item"] == IMAGES) & (checked["status"] == "partial"))]


def require(checked: pd.DataFrame) -> None:
    """Raise an InputError for the first `unusable` line of a `check` table, before anything is trained on it."""
    wrong = unusable(checked)
    if len(wrong):
        first = wrong.iloc[0]
        more = f" ({len(wrong) - 1} more lines of the check are not ok)" if len(wrong) > 1 else ""
        name = first["data_set"]
        raise InputError(
            f"data set {name}: {first['item']} is {first['status']}: {first['detail']}; complete or replace it, or, "
            f"if you changed it on purpose, record it in data_manifests/{name}.yaml{more}"
        )


def folder_of(manifest: Manifest) -> Path:
    """Where the set's folder is expected, whether it is there or not."""
    return (paths.phantom_root() if manifest.generator else paths.data_root()) / manifest.folder


def as_found(manifest: Manifest) -> Manifest:
    """The manifest of the form that lies in the set's folder: the main one, or an alternative whose first file is there."""
    folder = folder_of(manifest)
    if manifest.alternatives and not (manifest.files and (folder / manifest.files[0].path).is_file()):
        for other in manifest.alternatives:
            if (folder / other.files[0].path).is_file():
                return manifest.model_copy(update={name: getattr(other, name) for name in Alternative.model_fields})
    return manifest


def data_digest(name: str) -> str:
    """Digest of what the manifest says about the data itself (checksums, counts, generator), not about licences.

    Of a set with alternative forms, that of the form on this machine, or under FROM=reference of the form that the
    reference was made with: other files give other results.
    """
    form = _reference_form(load(name)) if paths.from_reference() else as_found(load(name))
    return digest(form.model_dump(mode="json", include=DATA_FIELDS, exclude_defaults=True))


def _reference_form(manifest: Manifest) -> Manifest:
    for path in sorted(paths.reference().glob("*/plan.json")):
        version = read_yaml(path).get("forms", {}).get(manifest.name)
        for other in manifest.alternatives:
            if other.version == version:
                return manifest.model_copy(update={name: getattr(other, name) for name in Alternative.model_fields})
    return manifest


def derived_folder(name: str) -> Path:
    """Where what is derived from the set goes (`paths.prepared_root`); a name without a manifest is a set of the user's."""
    generated = name in names() and load(name).generator
    return paths.prepared_root(paths.phantom_root() if generated else paths.data_root())


def stays_with_data(name: str) -> bool:
    """Whether nothing of a set but counts may leave the folder of its data: ids, file names, pictures and texts stay there.

    One rule: `access.level` is `credentialed`, since a data use agreement binds whoever holds such a set. What would name
    a record is written beside the data (`derived_folder`), and nothing of it goes anywhere under `results/`.
    """
    return name in names() and load(name).access.level == "credentialed"


def location(name: str) -> Path:
    """The set's folder; a generated set that is absent or of other settings is generated first.

    Raises:
        InputError: the folder is absent; says what to set or where to get the data.
    """
    manifest = load(name)
    folder = folder_of(manifest)
    if manifest.generator:
        from amif_lib.phantom import generate as phantom

        made = manifest.generator
        phantom.generate(folder, made.kind, made.seed, made.size, made.counts)
    elif not folder.is_dir():
        hint = "; access needs credentials" if manifest.access.level == "credentialed" else ""
        if manifest.access.level == "open" and manifest.downloads:
            hint = f"; make data DATASETS={name} fetches it"
        raise InputError(
            f"data set {name}: no folder {folder}; set DATA_ROOT to the folder that holds {manifest.folder}/ "
            f"(how to get it: data_manifests/{name}.md{hint})"
        )
    return folder


def generate(data_sets: Iterable[str]) -> None:
    """Generate those of the sets that are generated and absent, side by side on the machine's cores."""
    from amif_lib.phantom import generate as phantom

    absent = []
    for manifest in map(load, data_sets):
        made = manifest.generator
        if made and not phantom.is_current(folder_of(manifest), made.kind, made.seed, made.size, made.counts):
            absent.append(manifest.name)
    if len(absent) < 2:
        return
    with ProcessPoolExecutor(min(len(absent), os.cpu_count() or 1), get_context("spawn")) as pool:
        list(pool.map(location, absent))  # an error of one of them is raised here


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def tree_digest(folder: Path, pattern: str = "*", recursive: bool = False) -> tuple[int, int, str]:
    """Number of the files that `tree_files` gives, their bytes, and the digest that `TreeEntry` describes."""
    names = sorted(tree_files(folder, pattern, recursive), key=os.fsencode)
    lines = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    size = sum((folder / name).stat().st_size for name in names)
    return len(names), size, hashlib.sha256(os.fsencode(lines)).hexdigest()


def check(name: str, *, decode: bool = True, most_bad_images: float = 0.01) -> pd.DataFrame:
    """Compare a data set on disk with its manifest: one line per file, tree and count.

    Columns `data_set, item, status, detail`; status is `ok`, `missing`, `changed`, `partial` (some files of a
    tree are absent, or some images cannot be decoded) or `needs credential`. Nothing is raised for data that is absent
    or wrong: the table says it. `decode` decodes every image that a record names; a share of up to `most_bad_images` of
    them may be bad, of images that training alone uses.
    """
    from amif_lib.data import check as data_check

    return data_check.lines(name, decode=decode, most_bad_images=most_bad_images).drop(columns="kind")
