"""Keeps cases (studies, articles) with a picture of a protected set (a test set) out of a pre-training set.

An image counts as the same picture as a protected one when both names carry the same MedPix id (`synpic...`), or when
both the difference hash and the perceptual hash (64 bits, grey) differ in at most 4 bits: re-cropped copies escape the
hashes, copies under another id escape the ids, and the difference hash alone confuses chest radiographs of different
patients.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, RESULTS, write_text
from amif_lib.data import images, load, manifests
from amif_lib.data.records import Study

log = logging.getLogger(__name__)

Absent = Literal["error", "skip"]
MAX_BITS = 4
# By reader: the splits whose images are kept out; of VQA-RAD and of any set not named here all images are, since
# VQA-RAD's training and test questions share theirs.
PROTECTED_SPLITS = dict.fromkeys(("slake", "pathvqa"), ("test",)) | dict.fromkeys(
    ("vqa_med_2019", "medpix2_questions"), ("val", "test")
)
SYNPIC = re.compile(r"synpic\d+")
COUNTS = ("data_set", "kept_out", "not_on_disk", "shared_ids", "alike_by_hash", "shared_pictures", "groups_dropped",
          "images_dropped", "groups_left", "images_left")  # fmt: skip
COLUMNS = ("data_set", "protected_set", "group_id", "image", "protected_image", "same_id", "dhash_bits", "phash_bits")


def apply(
    name: str, studies: Sequence[Study], against: tuple[str, ...], absent: Absent = "error"
) -> tuple[list[Study], pd.DataFrame]:
    """The studies without the groups that share a picture with a protected set, and the pairs of pictures (`find`).

    A group is dropped whole, since its other images and its text show the same patient. The pairs name images: they are
    written to `results/private/decontamination/<set>.csv`, or to `.amif/` beside a set that
    `manifests.is_credentialed`; only counts may be shown.

    Raises InputError for a protected set that is not on disk, since its pictures could then be pre-trained on unseen;
    with `absent="skip"` it is logged and left out.
    """
    if (gone := missing(against)) and absent == "error":
        folder = manifests.folder_of(manifests.load(gone[0]))
        raise InputError(
            f"data.decontaminate_against: protected set {gone[0]} is not on disk ({folder}); get it "
            f"(data_manifests/{gone[0]}.md), or set data.decontaminate_absent: skip to pre-train without keeping its "
            "pictures out"
        )
    if gone:
        log.warning("not kept out, since not on disk: %s", ", ".join(gone))
    against = tuple(protected for protected in against if protected not in gone)
    pairs = find(name, studies, against)
    bound = next(filter(manifests.is_credentialed, (name, *against)), "")
    folder = (manifests.derived_folder(bound) if bound else paths.results() / "private") / "decontamination"
    write_text(folder / f"{name}.csv", pairs.to_csv(index=False), PREPARED if bound else RESULTS)
    found = summarise(studies, pairs)
    said = "{groups_dropped} groups with {images_dropped} images dropped, for {shared_pictures} pictures shared with"
    log.info("%s: %s %s", name, said.format(**found), ", ".join(against) or "no set (none is on disk)")
    dropped = set(pairs["group_id"])
    return [study for study in studies if _group(study) not in dropped], pairs


def missing(against: Iterable[str]) -> list[str]:
    """Those of the protected sets without any picture on disk (a generated set is made when it is asked for)."""
    return [name for name in against if not manifests.load(name).generator and not _has_pictures(name)]


def _has_pictures(name: str) -> bool:
    form = manifests.form_on_disk(manifests.load(name))
    folder = manifests.folder_of(form)
    return folder.is_dir() and (not form.trees or any(any((folder / tree.path).glob("*")) for tree in form.trees))


def summarise(studies: Sequence[Study], pairs: pd.DataFrame) -> dict[str, int]:
    """Counts of a decontamination: shared ids, pairs alike by both hashes, groups and images dropped and left."""
    dropped = set(pairs["group_id"])
    left = [study for study in studies if _group(study) not in dropped]
    n_images = sum(len(study.images) for study in left)
    return {
        "shared_ids": pairs.loc[pairs["same_id"], "protected_image"].nunique(),
        "alike_by_hash": int((pairs[["dhash_bits", "phash_bits"]] <= MAX_BITS).all(axis=1).sum()),
        "shared_pictures": len(pairs),
        "groups_dropped": len(dropped),
        "images_dropped": sum(len(study.images) for study in studies) - n_images,
        "groups_left": len({_group(study) for study in left}),
        "images_left": n_images,
    }


def counts(name: str, against: tuple[str, ...], absent: Absent = "error", stored_side: int = 0) -> dict[str, str | int]:
    """What may be shown of a set's decontamination: which sets are kept out, which are not on disk, `summarise`."""
    gone = missing(against)
    studies = load.load_studies(name, stored_side=stored_side)
    _, pairs = apply(name, studies, against, absent)
    kept_out = ", ".join(protected for protected in against if protected not in gone)
    return {"data_set": name, "kept_out": kept_out, "not_on_disk": ", ".join(gone), **summarise(studies, pairs)}


def _group(study: Study) -> str:
    """What is dropped as a whole: the study's group, or the study itself where it has none."""
    return study.group_id or study.study_id


def find(name: str, studies: Sequence[Study], against: tuple[str, ...]) -> pd.DataFrame:
    """Every pair of an image of the studies and a protected image that are the same picture, one line each.

    Columns: `COLUMNS`; `same_id` (the MedPix ids agree), `dhash_bits` and `phash_bits` (Hamming distances, 64 where an
    image cannot be decoded: it is compared by its id alone, and a warning counts such images).
    """
    own = [(_group(study), image.path) for study in studies for image in study.images]
    own_hashes, own_bad = hashes([path for _, path in own], name)  # (n, 2)
    rows = []
    for protected in against:
        other = protected_images(protected)
        other_hashes, other_bad = hashes(other, protected)  # (m, 2)
        same = set(same_ids([path for _, path in own], other))
        alike = {(i, j) for i, j in alike_pairs(own_hashes, other_hashes) if i not in own_bad and j not in other_bad}
        for i, j in sorted(same | alike):
            unknown = i in own_bad or j in other_bad
            bits = (64, 64) if unknown else np.bitwise_count(own_hashes[i] ^ other_hashes[j])
            (group, path), by_id = own[i], (i, j) in same
            rows.append((name, protected, group, path.name, other[j].name, by_id, *map(int, bits)))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"same_id": bool, "dhash_bits": int, "phash_bits": int})


def protected_images(name: str) -> list[Path]:
    """The images of a set that must not be pre-trained on: all of them, or those of `PROTECTED_SPLITS`."""
    splits = PROTECTED_SPLITS.get(manifests.load(name).reader)
    if splits is None:
        return load.image_paths(name)
    return sorted({question.image_path for question in load.load_questions(name) if question.split in splits})


def alike_pairs(own: np.ndarray, other: np.ndarray, block: int = 4_000_000) -> Iterator[tuple[int, int]]:
    """Index pairs `(i, j)` with `own[i]` and `other[j]` (uint64 `(n, 2)`, `(m, 2)`) within `MAX_BITS` by both hashes.

    `block` bounds how many pairs are compared at once, and so the memory (about 10 bytes for each).
    """
    rows = max(1, block // max(1, len(other)))
    for start in range(0, len(own) if len(other) else 0, rows):
        first = own[start : start + rows, 0, None]  # (rows, 1)
        i, j = np.nonzero(np.bitwise_count(first ^ other[:, 0]) <= MAX_BITS)
        i += start
        both = np.bitwise_count(own[i, 1] ^ other[j, 1]) <= MAX_BITS
        yield from zip(i[both].tolist(), j[both].tolist(), strict=True)


def same_ids(own: Sequence[Path], other: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Index pairs of files that carry the same MedPix id."""
    first, second = ([SYNPIC.search(path.stem.lower()) for path in files] for files in (own, other))
    by_id: dict[str, list[int]] = defaultdict(list)
    for j in (j for j, found in enumerate(second) if found):
        by_id[second[j][0]].append(j)
    yield from ((i, j) for i, found in enumerate(first) if found for j in by_id[found[0]])


def without_repeated_articles(sets: Mapping[str, Sequence[Study]]) -> list[Study]:
    """The studies of all sets in order, without those of an article that an earlier set has; the log counts them.

    ROCO and MedICaT are both drawn from PubMed Central's open articles. Only group ids made by `records.article_id`
    are compared; a PMCID and a DOI of one article do not meet, so readers give the PMCID where they know it.
    """
    seen: set[str] = set()
    out: list[Study] = []
    for name, studies in sets.items():
        kept = [study for study in studies if study.group_id not in seen]
        if len(kept) < len(studies):
            log.info("%s: %d studies of an earlier set's articles dropped", name, len(studies) - len(kept))
        out += kept
        seen |= {study.group_id for study in kept if study.group_id.startswith(("pmc:", "doi:"))}
    return out


def hashes(files: Sequence[Path], name: str) -> tuple[np.ndarray, set[int]]:
    """Difference hash and perceptual hash of each image, uint64 `(n, 2)`, and the rows that could not be decoded.

    Kept under `.amif/hashes/<set>.json` beside the data, by path, size and time of change of the file. Raises
    InputError where that folder cannot be written.
    """
    cache_file = manifests.derived_folder(name) / "hashes" / f"{name}.json"
    try:
        cache: dict[str, list[str]] = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cache = {}
    keys = [f"{path} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in files]
    new = {key: path for key, path in zip(keys, files, strict=True) if key not in cache}
    if new:
        cache |= zip(new, images.in_parallel(_hash, list(new.values()), f"{name}: hashing images"), strict=True)
        write_text(cache_file, json.dumps({key: cache[key] for key in sorted(cache) if cache[key]}, indent=0), PREPARED)
    bad = {row for row, key in enumerate(keys) if not cache[key]}
    if bad:
        log.warning("%s: %d of %d images cannot be decoded and are compared by id alone", name, len(bad), len(files))
    found = [[int(value, 16) for value in cache[key] or ("0", "0")] for key in keys]
    return np.array(found, np.uint64).reshape(-1, 2), bad


def _hash(path: Path) -> list[str]:
    """Both hashes, hexadecimal; empty for an image that cannot be decoded."""
    import imagehash

    try:
        grey = images.load_rgb(path).convert("L")
    except InputError:
        return []
    return [str(imagehash.dhash(grey)), str(imagehash.phash(grey))]
