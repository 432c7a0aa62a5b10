"""Not a test: gradients of a global batch in every training, and answers, by each of several numbers of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from amif_lib.data.load import load_questions
from amif_lib.methods.amif.finetune import FineTuning
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.methods.batch import PretrainingBatch, QuestionBatch
from amif_lib.networks import tokenizers
from amif_lib.networks.sizes import ModelSpec
from amif_lib.objectives.distributed import agreed, gather_objects, own_rows, rank, world_size
from amif_lib.training import predict
from amif_lib.training.batches import share
from amif_lib.training.gradient_cache import GradientCache
from tests import tiny, tiny_arl, tiny_mlip

WAYS = {  # processes, and the rows that each computes at a time (0: all)
    "one process": (1, 0),
    "two processes": (2, 0),
    "four": (4, 0),
    "one, three rows at a time": (1, 3),
    "two, one row at a time": (2, 1),
}
SAMPLES = 8
QUESTIONS = 11
FINETUNINGS = ("finetune", "finetune without gate")
OBJECTIVES = {
    "stage1": {},
    "stage1 of one view": {"global_intra": "text"},
    "stage2": {},
    "stage2 without a teacher": {"labels": "one_hot"},
    "arl": {},
    "mlip": {},
}


def pretraining_case(name: str) -> tuple[torch.nn.Module, PretrainingBatch]:
    if name in ("arl", "mlip"):
        of = {"arl": tiny_arl, "mlip": tiny_mlip}[name]
        module, whole = of.pretraining(), of.batch(SAMPLES, step=10)
    else:
        module = tiny.pretraining(name[:6], **OBJECTIVES[name])
        whole = tiny.batch(SAMPLES, teacher="without" not in name, step=10)
    part = whole.map(lambda x: x[own_rows(SAMPLES)])
    longest = int(part.mask.sum(1).max())  # each process pads to its own longest text
    for key in ("ids", "mask", "copy_ids"):
        setattr(part, key, getattr(part, key)[:, :longest])
    if "one view" in name:
        part.views, part.view = part.views[:, :1], torch.zeros_like(part.view)
        part.extras["teacher_views"] = part.extras["teacher_views"][:, :1]
    return module, part


def finetuning_case(name: str) -> tuple[torch.nn.Module, QuestionBatch]:
    torch.manual_seed(0)
    knowledge = KnowledgeSpec(gate="without gate" not in name)  # Table 4 row 5: the gate's weights get no gradient
    module = FineTuning(AMiFForVQA(ModelSpec(**tiny.MODEL), knowledge, torch.arange(5, 20)))
    g = torch.Generator().manual_seed(0)
    total = 7  # does not divide: the last process gets a filler row of weight 0
    ids, answers = torch.randint(5, 400, (total, 6), generator=g), torch.randint(5, 400, (total, 4), generator=g)
    pictures = torch.randn(total, 3, 32, 32, generator=g)
    own, weights = zip(*share(list(range(total))), strict=True)
    own = list(own)
    ones = torch.ones(len(own), 6).bool()
    return module, QuestionBatch(pictures[own], ids[own], ones, answers[own], ones[:, :4], torch.tensor(weights), total)


def gradients(case: str) -> dict[str, torch.Tensor]:
    """Gradients, total loss and mined negatives of one global batch, the same on every process."""
    finetunes, drawn = case.startswith("finetune"), {}
    module, batch = finetuning_case(case) if finetunes else pretraining_case(case)
    if case.startswith("stage2"):
        plain = module.mine

        def recorded(*arguments):
            found = plain(*arguments)
            drawn.update({kind: negatives.index.tolist() for kind, negatives in found.items()})
            return found

        module.mine = recorded
    wrapped = DistributedDataParallel(module, find_unused_parameters=True) if world_size() > 1 else module
    if finetunes:  # a step before: unused parameters that are not looked for stop the second one
        tiny.total(module, wrapped(batch)).backward()
        module.zero_grad()
    micro = GradientCache(module, -(-SAMPLES // world_size()))  # $AMIF_MICRO_BATCH rows at a time, if set

    def run(whole: object) -> dict[str, torch.Tensor]:
        total = tiny.total(module, wrapped(whole))
        total.backward()
        return {"total": total}

    total = micro.step(batch, run)["total"].detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
        total /= world_size()
    out = {f"{case}/{name}": p.grad for name, p in module.named_parameters() if p.grad is not None} | {
        f"{case}/total": total
    }
    if hasattr(module, "after_step"):
        out |= {f"{case}/{name}": value for name, value in module.after_step().items()}
    parts = gather_objects(drawn)
    for kind in parts[0]:
        out[f"{case}/negatives/{kind}"] = torch.tensor([index for part in parts for index in part[kind]])
    return out


def evaluation(folder: Path) -> None:
    """Predictions of an untrained network for `QUESTIONS` test questions, a number that the processes do not divide."""
    run = tiny.run()
    found = load_questions("phantom_vqa_rad", **run.data.question_settings)
    asked = [q for split in ("train", "test") for q in [q for q in found if q.split == split][:QUESTIONS]]
    texts = [text for q in asked for text in (q.question, *q.answers)]
    tokenizer = tokenizers.train(texts, 400, folder.with_name(f"{folder.name}-tokenizer-{rank()}"))
    torch.manual_seed(0)
    model = AMiFForVQA(run.model, KnowledgeSpec(), torch.arange(5, 20), tokenizer, 24, 12)
    predict.predict(model, asked, run, folder, batch_size=2)


def process(number: int, processes: int, rows: int, out: Path) -> None:
    """One of the processes of one way."""
    torch.set_num_threads(1)
    os.environ["AMIF_MICRO_BATCH"] = str(rows or "")
    if processes > 1:
        store = out.with_suffix(".store").as_uri()
        dist.init_process_group("gloo", init_method=store, rank=number, world_size=processes)
    tensors = {name: value for case in (*FINETUNINGS, *OBJECTIVES) for name, value in gradients(case).items()}
    # each process would choose otherwise; all must take the first one's choice
    tensors["agreed"] = torch.tensor(gather_objects(agreed(rank() == 0)))
    if rank() == 0:
        save_file(tensors, out)
    evaluation(out.with_suffix(""))
    if processes > 1:
        dist.destroy_process_group()


def main(folder: Path) -> None:
    how = "fork" if sys.platform == "linux" else "spawn"  # forked processes need not import torch again
    for way, (processes, rows) in WAYS.items():
        given = (processes, rows, folder / f"{way}.safetensors")
        torch.multiprocessing.start_processes(process, given, processes, start_method=how)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
