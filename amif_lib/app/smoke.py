"""`make smoke-paper`: an optimiser step of each training at the paper's full size, and ranked answers, on any machine.

Checkpoints with random weights are written in hub formats, so that the real loading code runs without a network.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from amif_lib.core import paths
from amif_lib.experiments.run_spec import RunSpec, parse

PRETRAIN = ("phantom_mimic_cxr", "phantom_roco", "phantom_medicat")


def write_clip(folder: Path) -> str:
    """A Hugging Face CLIP with ViT-B/16 vision tower (224 px, 197 positions) and random weights."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16}
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 100}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    return str(folder)


def write_bert(folder: Path) -> str:
    """A Hugging Face BertForMaskedLM of base size with random weights, and its tokenizer of 28,996 pieces."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = [chr(c) for c in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pieces += [f"[unused{i}]" for i in range(28_996 - len(pieces))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    BertForMaskedLM(BertConfig(vocab_size=len(pieces))).save_pretrained(folder)
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


def specification(folder: Path, batch: int = 2, steps: int = 1) -> RunSpec:
    """A paper-size fine-tuning with both pre-training stages behind it, `steps` steps each."""
    bert, teacher = write_bert(folder / "bert"), write_open_clip(folder / "teacher")
    init = {"image": write_clip(folder / "clip"), "text": bert, "decoder": bert, "tokenizer": bert}
    train = {"epochs": steps, "batch_size": batch, "learning_rate": 4e-6}
    data = {"pretrain": list(PRETRAIN), "questions": "phantom_vqa_rad"}
    data |= {"max_studies": batch, "max_questions": batch}  # one step per epoch
    shared = {"scale": "paper", "init": init, "data": data, "train": train}
    stage1 = shared | {"stage": "stage1", "teacher": {"source": teacher}}
    stage2 = stage1 | {"stage": "stage2", "parent": stage1}
    return parse(shared | {"stage": "finetune", "parent": stage2}, "smoke-paper")


def main(batch: int = 2, steps: int = 1) -> None:  # with the paper's batch and more steps: a benchmark for a GPU
    """Run the three trainings in a temporary results folder and print seconds, losses and the best-ranked answers."""
    paths.refuse_reference("smoke-paper")
    import torch

    from amif_lib.experiments.stored import load_run
    from amif_lib.training import launch

    with tempfile.TemporaryDirectory(prefix="amif-smoke-") as folder:
        os.environ["AMIF_RESULTS"] = f"{folder}/results"
        print("writing checkpoints of the paper's size with random weights", flush=True)
        for spec in specification(Path(folder), batch, steps).trainings():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            done = load_run(launch.train(spec, processes=1))
            seconds, loss = done.metrics["train_time_s"], done.history["total"].iloc[0]
            text = f"{spec.stage}: {steps} step(s) of {batch} samples in {seconds:.0f} s, first loss {loss:.3f}"
            if torch.cuda.is_available():
                text += f", at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of GPU memory"
            print(text, flush=True)
        print(f"fine-tuned network: {done.metrics['parameters']:,} parameters; answers of untrained weights, ranked:")
        for row in done.predictions.head(2).itertuples():
            print(f"  {row.question}  ->  {row.prediction}")
