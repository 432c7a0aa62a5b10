"""Reference results: what is copied, what is not, that nobody takes them for a run, and that FROM=reference rebuilds all."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import load as datasets
from amif_lib.data import manifests
from amif_lib.experiments import compact
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import read_predictions, write_predictions
from amif_lib.reporting import figure_set, reference, report, tables
from amif_lib.scoring import protocols
from amif_lib.training import launch
from tests.fabricated import install, write_table


@pytest.fixture
def clone(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path / "results")
    published = paths.published()
    monkeypatch.setattr(paths, "published", lambda: published)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


def test_without_runs_it_says_what_to_run(clone):
    with pytest.raises(InputError, match=r"no tables; run `make reproduce SCALE=demo`"):
        reference.store("demo")


def test_predictions_are_copied_only_where_the_manifest_allows_texts(clone, monkeypatch):
    write_table("table4", "demo", {"1": (5, 6), "3": (5,), "5": (6,), "6": (7,)})
    tables.write("table4", "demo")
    monkeypatch.setattr(reference, "_runs", lambda scale, names=None: table_rows.required_runs("table4", scale))
    plain = manifests.load
    for allowed in (True, False):

        def load(name, allowed=allowed):
            found = plain(name)
            return found.model_copy(
                update={"redistribution": found.redistribution.model_copy(update={"texts": allowed})}
            )

        monkeypatch.setattr(manifests, "load", load)
        target = reference.store("demo")
        assert (target / "tables" / "table4.csv").is_file()
        assert bool(list(target.rglob("predictions.parquet"))) is allowed


def test_reference_results_are_never_taken_for_a_run():
    """A fresh clone has reference results and yet no finished run."""
    for run in experiments.load_spec("small/table1"):
        assert paths.ROOT / "results" / "reference" not in run.directory.parents
    committed = paths.ROOT / "results" / "reference"
    for file in committed.rglob("metrics.json"):
        assert results.load_run(file.parent).spec.run_id  # readable, and only through its own path
        assert paths.run_dir(file.parent.name) != file.parent


# --- the small form of predictions ---


def random_predictions(close: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """60 questions over 40 candidates; `close` makes ties that half precision cannot tell apart."""
    rng = np.random.default_rng(int(close))
    answers = sorted({"yes", "no", *(f"answer {n}" for n in range(38))})
    candidates = pd.DataFrame({"answer": answers, "tokens": rng.integers(1, 6, 40)})
    for split in ("train", "val", "test"):
        candidates[f"in_{split}"] = (rng.random(40) < 0.6) | np.isin(answers, ("yes", "no"))
    scores = -rng.random((60, 40)) * (1e-4 if close else 60) - (20 if close else 0)
    frame = pd.DataFrame({"question_id": [f"q{n:02d}" for n in range(60)]}).assign(
        image_id="i", question="what", question_type="t", split="test", generated="yes"
    )
    frame["gold"] = [[answers[n % 40]] for n in range(60)]
    frame["closed_field"] = frame["closed_yes_no"] = np.arange(60) % 2 == 0
    frame["log_likelihoods"] = list(scores.astype(np.float32))
    return frame, candidates


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("close", [False, True])
def test_small_form_keeps_every_choice_and_where_asked_the_probabilities(tmp_path, close, probabilities):
    write_predictions(tmp_path / "whole", *random_predictions(close))
    before, candidates = read_predictions(tmp_path / "whole")
    compact.write(tmp_path / "runs" / "a", before, candidates, tmp_path / "shared", probabilities)
    after, same = read_predictions(tmp_path / "runs" / "a")
    pd.testing.assert_frame_equal(same, candidates)
    fixed = [name for name in before if name != "log_likelihoods"]
    assert after[fixed].astype(str).equals(before[fixed].astype(str))
    masks = {"test": same["in_test"], "train": same["in_train"], "train+val": same["in_train"] | same["in_val"]}
    masks["all"] = masks["train+val"] | same["in_test"]
    for name, mask in masks.items():  # brute force, question by question
        for score in ("sum", "mean"):
            for closed in ("all", "yes_no"):
                protocol = protocols.Protocol(
                    name="x", version=1, candidates=name, closed="yes_no", closed_candidates=closed, score=score
                )
                got = protocols.score(after, same, protocol)["prediction"]
                for chosen, numbers, is_closed in zip(
                    got, before["log_likelihoods"], before["closed_yes_no"], strict=True
                ):
                    best = None
                    for place, answer in enumerate(same["answer"]):
                        if not mask[place] or (closed == "yes_no" and is_closed and answer not in ("yes", "no")):
                            continue
                        value = numbers[place] / np.float32(same["tokens"][place] if score == "mean" else 1)
                        if best is None or value > best[0]:
                            best = value, answer
                    assert chosen == best[1]
    first, second = (np.stack(frame["log_likelihoods"]) for frame in (before, after))
    odds = [np.exp(x - x.max(1, keepdims=True)) for x in (first, second)]
    odds = [x / x.sum(1, keepdims=True) for x in odds]
    assert not probabilities or np.abs(odds[0] - odds[1]).max() < 0.01
    stored = pd.read_parquet(tmp_path / "runs" / "a" / "predictions.parquet")["kept"].str.len().sum()
    assert probabilities or stored <= 60 * (2 + 16)  # yes, no, and one choice per set of candidates and kind of score


def test_damaged_small_form_is_named(tmp_path):
    write_predictions(tmp_path / "whole", *random_predictions(False))
    folder = tmp_path / "runs" / "a"
    compact.write(folder, *read_predictions(tmp_path / "whole"), tmp_path / "shared")
    good = pd.read_parquet(folder / "predictions.parquet")
    for damaged, message in (
        (good.iloc[:-1], "59 predictions for 60 questions"),
        (good.assign(kept=[[*kept[:-1], 40] for kept in good["kept"]]), "question q00: kept does not fit"),
        (good.assign(prediction="answer 1"), "not the likeliest test answer"),
        (good.assign(questions_digest="000000000000"), "000000000000.parquet: no such file"),
    ):
        damaged.to_parquet(folder / "predictions.parquet", index=False)
        with pytest.raises(InputError, match=message):
            read_predictions(folder)
    good.to_parquet(folder / "predictions.parquet", index=False)
    path = tmp_path / "shared" / f"{good['questions_digest'][0]}.parquet"
    pd.read_parquet(path).assign(question="edited").to_parquet(path, index=False)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="its content does not fit its name"):
        read_predictions(folder)


# --- reading with FROM=reference ---


@pytest.fixture
def stored(clone, monkeypatch) -> Path:
    """Two tables' runs, stored as reference; then the own results are out of reach, and so are the data."""
    write_table("table1", "demo", {"demo": (7,), "published3064": (1,)})
    write_table("table4", "demo", {"1": (5, 6), "3": (5,), "4": (4, 5), "5": (6,), "6": (7,)})
    paths.plan("demo").parent.mkdir(parents=True)
    jobs = [{"rule": "table", "name": name} for name in ("table1", "table4")]
    paths.plan("demo").write_text(json.dumps({"selection": {"seeds": 1, "rows": []}, "jobs": jobs}), encoding="utf-8")
    for name in ("table1", "table4"):
        tables.write(name, "demo")
    reference.store("demo")
    monkeypatch.setenv("AMIF_RESULTS", str(clone / "elsewhere"))
    monkeypatch.setattr(datasets, "load_questions", None)
    return clone


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_from_reference_are_those_that_were_stored(stored, monkeypatch):
    with pytest.raises(InputError, match="make reproduce SCALE=demo"):  # not taken for runs without being asked
        tables.write("table4", "demo")
    monkeypatch.setenv("FROM", "reference")
    kept = content(paths.reference("demo"))
    for name in ("table1", "table4"):
        for path in tables.write(name, "demo"):
            assert path.parent == stored / "elsewhere" / "from_reference" / "demo" / "tables"
            assert path.read_bytes() == kept[f"tables/{path.name}"], path.name
    assert content(paths.reference("demo")) == kept and not (stored / "elsewhere" / "demo").exists()


def test_report_from_reference_links_to_it(stored, monkeypatch):
    monkeypatch.setenv("FROM", "reference")
    monkeypatch.setattr(figure_set, "is_current", lambda scale: True)
    kept = content(paths.reference("demo"))
    page = report.write("demo")
    text = page.read_text(encoding="utf-8")
    assert page.is_relative_to(stored / "elsewhere" / "from_reference") and "(FROM=reference)" in text
    links = [part.split('"', 1)[0] for part in text.split('href="')[1:]]
    runs = {(page.parent / link).resolve() for link in links if "/runs/" in link}
    assert runs == {path.resolve() for path in paths.reference("demo").glob("runs/*")}
    assert content(paths.reference("demo")) == kept


def test_changed_settings_are_said(stored, monkeypatch):
    monkeypatch.setenv("FROM", "reference")
    known = experiments.scale_settings
    monkeypatch.setattr(
        experiments, "scale_settings", lambda scale: experiments.merge(known(scale), {"finetune": {"epochs": 77}})
    )
    with pytest.raises(
        InputError, match=r"earlier version of the settings.*row 1 \(phantom_vqa_rad, seed 0\).*not stored"
    ):
        tables.write("table4", "demo")
    with pytest.raises(InputError, match="SCALE=paper: no committed results; there are those of: demo"):
        tables.write("table4", "paper")


def test_nothing_is_trained_under_from(stored, monkeypatch, capsys):
    spec = table_rows.Selection().rows("table4", "demo")[0].runs[0]
    monkeypatch.setenv("FROM", "reference")
    for command in ("reproduce", "plan", "reference"):
        assert cli.main([command]) == 2
        assert capsys.readouterr().err.startswith(f"error: FROM=reference: {command} makes runs")
    kept = content(paths.reference("demo"))
    with pytest.raises(InputError, match="FROM=reference: training makes runs"):
        launch.train(spec)
    assert content(paths.reference("demo")) == kept
    monkeypatch.setenv("FROM", "elsewhere")
    assert cli.main(["table", "table4"]) == 2 and "FROM=elsewhere: unknown" in capsys.readouterr().err


def test_reference_that_grows_too_large_is_refused_and_the_old_one_kept(stored, monkeypatch):
    kept = content(paths.reference("demo"))
    monkeypatch.setenv("AMIF_RESULTS", str(stored / "results"))
    monkeypatch.setattr(reference, "BYTES", 1000)
    with pytest.raises(InputError, match=r"results/reference would hold .* MB"):
        reference.store("demo")
    assert content(paths.reference("demo")) == kept and not list(paths.reference().glob(".*"))


def test_thinned_history():
    history = pd.DataFrame({"step": range(120), "total": [float(n) for n in range(120)], "other": 1.0, "note": "x"})
    got = reference.thinned(history, "finetune")
    assert len(got) == 40 and got[0] == {"step": 2, "total": 1.0} and got[-1] == {"step": 119, "total": 118.0}
    assert [set(line) for line in reference.thinned(history.head(3), "stage1")] == [{"step", "total", "other"}] * 3


LIGHT = """
import sys

ABSENT = {"torch", "transformers", "accelerate", "tokenizers", "open_clip", "papermill", "IPython", "snakemake"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from amif_lib.app.cli import main
sys.exit(main(["report", "--scale", "small", "--from", "reference"]))
"""


@pytest.mark.skipif(not list(paths.reference().glob("*/runs")), reason="the reference is to be made again")
def test_committed_results_rebuild_the_report_in_the_light_install(tmp_path):
    """No torch, no notebook runner, no data: the tables come out byte for byte as they are committed."""
    environment = {
        **os.environ,
        "AMIF_RESULTS": str(tmp_path),
        "DATA_ROOT": str(tmp_path / "none"),
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=paths.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = tmp_path / "from_reference" / "small"
    assert (made / "report.html").stat().st_size < 8_000_000
    drawn = pd.read_csv(made / "figures" / figure_set.INDEX)["caption"]  # by a process of its own
    assert len(drawn) >= 2 and all(
        " ".join(c.split())[:60] in html.unescape((made / "report.html").read_text()) for c in drawn
    )
    for path in (paths.reference("small") / "tables").glob("table1*"):
        assert (made / "tables" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.skipif(not list(paths.reference().glob("*/runs")), reason="the reference is to be made again")
def test_the_committed_headline_table_of_the_demo_comes_out_of_its_committed_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    monkeypatch.setenv("FROM", "reference")
    tables.write("table1", "demo")
    for path in (paths.reference("demo") / "tables").glob("table1*"):
        assert (paths.scale_dir("demo") / "tables" / path.name).read_bytes() == path.read_bytes(), path.name


def test_every_accuracy_in_the_readme_is_one_of_the_committed_tables():
    """Numbers with an interval, `49.3 [46.7, 52.0]` or `49.3 ± 1.9 [46.7, 52.0]`, as the tables have them."""
    text = " ".join((paths.ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.findall(r"(\d+\.\d)(?: ± (\d+\.\d))? \[(\d+\.\d), (\d+\.\d)\]", text)
    known = set()
    for path in paths.reference().glob("*/tables/table*[0-9].csv"):
        cells = pd.read_csv(path)
        for cell in cells[cells["split"] == "overall"].itertuples():
            spread = f"{cell.ours_sd:.1f}" if cell.ours_sd == cell.ours_sd else ""
            known |= {(f"{cell.ours:.1f}", s, f"{cell.ci_low:.1f}", f"{cell.ci_high:.1f}") for s in {spread, ""}}
    assert len(found) >= 4 and not [number for number in found if number not in known]


def test_committed_results_name_no_folder_of_the_machine_that_made_them():
    for path in sorted((paths.ROOT / "results" / "reference").rglob("*.json")):
        assert not re.search(r"[\" :](/[\w.-]+){3,}", path.read_text(encoding="utf-8")), path
    assert reference._plain({"at": f"local-dir:{paths.ROOT / 'data'}"}) == '{"at":"local-dir:data"}\n'
