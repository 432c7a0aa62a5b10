"""A loss that a notebook defines: a run of its own that no run of the kit is taken for, and that is trained on it."""

from __future__ import annotations

import json
import linecache
import re

import pytest
import torch
from torch.nn import functional

from amif_lib.app import run_notebook
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import own_loss, stored
from amif_lib.training import launch, loop
from tests import tiny

LOSS = """
def my_loss(stage, batch):  # a comment
    terms = stage.__class__.forward(stage, batch)
    return {name: scale * terms[name] for name in ("inter", "intra_image", "intra_text")}
"""


def defined(text: str, **names):
    """The function of a cell, as Jupyter keeps it: its source can be looked up."""
    file, names = f"<cell {len(linecache.cache)}>", names | {"__name__": "__main__"}
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), names)
    return names["my_loss"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    monkeypatch.setenv("AMIF_HEADLESS", "1")


def test_the_identity_follows_what_the_loss_computes_and_nothing_else():
    run = tiny.run()
    named = own_loss.with_loss(run, defined(LOSS, scale=1), "mine")
    assert [step.label for step in named.trainings()] == ["mine"] * 3
    assert not {step.run_id for step in named.trainings()} & {step.run_id for step in run.trainings()}

    def of(text: str, **names) -> str:
        return own_loss.with_loss(run, defined(text, **names), "another name").run_id

    assert of(LOSS.replace("# a comment", ""), scale=1, other=2) == named.run_id
    assert len({of(LOSS, scale=1), of(LOSS, scale=2), of(LOSS.replace("scale *", "2 *"))}) == 3
    calls = LOSS.replace("scale *", "twice() *")
    bodies = [f"def twice():\n    return {n}\n{calls}" for n in (2, 3)]
    assert len({of(bodies[0]), of(bodies[1])}) == 2
    imported = LOSS.replace("scale *", "f(terms[name]) *")
    assert of(imported, f=functional.relu) != of(imported, f=functional.gelu)
    inner = LOSS.replace("scale * terms[name]", "(lambda x: scale * x)(terms[name])")
    assert of(inner, scale=1) != of(inner, scale=2)
    keyword = LOSS.replace("batch):", "batch, *, k=given):").replace("scale *", "k *")
    assert of(keyword, given=1) != of(keyword, given=2)
    indented = "if True:" + LOSS.replace("\n", "\n    ")
    assert named.run_id == of(indented, scale=1) == own_loss.with_loss(run, defined(LOSS, scale=1), "").run_id
    assert run.run_id == tiny.run().run_id


def test_what_no_text_tells_apart_is_refused():
    with pytest.raises(InputError, match="my_loss reads `scale`, a Tensor: define it inside my_loss"):
        own_loss.source(defined(LOSS, scale=torch.ones(3)))
    with pytest.raises(InputError, match="with `def`"):
        own_loss.source(lambda stage, batch: {})
    with pytest.raises(InputError, match="has no stage1"):
        own_loss.with_loss(tiny.run().model_copy(update={"parent": None}), defined(LOSS, scale=1), "mine")


def test_a_run_trains_on_its_own_loss_only(monkeypatch, capsys):
    run = tiny.run(stage1={"epochs": 1}).parent.parent
    same, doubled = (own_loss.with_loss(run, defined(LOSS, scale=scale), "mine") for scale in (1, 2))
    for given in (None, defined(LOSS, scale=1)):
        with pytest.raises(InputError, match="trains on a loss that a notebook defines, not on the one given"):
            loop.fit(doubled, given)
    with pytest.raises(InputError, match="trains on the method's own loss"):
        launch.train(run, loss=defined(LOSS, scale=1))
    assert not list(paths.results().glob("runs/*/model"))
    launch.train(run, processes=1)
    launch.train(same, processes=2, loss=defined(LOSS, scale=1))
    assert "trains in one process, not in 2" in capsys.readouterr().out
    launch.train(doubled, loss=defined(LOSS, scale=2))
    histories = {each.own_loss[-9:]: stored.load_run(each).history for each in (run, same, doubled)}
    assert len(histories) == 3
    weights = [(each.directory / "model" / "model.safetensors").read_bytes() for each in (run, same, doubled)]
    assert weights[0] == weights[1] != weights[2]
    first, _, twice = histories.values()
    assert twice["total"][0] == pytest.approx(2 * first["total"][0]) and "retrieval_i2t" not in twice
    found = stored.load_run(doubled)
    assert found.spec == doubled and found.spec.own_loss in (doubled.directory / "loss.py").read_text(encoding="utf-8")
    launch.train(doubled)  # finished: nobody needs the loss any more
    with pytest.raises(InputError, match="trains on a loss that a notebook defines"):
        launch.train(doubled, loss=defined(LOSS, scale=3))


def test_terms_must_be_single_numbers():
    module = tiny.pretraining("stage1")
    own_loss.replace(module, lambda stage, batch: {"a": torch.zeros(2)})
    with pytest.raises(InputError, match="a tensor that holds one number"):
        module(tiny.batch())


# --- notebooks 03 to 05 as a reader uses them -----------------------------------------------------------------------


def executed(folder, cells: list[dict], *given: str) -> tuple[int, str]:
    """Exit status and all outputs of notebook 03 with these cells, on the tiny run."""
    run, content = tiny.run(), json.loads(next(paths.NOTEBOOKS.glob("03_*")).read_text(encoding="utf-8"))
    files = {"edited.ipynb": json.dumps(content | {"cells": cells}), "row.json": run.model_dump_json()}
    files["stage1.json"] = run.parent.parent.model_dump_json()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    arguments = ["-p", "spec", str(folder / "stage1.json"), "-p", "row", str(folder / "row.json"), *given]
    status = run_notebook.main([str(folder / "edited.ipynb"), "--out", str(folder / "out.ipynb"), *arguments])
    outputs = [cell.get("outputs", []) for cell in json.loads((folder / "out.ipynb").read_text())["cells"]]
    return status, "".join(re.sub(r'\\\\n|[\\[\\]",]', " ", json.dumps(each)) for each in outputs)


def test_a_reader_who_edits_the_loss_sees_it_trained_beside_the_baseline(tmp_path, capfd):
    text = next(paths.NOTEBOOKS.glob("03_*")).read_text(encoding="utf-8")
    changed = text.replace("/ o.temperature  #", "/ (2 * o.temperature)  #")
    assert changed != text
    status, said = executed(tmp_path, json.loads(changed)["cells"])
    assert status == 1 and "give it a name (my_name, above)" in said, "an edit without a name is not passed over"
    named = changed.replace('my_name = \\"\\"', 'my_name = \\"tau doubled\\"')
    status, said = executed(tmp_path, json.loads(named)["cells"])
    assert status == 0, capfd.readouterr()
    runs = {path.parent.name: stored.load_run(path.parent) for path in paths.results().glob("runs/*/provenance.json")}
    for step in tiny.run().trainings():
        assert not runs.pop(step.run_id).spec.own_loss, "the kit's row has the kit's loss"
    assert {run.spec.stage: run.spec.label for run in runs.values()} == dict.fromkeys(
        ("stage1", "stage2", "finetune"), "tau doubled"
    )
    first = next(run for run in runs.values() if run.spec.stage == "stage1")
    assert "2 * o.temperature" in (first.directory / "loss.py").read_text(encoding="utf-8")
    kits = stored.load_run(tiny.run().parent.parent)
    assert first.history["total"][0] != pytest.approx(kits.history["total"][0])
    weights = [(run.directory / "model" / "model.safetensors").read_bytes() for run in (first, kits)]
    assert weights[0] != weights[1]
    assert said.count("teaching run") >= 2
    assert tiny.run().run_id in said and set(runs) & set(re.findall(r"\w{12}", said))
