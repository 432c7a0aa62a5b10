"""Gradient caching: the whole batch's losses and gradients, in less memory, and what happens when memory runs out."""

from __future__ import annotations

import sys

import pytest
import torch

from amif_lib.core.errors import InputError
from amif_lib.methods.amif.network import AMiFForVQA
from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks.rows import limit_rows
from amif_lib.networks.sizes import ModelSpec
from amif_lib.training.gradient_cache import GradientCache
from tests import tiny
from tests.conftest import python


def gradients(module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def run_on(module):
    def run(batch):
        out = module(batch)
        out["total"] = tiny.total(module, out)
        out["total"].backward()
        return out

    return run


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_out_of_memory_halves_the_rows_and_changes_no_gradient(stage, monkeypatch):
    monkeypatch.delenv("AMIF_MICRO_BATCH", raising=False)
    batch = tiny.batch(8)
    whole = tiny.pretraining(stage)
    expected = GradientCache(whole, 8).step(batch, run_on(whole))
    module, tried = tiny.pretraining(stage), []

    def refuse(_, inputs, named):
        rows = len(named["pixel_values"])
        tried.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    module.amif.image_encoder.vit.register_forward_pre_hook(refuse, with_kwargs=True)
    micro = GradientCache(module, 8)
    found = micro.step(batch, run_on(module))
    assert micro.rows == 2 and max(tried) > 3 and tried[-1] <= 2
    torch.testing.assert_close(found["total"], expected["total"], atol=1e-5, rtol=1e-5)
    own, theirs = gradients(module), gradients(whole)
    assert own.keys() == theirs.keys() and own
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        torch.testing.assert_close(own[name], value, atol=1e-5 * largest, rtol=1e-3)


def test_questions_of_one_blank_image_in_rows_have_the_same_losses_and_gradients():
    torch.manual_seed(0)
    module = AMiFForVQA(ModelSpec(**tiny.MODEL), KnowledgeSpec(), torch.arange(5, 20))
    ids, answers = torch.randint(5, 400, (7, 6)), torch.randint(5, 400, (7, 4))
    inputs = torch.randn(1, 3, 32, 32), ids, torch.ones(7, 6).bool(), answers, torch.ones(7, 4).bool()
    found = []
    for rows in (0, 3):
        limit_rows(module, rows)
        module.zero_grad()
        loss = module(*inputs)  # (B,)
        loss.sum().backward()
        found.append((loss, gradients(module)))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_random_states_are_those_of_the_first_time():
    """Dropout draws alike when a part is computed again; else gradients and loss would be of different networks."""
    module = tiny.pretraining("stage1", model={"dropout": 0.5})
    module.train()
    limit_rows(module, 3)
    torch.manual_seed(1)
    tiny.total(module, module(tiny.batch(8))).backward()
    name, p = next((n, p) for n, p in module.named_parameters() if n.endswith("word_embeddings.weight"))
    direction, step = p.grad / p.grad.norm(), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            p += sign * step * direction
            torch.manual_seed(1)
            values.append(float(tiny.total(module, module(tiny.batch(8)))))
            p -= sign * step * direction
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(p.grad.norm()), rel=0.05), name


def test_one_row_that_does_not_fit_and_a_bad_setting_are_said_plainly(monkeypatch):
    module = tiny.pretraining("stage1")

    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.delenv("AMIF_MICRO_BATCH", raising=False)
    with pytest.raises(InputError, match="AMIF_MICRO_BATCH=1; set a smaller model"):
        GradientCache(module, 8).step(tiny.batch(8), full)
    monkeypatch.setenv("AMIF_MICRO_BATCH", "few")
    with pytest.raises(InputError, match="AMIF_MICRO_BATCH='few': give a whole number"):
        GradientCache(module, 8)


MEMORY = """
import re, torch
from tests import tiny
from amif_lib.networks.rows import limit_rows
torch.set_num_threads(1)
layers = {"image_layers": 6, "text_layers": 6, "fusion_layers": 3}
module = tiny.pretraining("stage2", model=layers)
# ru_maxrss begins at the parent's
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
tiny.total(module, module(tiny.batch(8, length=48))).backward()
batch, found = tiny.batch(256, length=48), [peak()]
for rows in (16, 0):
    limit_rows(module, rows)
    module.zero_grad()
    tiny.total(module, module(batch)).backward()
    found.append(peak())
print(found[1] - found[0], found[2] - found[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_sixteen_rows_at_a_time_take_less_than_a_third_of_the_memory():
    cached, whole = map(int, python("-c", MEMORY).stdout.split()[-2:])
    assert whole > 50_000 and cached < 0.35 * whole, (cached, whole)
