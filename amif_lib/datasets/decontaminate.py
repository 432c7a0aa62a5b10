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
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from amif_lib import manifests
from amif_lib.datasets import images, sources
from amif_lib.datasets.records import Study

log = logging.getLogger(__name__)

MAX_BITS = 4
SYNPIC = re.compile(r"synpic\d+", re.IGNORECASE)
COLUMNS = ("data_set", "protected_set", "group_id", "image", "protected_image", "same_id", "dhash_bits", "phash_bits")


def apply(name: str, studies: Sequence[Study], against: tuple[str, ...]) -> tuple[list[Study], pd.DataFrame]:
    """The studies without the groups that share a picture with a protected set, and the hits (see `report`)."""
    hits = find(name, studies, against)
    dropped = set(hits["group_id"])
    kept = [study for study in studies if study.group_id not in dropped]
    for hit in hits.itertuples():
        log.debug(
            "%s: %s (group %s) is %s of %s (same id: %s, hash distances %d and %d)",
            name,
            hit.image,
            hit.group_id,
            hit.protected_image,
            hit.protected_set,
            hit.same_id,
            hit.dhash_bits,
            hit.phash_bits,
        )
    summary = summarise(studies, hits)
    log.info(
        "%s: %d groups with %d images dropped, for %d pictures shared with %s",
        name,
        summary["groups_dropped"],
        summary["images_dropped"],
        summary["shared_pictures"],
        ", ".join(against),
    )
    return kept, hits


def report(name: str, against: tuple[str, ...]) -> pd.DataFrame:
    """The hits between a pre-training set and the protected sets, one line per pair of images.

    Columns: `data_set, protected_set, group_id, image, protected_image, same_id` (the MedPix ids agree), `dhash_bits,
    phash_bits` (Hamming distances). `summarise` counts them.
    """
    from amif_lib.datasets import load_studies

    return find(name, load_studies(name), against)


def summarise(studies: Sequence[Study], hits: pd.DataFrame) -> dict[str, int]:
    """Counts of a decontamination: shared ids, pairs alike by both hashes, groups and images dropped and left."""
    dropped = set(hits["group_id"])
    gone = [study for study in studies if study.group_id in dropped]
    alike = (hits["dhash_bits"] <= MAX_BITS) & (hits["phash_bits"] <= MAX_BITS)
    n_images = sum(len(study.images) for study in studies)
    images_dropped = sum(len(study.images) for study in gone)
    return {
        "shared_ids": hits.loc[hits["same_id"], "protected_image"].nunique(),
        "alike_by_hash": int(alike.sum()),
        "shared_pictures": len(hits),
        "groups_dropped": len({study.group_id for study in gone}),
        "images_dropped": images_dropped,
        "groups_left": len({study.group_id for study in studies} - dropped),
        "images_left": n_images - images_dropped,
    }


def find(name: str, studies: Sequence[Study], against: tuple[str, ...]) -> pd.DataFrame:
    """Compare every image of the studies with every image of the protected sets."""
    from amif_lib.datasets import image_paths

    own = [(study.group_id, image.path) for study in studies for image in study.images]
    own_hashes = hashes([path for _, path in own], name)  # (n, 2)
    own_ids = [_synpic(path) for _, path in own]
    rows = []
    for protected in against:
        other = image_paths(protected)
        other_hashes = hashes(other, protected)  # (m, 2)
        other_ids = np.array([_synpic(path) for path in other])
        for (group, path), pair, identity in zip(own, own_hashes, own_ids, strict=True):
            bits = np.bitwise_count(pair ^ other_hashes)  # (m, 2)
            same = (other_ids == identity) & (identity != "")
            for index in np.flatnonzero(same | (bits <= MAX_BITS).all(axis=1)):
                rows.append(
                    (name, protected, group, path.name, other[index].name, bool(same[index]), *map(int, bits[index]))
                )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"same_id": bool, "dhash_bits": int, "phash_bits": int})


def _synpic(path: Path) -> str:
    match = SYNPIC.search(path.stem)
    return match[0].lower() if match else ""


def hashes(files: Iterable[Path], name: str) -> np.ndarray:
    """Difference hash and perceptual hash of each image: uint64 `(n, 2)`.

    Kept under `.amif/hashes/<set>.json` beside the data (`paths.prepared_root`), by SHA-256 of the file's content, so
    that a changed image is never taken for the old one. Raises InputError where that folder cannot be written.
    """
    files = list(files)
    cache_file = manifests.derived_folder(name) / "hashes" / f"{name}.json"
    try:
        cache = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cache = {}
    new = False
    out = np.zeros((len(files), 2), np.uint64)
    digests = sources.digests(name, files)
    missing = sum(digest not in cache for digest in digests)
    progress = tqdm(
        total=missing, desc=f"{name}: hashing images", unit="image", mininterval=5, leave=False, disable=missing < 200
    )
    for row, (path, digest) in enumerate(zip(files, digests, strict=True)):
        if digest not in cache:
            cache[digest], new = _hash(path), True
            progress.update()
        out[row] = [int(value, 16) for value in cache[digest]]
    progress.close()
    if new:
        with sources.writing(cache_file.parent):
            aside = cache_file.with_suffix(f".{os.getpid()}.json")
            aside.write_text(json.dumps(dict(sorted(cache.items())), indent=0), encoding="utf-8")
            aside.replace(cache_file)
    return out


def _hash(path: Path) -> list[str]:
    import imagehash

    grey = images.load_rgb(path).convert("L")
    return [str(imagehash.dhash(grey)), str(imagehash.phash(grey))]
