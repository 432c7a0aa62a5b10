"""Reference results: what is copied, what is not, and that nobody takes them for a run."""

from __future__ import annotations

import pytest

from amif_lib import experiments, manifests, paths, reference, results, tables
from amif_lib.errors import InputError
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
    monkeypatch.setattr(reference, "_runs", lambda scale: tables.required_runs("table4", scale))
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
