"""Notebooks 02a to 02c: exercises that tell right from wrong, nothing left out; numbers in prose, of 03 to 05 too."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import runpy
from collections import Counter

import matplotlib.pyplot
import pytest
import torch
from torch.nn import functional

from amif_lib.app import walkthrough
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.objectives.transport import ipot

PARTS = {path.stem[:3]: path for path in sorted(paths.NOTEBOOKS.glob("02?_*.ipynb"))}


def cells(part: str, kind: str = "", tag: str = "") -> list[str]:
    found = json.loads(next(paths.NOTEBOOKS.glob(f"{part}_*")).read_text(encoding="utf-8"))["cells"]
    chosen = [c for c in found if kind in ("", c["cell_type"]) and (not tag or tag in c["metadata"].get("tags", []))]
    return ["".join(cell["source"]) for cell in chosen]


def solutions(part: str) -> dict:
    return runpy.run_path(str(paths.NOTEBOOKS / "solutions" / f"{PARTS[part].stem}.py"))


def checked(part: str, number: int, lines: str | None) -> str:
    """What the check of an exercise says of an answer: its solution, or other lines."""
    names: dict = {"torch": torch, "math": math, "Counter": Counter, "F": functional}
    names |= {each.__name__: each for each in (soft, labels, kl, both, shares, ce, mix)}
    exercise = ast.parse(cells(part, tag="exercise")[number - 1]).body[0]
    asked, arguments = exercise.name, ast.unparse(exercise.args)
    names["solution"] = solutions(part)[asked]
    names[asked] = names["solution"] if lines is None else eval(f"lambda {arguments}: {lines}", names)
    exec(cells(part, tag="check")[number - 1], names)
    return names[f"check_{number}"](names[asked])


def soft(scores):
    return torch.softmax(scores / 0.5, 1)


def labels(teacher):
    return soft(teacher) + 0.1 * torch.eye(5)


def kl(h, p):
    return (h * (h / p).log()).sum(1).mean()


def both(one_way, teacher, student):
    return (one_way(teacher, student) + one_way(teacher.T, student.T)) / 2


def shares(weights):
    return weights / weights.sum(1, keepdim=True)


def ce(logits, label):
    return functional.cross_entropy(logits, torch.full((len(logits),), label))


def mix(gate, a, b):
    return gate * a + (1 - gate) * b


WRONG = [  # the part, the exercise, what a student may answer, and a part of the hint
    ("02a", 1, "kl(labels(teacher), soft(student))", "only images to reports"),
    ("02a", 1, "kl(labels(teacher.T), soft(student.T))", "only reports to images"),
    ("02a", 1, "kl(labels(teacher), soft(student)) + kl(labels(teacher.T), soft(student.T))", "mean of both"),
    ("02a", 1, "(kl(labels(teacher), soft(student)) + kl(labels(teacher).T, soft(student.T))) / 2", "transpose"),
    ("02a", 1, "both(lambda t, s: kl(soft(s), labels(t)), teacher, student)", "not KL(P || H)"),
    ("02a", 1, "solution(student, teacher, tau, weight) / 5", "sum over j"),
    ("02a", 1, "both(lambda t, s: F.cross_entropy(s / tau, labels(t)), teacher, student)", "log H"),
    ("02a", 1, "both(lambda t, s: kl(shares(labels(t)), soft(s)), teacher, student)", "1 + lambda"),
    ("02a", 1, "solution(student, teacher, 0.5, weight)", "arguments"),
    ("02a", 1, "solution(student, teacher, tau, 0.1)", "arguments"),
    ("02a", 2, "q + weight", "exceed one"),
    ("02a", 2, "q / (1 + weight)", "huge lambda"),
    ("02a", 3, "weight", "P = H"),
    ("02a", 3, "math.log(1 + weight)", "P = H"),
    ("02b", 1, "torch.full(real.shape, 1 / real.shape[1])", "padding"),
    ("02b", 1, "real / real.sum()", "sum to one"),
    ("02b", 2, "shares(h ** (1 / temperature))", "excluded"),
    ("02b", 2, "shares(h ** (1 / temperature)).masked_fill(excluded, 0)", "after the exclusion"),
    ("02b", 2, "shares(h.masked_fill(excluded, 0) ** temperature)", "1/T"),
    ("02b", 3, "ce(right, 1) + ce(negative, 0)", "swapped"),
    ("02b", 3, "(ce(right, 0) + ce(negative, 1)) / 2", "sums over pairs"),
    ("02b", 3, "float(ce(negative, 1))", "right pairs are missing"),
    ("02c", 1, "mix(projection(fused).sigmoid(), fused, joint)", "one value per token"),
    ("02c", 1, "mix(projection(fused).mean(-1, keepdim=True).sigmoid(), joint, fused)", "swapped"),
    ("02c", 1, "mix(projection(fused.mean(-1, keepdim=True)).sigmoid(), fused, joint)", "project first"),
    ("02c", 1, "mix(projection(fused.mean(-1, True) + 0 * fused).mean(-1, True).sigmoid(), fused, joint)", "first"),
    ("02c", 2, "sorted(answers, key=lambda a: (-answers.count(a), a))[:limit]", "once"),
    ("02c", 2, "[a for a, _ in Counter(answers).most_common(limit)]", "alphabet"),
    ("02c", 3, "logits.log_softmax(-1)[range(4), tokens].sum()", "shift"),
    ("02c", 3, "logits[range(3), tokens[1:]].sum()", "log_softmax"),
]
RIGHT = {  # right answers that look unlike the solution
    ("02a", 1): "float(solution(student, teacher, tau, weight))",
    ("02a", 2): "1 - (1 - q) / (1 + weight)",
    ("02b", 1): "solution(real).double()",
    ("02b", 3): "float(solution(right, negative))",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_common_wrong_answer_gets_its_own_hint(wrong: tuple[str, int, str, str]) -> None:
    with pytest.raises(AssertionError) as told:
        checked(*wrong[:3])
    assert wrong[3] in str(told.value)


@pytest.mark.parametrize(("part", "number"), [(part, n) for part in PARTS for n in (1, 2, 3)])
def test_the_solution_is_right_and_an_empty_answer_no_error(part: str, number: int) -> None:
    for lines in (None, RIGHT.get((part, number))):
        assert checked(part, number, lines) == f"exercise {number}: right"
    assert checked(part, number, "None") == f"exercise {number}: not answered yet"


def test_every_function_of_the_objectives_that_amif_uses_appears() -> None:
    folder = paths.PACKAGE / "methods" / "amif"
    shown = "\n".join(text for part in PARTS for text in cells(part, "code"))
    names = {path.stem: path.read_text(encoding="utf-8") for path in (paths.PACKAGE / "objectives").glob("*.py")}
    written = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    for module, text in names.items():
        functions = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        for name in functions:
            if re.search(rf"\b{name}\(", written) and not name.startswith("_"):
                assert re.search(rf"\b{name}\b", shown), f"{module}.{name}"


@pytest.mark.parametrize("part", PARTS)
def test_numbers_in_prose_are_those_of_the_settings(part: str) -> None:
    steps = {step.stage: step for step in experiments.load_spec(walkthrough.ROW)[0].trainings()}
    settings = vars(steps["stage2"].objective) | vars(steps["stage2"].model)
    settings |= {name: each.default for name, each in inspect.signature(ipot).parameters.items()}
    for text in cells(part, "markdown"):
        for name, value in re.findall(r"`(\w+) = ([\d.]+)`", text):
            assert float(value) == settings[name], name


@pytest.mark.parametrize("number", [*PARTS, "03", "04", "05"])
def test_prose_states_no_number_that_could_be_wrong(number: str) -> None:
    """What is measured is computed in a cell; only references and the level of intervals stand in the prose."""
    names = r"(Eq\.|[Ss]ections?|[Ss]tage|Table|Exercise|notebooks?|^#+) [\d.]+((,| to| and) [\d.]+)*|02[abc]"
    for text in cells(number, "markdown"):
        plain = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|95%", "", text, flags=re.DOTALL)
        assert not re.search(r"\d", re.sub(names, "", plain, flags=re.M)), text


@pytest.mark.parametrize("part", PARTS)
def test_the_notebook_runs_on_the_committed_model(part: str) -> None:
    names: dict = {}
    for source in cells(part, "code"):
        exec(source, names)
    matplotlib.pyplot.close("all")


def test_without_a_model_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(paths, "reference", lambda scale="": tmp_path / scale)
    with pytest.raises(InputError, match=walkthrough.MAKES) as error:
        walkthrough.trained()
    assert error.value._render_traceback_() == [f"InputError: {error.value}"], "what a notebook shows"
