"""The phantom's question sets, each written in the official layout of a real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from amif_lib.datasets import phantom_questions
from amif_lib.datasets.phantom_cases import draw_case, draw_view, stream, write_beside


def write_vqa_rad(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    folder = root / "VQA_RAD Image Folder"
    folder.mkdir(parents=True)
    (root / "masks").mkdir()
    cases, masks, records, regions = [], {}, [], {}
    start = 0
    for split in ("train", "test"):
        part = []
        for index in range(start, start + counts[f"{split}_images"]):
            case = draw_case(index, "vqa_rad", stream(seed, index, 0))
            name = f"phantom{seed}{index:04d}.jpg"
            picture, labels, areas = draw_view(case, case.views[0], size, stream(seed, index, 2))
            (folder / name).write_bytes(picture)
            (root / "masks" / f"{Path(name).stem}.png").write_bytes(labels)
            masks[name] = {"view": case.views[0], "areas": areas}
            part.append((name, case))
        start += len(part)
        cases += [case for _, case in part]
        rng = np.random.default_rng([seed, 0 if split == "train" else 1, 9])
        for record, labels_asked in phantom_questions.questions(
            part, counts[f"{split}_questions"], split, len(records), rng
        ):
            records.append(record)
            regions[str(record["qid"])] = labels_asked
    text = json.dumps(records, indent=3, ensure_ascii=False)
    (root / "VQA_RAD Dataset Public.json").write_text(text, encoding="utf-8")
    write_beside(root, cases, masks)
    (root / "question_regions.json").write_text(json.dumps(regions), encoding="utf-8")


WRITERS = {"vqa_rad": write_vqa_rad}
