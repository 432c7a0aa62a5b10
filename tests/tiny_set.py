"""A question set in VQA-RAD's layout, three images and three questions, with a manifest that records its checksums."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from amif_lib.core import paths
from amif_lib.data import manifests

ANNOTATIONS, IMAGES = "VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"
ASKED = (("a.jpg", "Yes", "freeform"), ("b.jpg", "ct", "para"), ("Z.jpg", "no", "test_freeform"))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TinySet:
    """The set `tiny`: its files' contents by path, and its manifest, the only one there is, under a new DATA_ROOT."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        plain = yaml.safe_load((paths.MANIFESTS / "vqa_rad.yaml").read_text(encoding="utf-8"))
        (tmp_path / "manifests").mkdir()
        patch.setattr(paths, "MANIFESTS", tmp_path / "manifests")
        patch.setenv("DATA_ROOT", str(tmp_path / "data root"))
        self.home = tmp_path / "data root" / "tiny"
        images = {}
        for name, *_ in ASKED:
            out = io.BytesIO()
            Image.new("L", (9, 9), 40).save(out, "JPEG", comment=name)
            images[name] = out.getvalue()
        record = {"question": "Is it?", "answer_type": "CLOSED"}
        content = [{**record, "qid": i, "image_name": name, "answer": answer, "phrase_type": kind}
                   for i, (name, answer, kind) in enumerate(ASKED)]  # fmt: skip
        self.annotations = json.dumps(content).encode()
        self.images = {f"{IMAGES}/{name}": image for name, image in images.items()}
        size = sum(map(len, images.values()))
        lines = "".join(f"{sha(images[name])}  {name}\n" for name in ("Z.jpg", "a.jpg", "b.jpg"))  # bytewise by name
        self.recorded = {"bytes": len(self.annotations), "sha256": sha(self.annotations)}
        documentation = {"path": "Readme.docx", "bytes": 3, "sha256": "0" * 64, "required": False}
        self.manifest = plain
        self.write(
            name="tiny", folder="tiny", downloads=[],
            variants=[{"name": "official1797", "rule": "all", "train": 2, "test": 1}],
            files=[{"path": ANNOTATIONS, **self.recorded}, {**documentation, "role": "documentation"}],
            trees=[{"path": IMAGES, "count": 3, "bytes": size, "sha256": sha(lines.encode())}],
            splits=[{"name": "train", "questions": 2, "images": 2, "closed_field": 2, "closed_yes_no": 1},
                    {"name": "test", "questions": 1, "images": 1, "distinct_answers": 1}],
        )  # fmt: skip

    def write(self, **changes: object) -> None:
        """Change the manifest."""
        self.manifest |= changes
        (paths.MANIFESTS / "tiny.yaml").write_text(yaml.safe_dump(self.manifest), encoding="utf-8")
        manifests.load.cache_clear()

    def place(self) -> None:
        """Put the files where the set is looked for."""
        for name, content in {ANNOTATIONS: self.annotations, **self.images}.items():
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).write_bytes(content)
