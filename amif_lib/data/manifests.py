"""Data manifests: what a data set consists of, where it lies, and what of it may be shown.

A manifest (`data_manifests/<name>.yaml`) holds what determines the data (files, checksums, counts, generator settings)
and what decides its use (licence, redistribution); prose belongs in the data card beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import digest, read_yaml

DATA_FIELDS = {"name", "version", "reader", "layout", "files", "trees", "splits", "generator"}
KINDS = ("images", "texts")  # what `redistribution` allows or not
NOTICE = "NOT_FOR_REDISTRIBUTION.txt"
Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]  # "": not recorded


class Entry(BaseModel):
    """A part of a manifest: an unknown key or a wrong type is an error. All paths are relative to the set's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Entry):
    path: str
    bytes: PositiveInt
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    required: bool = True
    role: Literal["annotations", "documentation"] = "annotations"


class TreeEntry(Entry):
    """A folder of files. `sha256` hashes the lines `<sha256>  <name>`, sorted by name bytewise."""

    path: str
    count: PositiveInt
    bytes: NonNegativeInt = 0  # 0: not recorded
    sha256: Sha256 = ""


class SplitEntry(Entry):
    """Expected counts of a split: of studies for a pre-training set, of questions for a question set."""

    name: Literal["train", "val", "test", "all"]
    studies: int | None = None
    questions: int | None = None
    images: int | None = None
    closed_field: int | None = None  # closed by the set's own field
    closed_yes_no: int | None = None  # closed by the paper's definition: the answer is yes or no
    distinct_answers: int | None = None  # after normalisation
    shortfall: float = Field(0, ge=0, lt=1)  # share by which a count may fall short: images gone, texts empty

    def counts(self) -> dict[str, int]:
        """The counts that are recorded, by name."""
        return self.model_dump(exclude={"name", "shortfall"}, exclude_none=True)


class Variant(Entry):
    """A choice of questions from the same files: a value of `data.training_file`, or of `data.language` for SLAKE."""

    name: str
    rule: str  # how it is made from the official files
    train: int | None = None  # expected questions, as `val` and `test`
    val: int | None = None
    test: int | None = None
    leaks: bool = False  # holds answers to test questions
    leaks_expected: tuple[dict[str, str | int | float], ...] = ()  # columns of `scoring.leaks.report`


class Download(Entry):
    """A file that `make data` fetches, and where it goes."""

    kind: Literal["http", "huggingface"]
    url: str  # the address; of `huggingface` the repository, in which `file` is the path at `revision`
    file: str = ""
    revision: str = ""
    target: str
    bytes: NonNegativeInt = 0  # to plan with; 0: not known
    sha256: Sha256 = ""
    unpack: str = ""  # folder that the archive is unpacked into; "": kept as it is


class Access(Entry):
    level: Literal["open", "credentialed", "per-article", "generated"]
    steps: tuple[str, ...] = ()  # how a person gets the set


class Licence(Entry):
    text: str
    evidence: str = ""
    url: str = ""  # page that states the terms


class Generator(Entry):
    """Settings of the phantom's generator; they determine every file."""

    kind: str  # a function of `phantom.sets`, or `shapes`
    seed: NonNegativeInt
    size: PositiveInt
    counts: dict[str, int]
    version: int = 1  # raised whenever the generator draws or writes anything differently


class Form(Entry):
    """The files that a set consists of; `layout` holds the paths that its reader asks for."""

    version: str
    layout: dict[str, str]
    files: tuple[FileEntry, ...] = ()
    trees: tuple[TreeEntry, ...] = ()


class Manifest(Form):
    name: str
    title: str
    reader: str  # a module of `data.readers`
    role: Literal["pretraining", "questions"]
    folder: str  # under $DATA_ROOT, or under the phantom's root for generated data
    licence: Licence
    redistribution: dict[Literal["fixtures", "images", "texts"], bool] = {}  # what may appear where others see it
    citation: str
    access: Access
    alternatives: tuple[Form, ...] = ()  # other forms of the same records; found by the first file of each
    downloads: tuple[Download, ...] = ()
    splits: tuple[SplitEntry, ...] = ()
    variants: tuple[Variant, ...] = ()
    generator: Generator | None = None
    # for people, the audit (notebook 21) and the tests
    evidence: dict[Literal["verified", "documented"], tuple[str, ...]] = {}  # seen in the files, or in documentation
    homepage: str = ""
    mirrors: tuple[dict[str, Any], ...] = ()
    quirks: tuple[str, ...] = ()  # irregularities that the reader corrects, one line each
    leakage: dict[str, Any] = {}  # how its images are recognised in other sets, and which are known to be shared
    verified: dict[str, str] = {}  # who compared the manifest with the files, when and how


def names() -> list[str]:
    """All data sets that have a manifest."""
    return sorted(path.stem for path in paths.MANIFESTS.glob("*.yaml"))


@lru_cache
def load(name: str) -> Manifest:
    """The manifest of a data set. Raises InputError, which names file and field, if it is absent, has an unknown key
    or a wrong value."""
    path = paths.MANIFESTS / f"{name}.yaml"
    if name not in names():
        raise InputError(f"data set {name!r} has no manifest {paths.shown(path)}; known: {', '.join(names())}")
    try:
        manifest = Manifest.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise InputError(f"{paths.shown(path)}: {field}: {first['msg']}; correct the manifest") from None
    if manifest.name != name:
        raise InputError(f"{paths.shown(path)}: name: {manifest.name!r} must be {name!r}, as the file is named")
    return manifest


# --- where the data lie ----------------------------------------------------------------------------------------------


def _root(manifest: Manifest) -> Path:
    return paths.phantom_root() if manifest.generator else paths.data_root()


def folder_of(manifest: Manifest) -> Path:
    """Where the set's folder is expected, whether it is there or not."""
    return _root(manifest) / manifest.folder


def location(name: str) -> Path:
    """The set's folder; a generated set that is absent or has other settings is generated first. Raises InputError,
    which says what to set or where to get the data, if the folder is absent."""
    manifest = load(name)
    folder = folder_of(manifest)
    if made := manifest.generator:
        phantom = import_module("amif_lib.phantom.generate")  # by name, since data may not import the phantom
        phantom.generate(folder, made.kind, made.seed, made.size, made.counts)
    elif not folder.is_dir():
        raise InputError(f"data set {name}: no folder {folder}; {how_to_get(manifest)}")
    return folder


def how_to_get(manifest: Manifest) -> str:
    """What to do about a set that is not on disk, in a few words."""
    how = f"how to get it: data_manifests/{manifest.name}.md"
    if manifest.access.level == "open" and manifest.downloads:
        how = f"make data DATASETS={manifest.name} fetches it"
    return f"set DATA_ROOT to the folder that holds {manifest.folder}/ ({how})"


def form_on_disk(manifest: Manifest) -> Manifest:
    """The manifest of the form on disk: the main one, or an alternative if its first file lies in the set's folder."""
    folder = folder_of(manifest)
    if manifest.files and not (folder / manifest.files[0].path).is_file():
        for other in manifest.alternatives:
            if (folder / other.files[0].path).is_file():
                return manifest.model_copy(update=dict(other))
    return manifest


def data_digest(name: str) -> str:
    """Digest of the manifest's `DATA_FIELDS`, in the form on this machine, since other files give other results; under
    FROM=reference in the main form, with which the reference was made."""
    form = load(name) if paths.from_reference() else form_on_disk(load(name))
    return digest(form.model_dump(mode="json", include=DATA_FIELDS, exclude_defaults=True))


def derived_folder(name: str) -> Path:
    """The folder for files derived from the set (`paths.prepared_root`)."""
    return paths.prepared_root(_root(load(name)))


# --- what of a set may be shown: asked by whatever draws its images or prints its texts ------------------------------


def is_credentialed(name: str) -> bool:
    """Whether a set is under a data use agreement. Files that name or show its records are then written beside the
    data (`derived_folder`), never below `results/`; only counts are shown."""
    return load(name).access.level == "credentialed"


def may_show(name: str, kind: Literal["images", "texts"]) -> bool:
    """Whether `images` or `texts` of a set may appear in what others see, such as a figure or a report."""
    return load(name).redistribution.get(kind, False)


def withheld(data_sets: Iterable[str], kind: Literal["images", "texts"]) -> list[str]:
    """The names among `data_sets` whose images or texts may not be shown."""
    return sorted({name for name in data_sets if not may_show(name, kind)})


def why_not(name: str, kind: str) -> str:
    """The line that stands in place of images or texts that may not be shown."""
    manifest = load(name)
    return f"{manifest.title}: {kind} not shown, since its terms do not allow it (licence: {manifest.licence.text})."


def folder_for(wanted: Path, *, images: Iterable[str] = (), texts: Iterable[str] = ()) -> Path:
    """The folder for a file that shows images or texts of these sets: `wanted`, below `results/`, or, if a set does
    not allow it, its counterpart below `results/private/`, which no page embeds and no command copies."""
    if not withheld(images, "images") and not withheld(texts, "texts"):
        return Path(wanted)
    return paths.results() / "private" / Path(wanted).resolve().relative_to(paths.results())


def notice(data_sets: Collection[str]) -> str:
    """A warning to read before weights trained on these sets are passed on; empty if every set allows that."""
    bound = map(load, sorted({*withheld(data_sets, "images"), *withheld(data_sets, "texts")}))
    lines = "".join(f"- {manifest.title}: {manifest.licence.text}\n" for manifest in bound)
    return lines and (
        "Do not publish this folder, nor the weights, vocabulary or predictions in it, before you have checked the\n"
        f"terms of the data that the run and its ancestors were trained on:\n{lines}"
    )


def mark(run_folder: Path, data_sets: Collection[str]) -> None:
    """Write the notice, if there is one, into a run's folder and beside its weights."""
    if text := notice(data_sets):
        for place in (run_folder, run_folder / "model"):
            (place / NOTICE).write_text(text, encoding="utf-8")
