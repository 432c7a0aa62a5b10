"""The teacher's embeddings as they are cached: shard by shard, so that an interrupted job goes on where it was.

A shard holds each vector beside the digest of what it is of (an image's bytes as prepared, a report's text), so that another
choice of data takes from it what the same model has embedded before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amif_lib.core import files
from amif_lib.core.files import write_aside
from amif_lib.data.records import Study

if TYPE_CHECKING:
    from torch import Tensor

    from amif_lib.data.store import Pictures

Known = dict[str, dict[bytes, "Tensor"]]  # of "images" and "texts": vector (e,) by content

SHARDS, INDEX = "embeddings", "index.json"
SHARD = 4096  # studies whose embeddings are written together: what an interrupted job has to embed again at most


@dataclass
class Embeddings:
    """Unit-length teacher embeddings: image (by image id) and text (by study id), and each study's fold."""

    images: dict[str, int]
    studies: dict[str, int]
    image_vectors: Tensor  # (images, e)
    text_vectors: Tensor  # (studies, e)
    folds: dict[str, int]


def embed(
    studies: Sequence[Study],
    folds: dict[int, list[int]],
    models: dict[int, tuple[Any, Any, Any]],
    pictures: Pictures,
    folder: Path,
    others: Iterable[Path] = (),
) -> Embeddings:
    """Unit-length embeddings of clean images and texts (no augmentation), each by the model of its study's fold.

    They are written to `folder` in shards of `SHARD` studies, named by the digest of what was embedded, and a shard that is
    there is not made again. What the same model has embedded in `others`, folders of shards, is taken from there, by content;
    in a shard every content is embedded once.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from amif_lib.core import progress

    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = by_content(others)
    image_index, study_index = {}, {}
    vectors, rows = {"images": [], "texts": []}, {"images": 0, "texts": 0}
    parts = [
        (fold, [studies[i] for i in members[start : start + SHARD]])
        for fold, members in folds.items()
        for start in range(0, len(members), SHARD)
    ]
    bar = progress.bar(sum(len(_image_ids(part)) + len(part) for _, part in parts), "teacher embeddings")
    used = set()
    for number, (fold, part) in enumerate(parts):
        ids, texts = _image_ids(part), [study.text for study in part]
        path = folder / f"{number:05d}-{files.digest([fold, ids, texts])}.safetensors"
        if path.is_file():
            bar.step(len(ids) + len(texts))
        else:
            models[fold][0].to(device)
            found = _embedded(ids, texts, models[fold], pictures, device, known, bar.step)
            models[fold][0].cpu()
            with write_aside(path) as aside:
                save_file(found, aside)
        used.add(path.name)
        found = load_file(path)
        image_index |= {name: rows["images"] + i for i, name in enumerate(ids)}
        study_index |= {study.study_id: rows["texts"] + i for i, study in enumerate(part)}
        for kind in rows:
            vectors[kind].append(found[kind])
            rows[kind] += len(found[kind])
    for path in folder.iterdir():
        if path.name not in used:  # of an interrupted job whose studies were others
            path.unlink()
    bar.close()
    fold_of = {studies[i].study_id: fold for fold, members in folds.items() for i in members}
    return Embeddings(image_index, study_index, torch.cat(vectors["images"]), torch.cat(vectors["texts"]), fold_of)


def weights_digest(network: Any) -> str:
    """SHA-256 of a model's weights by name: two models with equal ones embed alike, wherever they were read from."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _image_ids(studies: Sequence[Study]) -> list[str]:
    return list(dict.fromkeys(picture.image_id for study in studies for picture in study.images))


def by_content(folders: Iterable[Path]) -> Known:
    """The vectors in folders of shards, by the digest of what they are of; shards that do not say it hold none."""
    from safetensors.torch import load_file

    found: Known = {"images": {}, "texts": {}}
    for path in sorted(path for folder in folders for path in folder.glob("[!.]*.safetensors")):
        shard = load_file(path)
        for kind, vectors in found.items():
            if f"{kind}_of" in shard:
                vectors |= zip(map(bytes, shard[f"{kind}_of"].numpy()), shard[kind], strict=True)
    return found


def _embedded(
    ids: list[str],
    texts: list[str],
    model: tuple[Any, Any, Any],
    pictures: Pictures,
    device: str,
    known: Known,
    step: Callable[[int], None],
) -> dict[str, Tensor]:
    """Embeddings `images` (images, e) and `texts` (studies, e) of one shard, and the digests (., 16) of what they are of.

    `step` is told how many are done.
    """
    import torch
    import torch.nn.functional as F

    network, preprocess, tokenizer = model

    def images(rows: list[int]) -> Tensor:
        pixels = torch.stack([preprocess(pictures[ids[row]].convert("RGB")) for row in rows])
        return network.encode_image(pixels.to(device))  # (b, e)

    def words(rows: list[int]) -> Tensor:
        return network.encode_text(tokenizer([texts[row] for row in rows]).to(device))  # (b, e)

    out = {}
    for kind, contents, encode in (
        ("images", (pictures.content(name) for name in ids), images),
        ("texts", (text.encode() for text in texts), words),
    ):
        digests = [hashlib.sha256(content).digest()[:16] for content in contents]
        rows = {digest: row for row, digest in reversed(list(enumerate(digests)))}  # the first of each content
        new = sorted(row for digest, row in rows.items() if digest not in known[kind])
        step(len(digests) - len(new))
        vectors = {}
        with torch.inference_mode():
            for start in range(0, len(new), 64):
                part = new[start : start + 64]
                found = F.normalize(encode(part).float(), dim=-1).cpu()  # (b, e)
                vectors |= {digests[row]: vector for row, vector in zip(part, found, strict=True)}
                step(len(part))
        out[kind] = torch.stack([vectors[d] if d in vectors else known[kind][d] for d in digests])  # (n, e)
        out[f"{kind}_of"] = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, 16)
    return out


def write_vectors(folder: Path, embeddings: Embeddings) -> None:
    """Embeddings that are no model's, as one shard."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    with write_aside(folder / "00000.safetensors") as aside:
        save_file(
            {"images": embeddings.image_vectors.contiguous(), "texts": embeddings.text_vectors.contiguous()}, aside
        )


def write_index(folder: Path, embeddings: Embeddings) -> None:
    """Which row of a cache's shards, taken together, belongs to which image and study."""
    shards = sorted(path.name for path in (folder / SHARDS).glob("[!.]*.safetensors"))  # not what a killed job left
    content = {"shards": shards, "images": embeddings.images, "studies": embeddings.studies, "folds": embeddings.folds}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path) -> Embeddings:
    """Embeddings of a cache that `teachers.ensure` has made."""
    import torch
    from safetensors.torch import load_file

    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = [load_file(folder / SHARDS / name) for name in index["shards"]]
    return Embeddings(
        index["images"],
        index["studies"],
        torch.cat([part["images"] for part in parts]),  # (images, e)
        torch.cat([part["texts"] for part in parts]),  # (studies, e)
        index["folds"],
    )
