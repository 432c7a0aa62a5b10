"""`make smoke-paper`: one optimiser step of each training at full paper size, and a ranked answer, on CPU.

Checkpoints of the paper's kinds are written locally in their hub formats with random weights (CLIP ViT-B/16 at 224 px, a
BERT with ClinicalBERT's vocabulary size, an open_clip ViT-B-16), so that the real loading code runs without a network.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from amif_lib.core import paths
from amif_lib.experiments import rows as experiments


def write_clip(folder: Path) -> str:
    """A Hugging Face CLIP with ViT-B/16 vision tower (224 px, 197 positions) and random weights."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    CLIPModel(
        CLIPConfig(
            vision_config={
                "hidden_size": 768,
                "patch_size": 16,
                "image_size": 224,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
            },
            text_config=text,
        )
    ).save_pretrained(folder)
    return str(folder)


def write_bert(folder: Path, vocab_size: int = 28_996, **config: int) -> str:
    """A Hugging Face BertForMaskedLM, of base size unless `config` says otherwise, with `vocab_size` word pieces, random weights."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pieces = pieces[:vocab_size]
    pieces += [f"[unused{i}]" for i in range(vocab_size - len(pieces))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    BertForMaskedLM(BertConfig(vocab_size=vocab_size, **config)).save_pretrained(folder)
    return str(folder)


def write_open_clip(folder: Path) -> str:
    """An open_clip ViT-B-16 with random weights as a local folder."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(open_clip.create_model("ViT-B-16").state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config("ViT-B-16"), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


def specification(folder: Path) -> experiments.RunSpec:
    """A paper-size fine-tuning with both pre-training stages behind it: one step each, batch 2."""
    bert, teacher = write_bert(folder / "bert"), write_open_clip(folder / "teacher")
    init = {"image": write_clip(folder / "clip"), "text": bert, "decoder": bert, "tokenizer": bert}
    train = {"epochs": 1, "batch_size": 2, "learning_rate": 4e-6, "max_steps": 1}
    data = {"pretrain": ["phantom_mimic_cxr"], "questions": "phantom_vqa_rad", "max_studies": 4, "max_questions": 2}
    shared = {"scale": "paper", "init": init, "data": data, "train": train}
    stage1 = shared | {"stage": "stage1", "teacher": {"source": teacher}}
    stage2 = stage1 | {"stage": "stage2", "parent": stage1}
    return experiments.parse(shared | {"stage": "finetune", "parent": stage2}, "smoke-paper")


def main() -> None:
    """Run the three trainings in a temporary results folder and print times, losses and the best-ranked answers."""
    from amif_lib.experiments.predictions import read_predictions
    from amif_lib.training import loop as train

    paths.phantom_root()  # the demo data belongs to the clone and is generated there if absent
    before = os.environ.get("AMIF_RESULTS")
    folder = Path(tempfile.mkdtemp(prefix="amif-smoke-"))
    try:
        os.environ["AMIF_RESULTS"] = str(folder / "results")
        print("writing checkpoints of paper size with random weights", flush=True)
        run = specification(folder)
        for spec in run.lineage():
            started = time.time()
            directory = train.run_spec(spec)
            loss = train.read_lines(directory / "metrics.jsonl")[0]["total"]
            print(f"{spec.stage}: one step at paper size, loss {loss:.3f}, {time.time() - started:.0f} s", flush=True)
        frame, candidates = read_predictions(run.directory)
        metrics = json.loads((run.directory / "metrics.json").read_text(encoding="utf-8"))
        print(
            f"answers ranked for {len(frame)} questions over {len(candidates)} candidates; fine-tuned network: "
            f"{metrics['parameters']:,} parameters"
        )
        for row in frame.itertuples():
            print(f"  {row.question}  ->  {row.prediction}  (untrained weights: the answer means nothing)")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            os.environ.pop("AMIF_RESULTS", None)
        else:
            os.environ["AMIF_RESULTS"] = before
