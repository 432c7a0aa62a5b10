"""Keeps pictures of a protected set (a test set) out of a pre-training set.

An image counts as the same picture as a protected one when both names carry the same MedPix id (`synpic...`), or when
both the difference hash and the perceptual hash (64 bits, grey) differ in at most 4 bits. Either alone is not enough:
re-cropped copies escape the hashes, copies under another id escape the ids, and the difference hash alone confuses
chest radiographs of different patients. The whole case (study, article) of a hit is dropped, since its other
images and its text describe the same patient.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.core.files import RESULTS, write_aside, write_text
from amif_lib.data import images, manifests, sources
from amif_lib.data.records import Study

log = logging.getLogger(__name__)

Absent = Literal["error", "skip"]
MAX_BITS = 4
# By reader: the splits whose images are kept out; of VQA-RAD and of any set not named here all images are, since
# VQA-RAD's training and test questions share theirs.
PROTECTED_SPLITS = {"slake": ("test",), "pathvqa": ("test",), "vqa_med_2019": ("val", "test")}
SYNPIC = re.compile(r"synpic\d+", re.IGNORECASE)
COUNTS = ("data_set", "kept_out", "not_on_disk", "shared_ids", "alike_by_hash", "shared_pictures", "groups_dropped",
          "images_dropped", "groups_left", "images_left")  # fmt: skip
COLUMNS = ("data_set", "protected_set", "group_id", "image", "protected_image", "same_id", "dhash_bits", "phash_bits")


def apply(
    name: str, studies: Sequence[Study], against: tuple[str, ...], absent: Absent = "error"
) -> tuple[list[Study], pd.DataFrame]:
    """The studies without the groups that share a picture with a protected set, and the hits (see `find`).

    `absent` says what a protected set that is not on disk means (`present`). The hits name images: they are written to
    `results/private/decontamination/<set>.csv`, or to `.amif/` beside a set that `manifests.stays_with_data`. Counts may
    be shown.
    """
    against = present(against, absent)
    hits = find(name, studies, against)
    dropped = set(hits["group_id"])
    kept = [study for study in studies if _group(study) not in dropped]
    bound = next(filter(manifests.stays_with_data, (name, *against)), "")
    folder = (manifests.derived_folder(bound) if bound else paths.results() / "private") / "decontamination"
    with write_aside(folder / f"{name}.csv", sources.REMEDY if bound else RESULTS) as aside:
        hits.to_csv(aside, index=False)
    summary = summarise(studies, hits)
    log.info(
        "%s: %d groups with %d images dropped, for %d pictures shared with %s",
        name,
        summary["groups_dropped"],
        summary["images_dropped"],
        summary["shared_pictures"],
        ", ".join(against) or "no set (none is on disk)",
    )
    return kept, hits


def missing(against: Iterable[str]) -> list[str]:
    """Those of the protected sets whose folder is not on disk (a generated set is made when it is asked for)."""
    found = [manifests.load(name) for name in against]
    return [m.name for m in found if not m.generator and not manifests.folder_of(m).is_dir()]


def present(against: Iterable[str], absent: Absent = "error") -> tuple[str, ...]:
    """The protected sets that are on disk.

    One that is not is an InputError, since its pictures could then be pre-trained on unseen; with `absent="skip"` it is
    logged and left out.
    """
    against = tuple(against)
    if gone := missing(against):
        if absent == "error":
            raise InputError(
                f"data.decontaminate_against: protected set {gone[0]} is not on disk ({manifests.folder_of(manifests.load(gone[0]))}); "
                f"get it (data_manifests/{gone[0]}.md), or set data.decontaminate_absent: skip to pre-train without "
                "keeping its pictures out"
            )
        log.warning("not kept out, since not on disk: %s", ", ".join(gone))
    return tuple(name for name in against if name not in gone)


def report(name: str, against: tuple[str, ...], decontaminate_absent: Absent = "error", **reading: Any) -> pd.DataFrame:
    """The hits between a pre-training set and the protected sets, one line per pair of images.

    Columns: `data_set, protected_set, group_id, image, protected_image, same_id` (the MedPix ids agree), `dhash_bits,
    phash_bits` (Hamming distances). `summarise` counts them. `reading`: what training gives `load_studies` (with
    `stored_side`, undecodable images are left out).
    """
    from amif_lib.data.load import load_studies

    against = present(against, decontaminate_absent)  # before anything is read
    return find(name, load_studies(name, **reading), against)


def summarise(studies: Sequence[Study], hits: pd.DataFrame) -> dict[str, int]:
    """Counts of a decontamination: shared ids, pairs alike by both hashes, groups and images dropped and left."""
    dropped = set(hits["group_id"])
    gone = [study for study in studies if _group(study) in dropped]
    alike = (hits["dhash_bits"] <= MAX_BITS) & (hits["phash_bits"] <= MAX_BITS)
    n_images = sum(len(study.images) for study in studies)
    images_dropped = sum(len(study.images) for study in gone)
    return {
        "shared_ids": hits.loc[hits["same_id"], "protected_image"].nunique(),
        "alike_by_hash": int(alike.sum()),
        "shared_pictures": len(hits),
        "groups_dropped": len({_group(study) for study in gone}),
        "images_dropped": images_dropped,
        "groups_left": len({_group(study) for study in studies} - dropped),
        "images_left": n_images - images_dropped,
    }


def counts(
    name: str, against: tuple[str, ...], decontaminate_absent: Absent = "error", **reading: Any
) -> dict[str, str | int]:
    """What may be shown of a set's decontamination: which sets are kept out, which are not on disk, `summarise`.

    `reading`: as in `report`.
    """
    from amif_lib.data.load import load_studies

    studies = load_studies(name, **reading)
    _, hits = apply(name, studies, against, decontaminate_absent)
    gone = missing(against)
    kept_out = ", ".join(other for other in against if other not in gone)
    return {"data_set": name, "kept_out": kept_out, "not_on_disk": ", ".join(gone), **summarise(studies, hits)}


def _group(study: Study) -> str:
    """What is dropped as a whole: the study's group, or the study itself where it has none."""
    return study.group_id or study.study_id


def find(name: str, studies: Sequence[Study], against: tuple[str, ...]) -> pd.DataFrame:
    """Compare every image of the studies with every protected image of the sets `against`.

    An image that cannot be decoded is compared by its id alone, and a warning counts such images.
    """
    own = [(_group(study), image.path) for study in studies for image in study.images]
    own_bad: set[int] = set()
    own_hashes = hashes([path for _, path in own], name, own_bad)  # (n, 2)
    rows = []
    for protected in against:
        other = protected_images(protected)
        other_bad: set[int] = set()
        other_hashes = hashes(other, protected, other_bad)  # (m, 2)
        pairs = set(same_ids([path for _, path in own], other))
        alike = {(i, j) for i, j in alike_pairs(own_hashes, other_hashes) if i not in own_bad and j not in other_bad}
        for i, j in sorted(pairs | alike):
            bits = np.bitwise_count(own_hashes[i] ^ other_hashes[j])
            (group, path), match = own[i], (i, j) in pairs
            bits = (64, 64) if i in own_bad or j in other_bad else bits
            rows.append((name, protected, group, path.name, other[j].name, match, *map(int, bits)))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"same_id": bool, "dhash_bits": int, "phash_bits": int})


def protected_images(name: str) -> list[Path]:
    """The images of a set that must not be pre-trained on: all of them, or those of `PROTECTED_SPLITS`."""
    from amif_lib.data.load import image_paths, load_questions

    splits = PROTECTED_SPLITS.get(manifests.load(name).reader)
    if splits is None:
        return image_paths(name)
    return sorted({question.image_path for question in load_questions(name) if question.split in splits})


def alike_pairs(own: np.ndarray, other: np.ndarray, block: int = 4_000_000) -> Iterator[tuple[int, int]]:
    """Index pairs `(i, j)` with `own[i]` and `other[j]` (uint64 `(n, 2)`, `(m, 2)`) within `MAX_BITS` by both hashes.

    `block` bounds how many pairs are compared at once, and so the memory (about 10 bytes for each).
    """
    rows = max(1, block // max(1, len(other)))
    second = np.ascontiguousarray(other[:, 0])
    for start in range(0, len(own) if len(other) else 0, rows):
        first = own[start : start + rows, 0, None]  # (rows, 1)
        i, j = np.nonzero(np.bitwise_count(first ^ second) <= MAX_BITS)
        i += start
        both = np.bitwise_count(own[i, 1] ^ other[j, 1]) <= MAX_BITS
        yield from zip(i[both].tolist(), j[both].tolist(), strict=True)


def same_ids(own: Sequence[Path], other: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Index pairs of files that carry the same MedPix id."""
    by_id: dict[str, list[int]] = {}
    for j, path in enumerate(other):
        if identity := _synpic(path):
            by_id.setdefault(identity, []).append(j)
    for i, path in enumerate(own):
        yield from ((i, j) for j in by_id.get(_synpic(path), ()))


def without_repeated_articles(sets: Mapping[str, Sequence[Study]]) -> tuple[list[Study], dict[str, int]]:
    """The studies of all sets in order, and how many each set lost: those of an article that an earlier set has.

    ROCO and MedICaT are both drawn from PubMed Central's open articles. Only group ids made by `records.article_id`
    are compared; a PMCID and a DOI of one article do not meet, so readers give the PMCID where they know it.
    """
    seen: set[str] = set()
    out: list[Study] = []
    lost = {}
    for name, studies in sets.items():
        kept = [study for study in studies if study.group_id not in seen]
        lost[name] = len(studies) - len(kept)
        out += kept
        seen |= {study.group_id for study in kept if study.group_id.startswith(("pmc:", "doi:"))}
    if any(lost.values()):
        log.info("studies of articles that an earlier set has, dropped: %s", lost)
    return out, lost


def _synpic(path: Path) -> str:
    match = SYNPIC.search(path.stem)
    return match[0].lower() if match else ""


def hashes(files: Iterable[Path], name: str, bad: set[int]) -> np.ndarray:
    """Difference hash and perceptual hash of each image: uint64 `(n, 2)`; new ones are computed on all cores.

    Rows of images that cannot be decoded hold nothing: they are added to `bad`, and a warning counts them.

    Kept under `.amif/hashes/<set>.json` beside the data (`paths.prepared_root`), by SHA-256 of the file's content, so
    that a changed image is never taken for the old one. Raises InputError where that folder cannot be written.
    """
    files = list(files)
    cache_file = manifests.derived_folder(name) / "hashes" / f"{name}.json"
    try:
        cache = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cache = {}
    out = np.zeros((len(files), 2), np.uint64)
    digests = sources.digests(name, files)  # empty: cannot be read
    missing = {digest: path for path, digest in zip(files, digests, strict=True) if digest and digest not in cache}
    bar = progress.bar(len(missing), f"{name}: hashing images", show=len(missing) >= 200)
    new = False
    for digest, found in zip(missing, sources.in_order(_hash, missing.values()), strict=True):
        if found:
            cache[digest], new = found, True
        bar.step()
    bar.close()
    for row, digest in enumerate(digests):
        if digest in cache:
            out[row] = [int(value, 16) for value in cache[digest]]
        else:
            bad.add(row)
    if bad:
        log.warning("%s: %d of %d images cannot be decoded and are compared by id alone", name, len(bad), len(files))
    if new:
        write_text(cache_file, json.dumps(dict(sorted(cache.items())), indent=0), sources.REMEDY)
    return out


def _hash(path: Path) -> list[str]:
    """Both hashes, hexadecimal; empty for an image that cannot be decoded."""
    import imagehash

    try:
        grey = images.load_rgb(path).convert("L")
    except InputError:
        return []
    return [str(imagehash.dhash(grey)), str(imagehash.phash(grey))]
