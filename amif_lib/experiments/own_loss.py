"""A loss that a notebook defines. Its source is part of the run's id, so its run never passes for the method's own."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Callable, Iterator
from textwrap import dedent
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from amif_lib.core.errors import InputError
from amif_lib.experiments.run_spec import RunSpec

Loss = Callable[[Any, Any], dict[str, Any]]  # (the stage's module, batch) -> terms, which are added up


def with_loss(run: RunSpec, loss: Loss, name: str, stage: str = "stage1") -> RunSpec:
    """`run` with one stage trained on `loss`: this stage and those after it get ids of their own, and `name` as label.

    Raises InputError as `source` does, and if the run has no such stage.
    """
    if stage not in (known := [step.stage for step in run.trainings()]):
        raise InputError(f"run {run.run_id}: has no {stage} whose loss could be replaced, only {', '.join(known)}")
    changes: dict[str, Any] = {"label": name or "own loss"}
    if run.stage == stage:
        changes["own_loss"] = source(loss)
    else:
        changes["parent"] = with_loss(run.parent, loss, name, stage)
    return run.model_copy(update=changes)


def check(run: RunSpec, loss: Loss | None) -> None:
    """Raise InputError unless `loss` is the one that the run's id covers (None: the method's own)."""
    if (source(loss) if loss else "") != run.own_loss:
        own = "a loss that a notebook defines" if run.own_loss else "the method's own loss"
        raise InputError(f"run {run.run_id}: trains on {own}, not on the one given; use own_loss.with_loss")


def replace(module: Any, loss: Loss) -> None:
    """Replace a stage's losses by the terms of `loss`, which are added up; forward raises InputError for bad terms."""

    def forward(self: Any, batch: Any) -> dict[str, Any]:
        terms = loss(self, batch)
        if not terms or any(not hasattr(term, "backward") or term.ndim for term in terms.values()):
            raise InputError("own loss: give a dictionary of terms, each a tensor that holds one number")
        self.weights = dict.fromkeys(terms, 1.0)
        return dict(terms)

    module.forward = MethodType(forward, module)


def source(loss: Loss) -> str:
    """Source of a function, without comments, and of the notebook's functions and plain values that it reads.

    Of imports only the names are included. Raises InputError unless it is a plain function, or if it reads another kind
    of variable of the notebook, such as a tensor, whose values no source shows.
    """
    texts: dict[str, str] = {}
    _collect(loss, texts)
    return "\n".join(texts.values())


def _collect(function: Any, texts: dict[str, str]) -> None:
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>" or function.__closure__:
        raise InputError("own loss: give a function that a cell defines with `def`")
    name, around = function.__name__, function.__globals__
    texts[name] = ast.unparse(ast.parse(dedent(inspect.getsource(function))))
    outside = {each: around[each] for each in sorted(set(_looked_up(function.__code__))) if each in around}
    defaults = dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    outside |= {f"{name}.{n}": value for n, value in defaults.items()}
    for each, value in outside.items():
        if isinstance(value, FunctionType) and value.__globals__ is around:
            if each not in texts:
                _collect(value, texts)
        elif isinstance(value, int | float | str | None):
            texts[each] = f"# {each} = {value!r}"
        elif isinstance(value, ModuleType):
            texts[each] = f"# {each}: {value.__name__}"
        elif hasattr(value, "__qualname__") and value.__module__ != function.__module__:  # a class or function imported
            texts[each] = f"# {each}: {value.__module__}.{value.__qualname__}"
        else:
            raise InputError(f"own loss: {name} reads `{each}`, a {type(value).__name__}: define it inside {name}")


def _looked_up(code: CodeType) -> Iterator[str]:
    """Global names that a function, or one defined inside it, reads."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _looked_up(inner)
