"""The same bits on every run: PyTorch's orderly algorithms, where asked for."""

from __future__ import annotations

import pytest
import torch

from amif_lib.core.errors import InputError
from amif_lib.training import determinism


@pytest.mark.parametrize(
    ("setting", "gpu", "on_cpu", "found"),
    [
        (None, False, "", True),
        (None, True, "", False),
        (None, True, "true", True),
        ("1", True, "", True),
        ("0", False, "", False),
    ],
)
def test_it_is_on_where_it_costs_nothing_or_is_asked_for(setting, gpu, on_cpu, found, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("ACCELERATE_USE_CPU", on_cpu)
    monkeypatch.delenv("AMIF_DETERMINISTIC", raising=False)
    if setting is not None:
        monkeypatch.setenv("AMIF_DETERMINISTIC", setting)
    assert determinism.asked() == found
    with determinism.deterministic():
        assert torch.are_deterministic_algorithms_enabled() == found
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_value_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("AMIF_DETERMINISTIC", "yes")
    with pytest.raises(InputError, match="AMIF_DETERMINISTIC='yes': give 1"):
        determinism.asked()


def test_mined_negatives_send_back_the_same_bits_on_several_threads(monkeypatch) -> None:
    """Many rows that take the same partner: its gradient is a sum whose order threads would decide."""
    monkeypatch.delenv("AMIF_DETERMINISTIC", raising=False)
    g = torch.Generator().manual_seed(0)
    index, sent = torch.randint(4, (4096,), generator=g), torch.randn(4096, 96, generator=g)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with determinism.deterministic():
            found = []
            for _ in range(20):
                tokens = torch.zeros(4, 96, requires_grad=True)
                tokens[index].backward(sent)
                found.append(tokens.grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    one_by_one = torch.stack([sent[index == row].double().sum(0) for row in range(4)])
    torch.testing.assert_close(found[0].double(), one_by_one, atol=1e-3, rtol=0)
