"""Removes from a pre-training set the cases (studies, articles) that share a picture with a protected (test) set.

Two images count as the same picture if their file names have the same MedPix id (`synpic...`), or if their difference
hashes and their perceptual hashes (64 bits each, grey) both differ in at most 4 bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.core.files import PREPARED, RESULTS, write_text
from amif_lib.data import images, load, manifests
from amif_lib.data.check import presence
from amif_lib.data.records import Study

log = logging.getLogger(__name__)

# Ids and hashes are both needed: hashes miss re-cropped copies, ids miss copies under another id. The difference hash
# alone confuses chest radiographs of different patients.
MAX_BITS = 4
# By reader: the splits whose images are kept out. Of every other set all images are; VQA-RAD is one of these, since its
# training and test questions share images.
PROTECTED_SPLITS = dict.fromkeys(("slake", "pathvqa"), ("test",)) | dict.fromkeys(
    ("vqa_med_2019", "medpix2_questions"), ("val", "test")
)
COLUMNS = ["data_set", "protected_set", "group_id", "image", "protected_image", "same_id", "dhash_bits", "phash_bits"]


def apply(name: str, studies: Sequence[Study], against: Sequence[str]) -> tuple[list[Study], pd.DataFrame]:
    """The studies outside all groups that share a picture with a protected set, and the pairs of pictures (`find`).

    A group is dropped whole, since its other images and its text show the same patient. The pairs name images: they are
    written to `results/private/decontamination/<set>.csv`, or to `.amif/` beside a set that
    `manifests.is_credentialed`; only counts may be shown.

    Raises InputError for a protected set that is absent or incomplete on disk, since a run could then pre-train on its
    pictures without anyone noticing.
    """
    for protected in against:
        status, where = presence(protected)
        if status != "found":
            remedy = "name fewer sets there, which changes the run's id: pictures of the others are then not kept out"
            what = f"protected set {protected} is not on disk: {where}; or {remedy} of pre-training"
            raise InputError(f"data.decontaminate_against: {what}")
    pairs = find(name, studies, against)
    restricted = next(filter(manifests.is_credentialed, (name, *against)), "")
    folder = (manifests.derived_folder(restricted) if restricted else paths.results() / "private") / "decontamination"
    write_text(folder / f"{name}.csv", pairs.to_csv(index=False), PREPARED if restricted else RESULTS)
    dropped = set(pairs["group_id"])
    said = "%s: %d groups dropped, for %d pictures shared with %s"
    log.info(said, name, len(dropped), len(pairs), ", ".join(against))
    return [study for study in studies if _group(study) not in dropped], pairs


def counts(name: str, against: Sequence[str], stored_side: int = 0) -> dict[str, str | int]:
    """What may be shown of a set's decontamination: which sets are kept out, and counts."""
    studies = load.load_studies(name, stored_side=stored_side)
    left, pairs = apply(name, studies, against)
    n_images, n_left = (sum(len(study.images) for study in part) for part in (studies, left))
    return {
        "data_set": name,
        "kept_out": ", ".join(against),
        "shared_ids": pairs.loc[pairs["same_id"], "protected_image"].nunique(),
        "alike_by_hash": int((pairs[["dhash_bits", "phash_bits"]] <= MAX_BITS).all(axis=1).sum()),
        "shared_pictures": len(pairs),
        "groups_dropped": pairs["group_id"].nunique(),
        "images_dropped": n_images - n_left,
        "groups_left": len(set(map(_group, left))),
        "images_left": n_left,
    }


def _group(study: Study) -> str:
    """The unit that is dropped as a whole: the study's group, or the study itself if it has none."""
    return study.group_id or study.study_id


def find(name: str, studies: Sequence[Study], against: Sequence[str]) -> pd.DataFrame:
    """Every pair of an image of the studies and a protected image that are the same picture, one line each.

    Columns: `COLUMNS`; `same_id` (the MedPix ids agree), `dhash_bits` and `phash_bits` (Hamming distances).
    """
    own = [(_group(study), image.path) for study in studies for image in study.images]
    own_hashes = hashes([path for _, path in own], name)  # (n, 2)
    own_by_id = defaultdict(list)
    for i, (_, path) in enumerate(own):
        own_by_id[_medpix_id(path)].append(i)
    rows = []
    for protected in against:
        other = protected_images(protected)
        other_hashes = hashes(other, protected)  # (m, 2)
        by_id = {(i, j) for j, path in enumerate(other) if (known := _medpix_id(path)) for i in own_by_id[known]}
        for i, j in sorted(by_id | set(alike_pairs(own_hashes, other_hashes))):
            bits = np.bitwise_count(own_hashes[i] ^ other_hashes[j])
            (group, path), same_id = own[i], (i, j) in by_id
            rows.append((name, protected, group, path.name, other[j].name, same_id, *map(int, bits)))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"same_id": bool, "dhash_bits": int, "phash_bits": int})


def protected_images(name: str) -> list[Path]:
    """The images of a set that must not be pre-trained on: all of them, or those of `PROTECTED_SPLITS`."""
    splits = PROTECTED_SPLITS.get(manifests.load(name).reader)
    if splits is None:
        return load.image_paths(name)
    return sorted({question.image_path for question in load.load_questions(name) if question.split in splits})


def _medpix_id(path: Path) -> str:
    found = re.search(r"synpic\d+", path.stem.lower())
    return found[0] if found else ""


def alike_pairs(own: np.ndarray, other: np.ndarray) -> Iterator[tuple[int, int]]:
    """Index pairs `(i, j)` with `own[i]` and `other[j]` (uint64 `(n, 2)`, `(m, 2)`) within `MAX_BITS` by both."""
    for j, one in enumerate(other):
        alike = (np.bitwise_count(own ^ one) <= MAX_BITS).all(axis=1)  # (n,)
        yield from ((int(i), j) for i in np.flatnonzero(alike))


def hashes(files: Sequence[Path], name: str) -> np.ndarray:
    """Difference hash and perceptual hash of each image, uint64 `(n, 2)`.

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
        write_text(cache_file, json.dumps(cache, indent=0, sort_keys=True), PREPARED)
    return np.array([[int(value, 16) for value in cache[key]] for key in keys], np.uint64).reshape(-1, 2)


def _hash(path: Path) -> list[str]:
    """Both hashes, hexadecimal; for an image that cannot be decoded, a digest of its path, which matches no image."""
    import imagehash

    try:
        grey = images.load_rgb(path).convert("L")
    except InputError:
        log.warning("an image cannot be decoded, so it is compared with the protected ones by its MedPix id alone")
        digest = hashlib.sha256(str(path).encode()).hexdigest()
        return [digest[:16], digest[16:32]]
    return [str(imagehash.dhash(grey)), str(imagehash.phash(grey))]
