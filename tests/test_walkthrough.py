"""Notebooks 02a to 02c: exercises that tell right from wrong, numbers in prose that are true, and nothing left out."""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy

import matplotlib.pyplot
import pytest
import torch

from amif_lib.app import walkthrough
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.objectives.transport import ipot

PARTS = {path.stem[:3]: path for path in sorted(paths.NOTEBOOKS.glob("02?_*.ipynb"))}


def cells(part: str, kind: str = "", tag: str = "") -> list[str]:
    found = json.loads(PARTS[part].read_text(encoding="utf-8"))["cells"]
    chosen = [c for c in found if kind in ("", c["cell_type"]) and (not tag or tag in c["metadata"].get("tags", []))]
    return ["".join(cell["source"]) for cell in chosen]


def solutions(part: str) -> dict:
    return runpy.run_path(str(paths.NOTEBOOKS / "solutions" / f"{PARTS[part].stem}.py"))


def checked(part: str, number: int, lines: str | None) -> str:
    """What the check of an exercise says of an answer: its solution, or other lines."""
    names: dict = {"torch": torch}
    exec("import math\nfrom collections import Counter\nfrom torch.nn import functional as F", names)
    exercise = ast.parse(cells(part, tag="exercise")[number - 1]).body[0]
    asked, arguments = exercise.name, ast.unparse(exercise.args)
    names[asked] = solutions(part)[asked] if lines is None else eval(f"lambda {arguments}: {lines}", names)
    exec(cells(part, tag="check")[number - 1], names)
    return names[f"check_{number}"](names[asked])


WRONG = {  # the part, the exercise, the wrong answer
    "one direction": ("02a", 1, "KL(s, t)"),
    "the sum of both": ("02a", 1, "KL(s, t) + KL(s.T, t.T)"),
    "a mean over all entries": ("02a", 1, "(KL(s, t) + KL(s.T, t.T)) / 10"),
    "labels transposed after the softmax": ("02a", 1, "(KL(s, t) + KL2(s.T, H(t).T)) / 2"),
    "P against H": ("02a", 1, "(RKL(s, t) + RKL(s.T, t.T)) / 2"),
    "not divided": ("02a", 2, "q + weight"),
    "lambda not added": ("02a", 2, "q / (1 + weight)"),
    "zero": ("02a", 3, "0.0"),
    "the logarithm alone": ("02a", 3, "math.log(1 + weight)"),
    "lambda": ("02a", 3, "weight"),
    "padding has mass": ("02b", 1, "torch.full(real.shape, 1 / real.shape[1])"),
    "not normalised": ("02b", 1, "real.float()"),
    "divided by the batch": ("02b", 1, "real / real.sum()"),
    "the own report is drawn": ("02b", 2, "h ** (1 / temperature) / (h ** (1 / temperature)).sum(1, keepdim=True)"),
    "excluded too late": ("02b", 2, "(h ** (1 / temperature) / h.sum(1, keepdim=True)).masked_fill(excluded, 0)"),
    "T for 1/T": ("02b", 2, "NORM(h.masked_fill(excluded, 0) ** temperature)"),
    "a softmax of H": ("02b", 2, "torch.softmax((h / temperature).masked_fill(excluded, -torch.inf), 1)"),
    "labels swapped": ("02b", 3, "CE(right, 1) + CE(negative, 0)"),
    "negatives only": ("02b", 3, "CE(negative, 1)"),
    "a mean over pairs": ("02b", 3, "(CE(right, 0) + CE(negative, 1)) / 2"),
    "a sigmoid each": ("02b", 3, "-F.logsigmoid(right[:, 0]).mean() - F.logsigmoid(negative[:, 1]).mean()"),
    "one gate per channel": ("02c", 1, "MIX(projection(fused).sigmoid(), fused, joint)"),
    "the mean after the sigmoid": ("02c", 1, "MIX(projection(fused).sigmoid().mean(-1, keepdim=True), fused, joint)"),
    "the two swapped": ("02c", 1, "MIX(projection(fused).mean(-1, keepdim=True).sigmoid(), joint, fused)"),
    "no sigmoid": ("02c", 1, "MIX(projection(fused).mean(-1, keepdim=True), fused, joint)"),
    "answers twice": ("02c", 2, "sorted(answers, key=lambda a: (-answers.count(a), a))[:limit]"),
    "by name": ("02c", 2, "sorted(set(answers))[:limit]"),
    "rarest first": ("02c", 2, "sorted(set(answers), key=lambda a: (answers.count(a), a))[:limit]"),
    "ties as they come": ("02c", 2, "[a for a, _ in Counter(answers).most_common(limit)]"),
    "no shift": ("02c", 3, "logits.log_softmax(-1)[range(4), tokens].sum()"),
    "a mean": ("02c", 3, "logits.log_softmax(-1)[range(3), tokens[1:]].mean()"),
    "without the end": ("02c", 3, "logits.log_softmax(-1)[range(2), tokens[1:3]].sum()"),
    "logits for probabilities": ("02c", 3, "logits[range(3), tokens[1:]].sum()"),
}
SHORT = {  # what several wrong answers are made of
    "RKL(": "(lambda s, t: (P(s) * (P(s) / H(t)).log()).sum(1).mean())(",
    "KL2(": "(lambda s, h: (h * (h / P(s)).log()).sum(1).mean())(",
    "KL(": "(lambda s, t: (H(t) * (H(t) / P(s)).log()).sum(1).mean())(",
    "H(": "(lambda t: torch.softmax(t / 0.5, 1) + 0.1 * torch.eye(5))(",
    "P(": "(lambda s: torch.softmax(s / 0.5, 1))(",
    "NORM(": "(lambda w: w / w.sum(1, keepdim=True))(",
    "CE(": "(lambda z, y: F.cross_entropy(z, torch.full((len(z),), y)))(",
    "MIX(": "(lambda g, a, b: g * a + (1 - g) * b)(",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_common_wrong_answer_is_told_so(wrong: str) -> None:
    part, number, lines = WRONG[wrong]
    if (part, number) == ("02a", 1):
        lines = f"(lambda s, t: {lines})(student, teacher)"
    for short, whole in SHORT.items():
        lines = re.sub(rf"(?<!\w){re.escape(short)}", lambda _, whole=whole: whole, lines)
    with pytest.raises(AssertionError) as told:
        checked(part, number, lines)
    assert str(told.value).strip(), "a hint"


@pytest.mark.parametrize(("part", "number"), [(part, n) for part in PARTS for n in (1, 2, 3)])
def test_the_solution_is_right_and_an_empty_answer_no_error(part: str, number: int) -> None:
    assert checked(part, number, None) == f"exercise {number}: right"
    assert checked(part, number, "None") == f"exercise {number}: not answered yet"


def test_every_function_of_the_objectives_that_amif_uses_appears() -> None:
    folder, shown = (
        paths.PACKAGE / "methods" / "amif",
        "\n".join(text for part in PARTS for text in cells(part, "code")),
    )
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
        text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", text, flags=re.DOTALL)
        text = re.sub(
            r"(Eq\.|sections?|[Ss]tage|Exercise|notebooks?|^##) [\d.]+((,| to| and) [\d.]+)*", "", text, flags=re.M
        )
        assert not re.search(r"(?<!02)\d", text.replace("02a", "").replace("02b", "").replace("02c", "")), text


@pytest.mark.parametrize("part", PARTS)
def test_the_notebook_runs_on_the_committed_model(part: str) -> None:
    if not list(paths.reference("demo").glob("runs/*/model/config.json")):
        pytest.skip("no demo model is committed")
    names: dict = {}
    for source in cells(part, "code"):
        exec(source, names)
    matplotlib.pyplot.close("all")


def test_without_a_model_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(paths, "reference", lambda scale="": tmp_path / scale)
    with pytest.raises(InputError, match=walkthrough.MAKES) as error:
        walkthrough.trained()
    assert error.value._render_traceback_() == [f"InputError: {error.value}"], "what a notebook shows"
