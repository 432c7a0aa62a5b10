"""The command line, `python -m amif_lib …`: every make target is one of these commands.

Options default to the environment variables that make passes on; each command imports its modules when it runs, so that
help is instant and only what needs torch loads it.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from amif_lib.core import paths
from amif_lib.core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

FOLDERS = ("DATA_ROOT", "AMIF_RESULTS", "AMIF_PHANTOM", "AMIF_PREPARED", "HF_HOME")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status 0; 1 where something ran and failed; 2 for input that cannot be used."""
    options = _parser().parse_args(arguments)
    for name in FOLDERS:  # relative to where the command was called; the jobs run elsewhere
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())
    if getattr(options, "origin", ""):
        os.environ["FROM"] = options.origin
    try:
        paths.from_reference()  # refuses any other FROM
        return options.run(options) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _number(text: str) -> int | None:
    return int(text) if text else None


# Options that make passes on in the environment: default, type, meaning.
FROM_MAKE: dict[str, tuple[str, Callable[[str], object], str]] = {
    "--scale": ("demo", str, "demo, small, base or paper"),
    "--machine": ("laptop", str, "laptop, workstation or slurm"),
    "--tables": ("", _names, "names of tables, comma-separated; empty: all of the scale"),
    "--datasets": ("", _names, "data sets, comma-separated; empty: all of the scale"),
    "--rows": ("", _names, "rows of the tables, comma-separated; empty: all"),
    "--seeds": ("1", int, "fine-tunings per cell"),
    "--pretrain-seeds": ("", _number, "pre-trainings per cell; empty: as many as the table names, or 1"),
}
FILE, COLUMN, FLAG = {"metavar": "FILE"}, {"metavar": "COLUMN", "default": ""}, {"action": "store_true"}
OPTIONS: dict[str, dict] = {
    "--batch": {"type": int, "default": 2, "help": "samples a step (the paper: 256)"},
    "--steps": {"type": int, "default": 1, "help": "optimiser steps of each training"},
    "spec": {"help": "a run file (.yaml, .json) or <scale>/<table>/<row>[/<stage>]"},
    "name": {"help": "for example table1 or lambda_sweep"},
    "--from": {"dest": "origin", "metavar": "reference", "help": "read committed results (or FROM=reference)"},
    "--allow-none": FLAG | {"help": "runs that allow no figure are no error"},
    "--notebook": FLAG | {"help": "execute notebook 20 about maps as well"},
    "--dry-run": FLAG | {"help": "only say what would be done"},
    "--runs": FLAG | {"help": "all finished runs, tables and reports of your own too"},
    "files": FILE | {"nargs": "*", "help": "CSV, JSON, JSON lines, parquet; or a data set with a manifest"},
    "--train": FILE | {"nargs": "+", "default": [], "help": "files of training questions only"},
    "--test": FILE | {"nargs": "+", "default": [], "help": "files of test questions only"},
    "file": FILE | {"type": Path, "help": "predictions (README: files that are read), or a run folder of the kit"},
    "--prediction": COLUMN | {"help": "the column of the predictions"},
    "--id": COLUMN | {"help": "the column of the question ids"},
    "--dataset": {"default": "", "help": "a question set, such as vqa_rad (a run folder says it itself)"},
    "--training-file": {"default": "", "help": "what the baselines learn from, such as published3064"},
    "--language": {"default": "", "help": "of SLAKE's questions: en or zh (default: en)"},
    "--out": FILE | {"type": Path, "help": "write all numbers to this CSV file too"},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m amif_lib",
        description="AMiF Kit: an independent reproduction of AMiF for medical visual question answering. "
        "Not for clinical use.",
        epilog="Settings come from options or from the environment (SCALE=small python -m amif_lib reproduce).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        for option in options.split():
            settings = OPTIONS.get(option, {})
            if option in FROM_MAKE:
                default, kind, about = FROM_MAKE[option]
                default = os.environ.get(option[2:].upper().replace("-", "_")) or default
                settings = {"type": kind, "default": default, "help": f"{about} (default: %(default)s)"}
            command.add_argument(option, **settings)
    return parser


def _lazy(target: str, *names: str | Callable[[Namespace], object]) -> Callable[[Namespace], int | None]:
    """A command that calls `module:function`, imported when it runs, with options by name or made of all options."""

    def run(options: Namespace) -> int | None:
        module, _, function = target.partition(":")
        given = [getattr(options, name) if isinstance(name, str) else name(options) for name in names]
        return getattr(import_module(f"amif_lib.{module}"), function)(*given)

    return run


def _request(options: Namespace):
    from amif_lib.app.jobs import Request

    seeds = (options.seeds, options.pretrain_seeds)
    return Request(options.scale, options.tables, options.datasets, options.rows, *seeds)


def _run(options: Namespace) -> None:
    from amif_lib.experiments.rows import load_spec
    from amif_lib.training.launch import train

    for run in load_spec(options.spec):  # a table's row is one run per question set
        train(run)


def _table(options: Namespace) -> None:
    from amif_lib.reporting import tables

    for path in tables.write(options.name, options.scale):
        print(path.read_text(encoding="utf-8") if path.suffix == ".md" else paths.shown(path))


def _execute(notebook: str, scale: str) -> int:
    """Execute a notebook that has the parameter `scale`; the executed copy goes to the scale's folder."""
    from amif_lib.app import run_notebook

    source, out = (folder / f"{notebook}.ipynb" for folder in (paths.NOTEBOOKS, paths.scale_dir(scale) / "notebooks"))
    return run_notebook.main([str(source), "--out", str(out), "-p", "scale", scale])


def _figures(options: Namespace) -> int:
    from amif_lib.reporting import figure_set

    status = figure_set.main(options.scale, options.allow_none)
    return status or (_execute("20_attention_and_transport_maps", options.scale) if options.notebook else 0)


def _report(options: Namespace) -> int:
    if paths.from_reference():  # the light environment has no notebook runner
        from amif_lib.reporting import report

        report.write(options.scale)
    elif status := _execute("90_reproduction_report", options.scale):
        return status
    print(f"Report: {paths.shown(paths.scale_dir(options.scale) / 'report.html')}")
    return 0


def _data_sets(options: Namespace) -> list[str]:
    """The data sets that were named, or those of the scale."""
    from amif_lib.app.doctor import needs_of
    from amif_lib.experiments.rows import scale_settings

    scale_settings(options.scale)  # an unknown scale is said before minutes of checking
    return options.datasets or needs_of(options.scale)[0]


def _data_check(options: Namespace) -> int:
    from amif_lib.data import check

    usable = ("ok", "partial")  # partial: the set can be used, as far as it is there
    found = check.check(_data_sets(options))
    print(found.to_markdown(index=False))
    bad = found[~found["status"].isin(usable)]
    if len(bad):
        said = f"{len(bad)} of {len(found)} checks failed; data_manifests/<set>.md says where each set comes from"
        print(f"\n{said}", file=sys.stderr)
    return int(len(bad) > 0)


def _leaks(options: Namespace) -> None:
    from amif_lib.data import manifests
    from amif_lib.scoring import leaks, question_files

    given = [*options.files, *options.train, *options.test]
    if not given:
        raise InputError("leaks: name a question-answer file, or --train FILE --test FILE")
    if len(given) == 1 and not Path(given[0]).exists() and given[0] in manifests.names():
        table = leaks.report(given[0])
    else:
        table = question_files.compare(options.files, options.train, options.test, say=print)
    for _, part in table.groupby("test", sort=False):
        print("\n" + leaks.transposed(part).to_markdown(index=False, disable_numparse=True))
    _write_csv(table, options.out, given)


def _score(options: Namespace) -> None:
    from amif_lib.scoring import score

    chosen = (options.dataset, options.training_file, options.language, options.prediction, options.id)
    found = score.score_file(options.file, *chosen)
    print(score.page(found))
    _write_csv(found.table, options.out, [options.file])


def _write_csv(table: pd.DataFrame, path: Path | None, read: list[str | Path]) -> None:
    from amif_lib.core import files

    if path and path.resolve() in {Path(name).resolve() for name in read}:
        raise InputError(f"--out {path}: is a file that is read; give another name")
    if path:
        with files.atomic_write(path, "give --out a folder with room that you may write to") as aside:
            table.to_csv(aside, index=False)


def _audit(_: Namespace) -> None:
    from amif_lib.reporting import audit_page

    audit_page.run_cells()
    print(f"Page: {paths.shown(paths.results() / 'audit' / 'audit.html')}")


def _lab(options: Namespace) -> int:
    import subprocess

    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    where = [f"--ServerApp.root_dir={paths.ROOT}", "--LabApp.default_url=/lab/tree/notebooks"]
    return subprocess.call([sys.executable, "-m", "jupyterlab", *where], cwd=paths.ROOT, env=environment)


def _bench(options: Namespace) -> int:
    return _execute("40_benchmarks", options.scale)


def _settings(_: Namespace) -> None:
    from amif_lib.experiments import settings_page

    print(settings_page.page(), end="")


def _reference(options: Namespace) -> None:
    from amif_lib.reporting import reference

    print(f"Reference: {paths.shown(reference.store(options.scale))}")


def _clean(options: Namespace) -> None:
    from amif_lib.app.clean import clean

    for path in clean(options.runs, options.dry_run):
        print(f"{'would remove' if options.dry_run else 'removed'} {paths.shown(path)}")


MANY = "--scale --machine --tables --datasets --rows --seeds --pretrain-seeds"
SCORE = "file --prediction --id --dataset --training-file --language --out"
COMMANDS: dict[str, tuple[Callable[[Namespace], int | None], str, str]] = {
    "doctor": (_lazy("app.doctor:main"), "", "say what this machine can run and what is missing"),
    "reproduce": (
        _lazy("app.reproduce:reproduce", _request, "machine"),
        MANY,
        "run what is missing of a scale: data check, trainings, tables, report",
    ),
    "plan": (
        _lazy("app.reproduce:show_plan", _request, "machine"),
        MANY,
        "list the jobs of reproduce, which are to do, and what they cost, without running any",
    ),
    "run": (_run, "spec", "train one run, or a table's row on all question sets"),
    "table": (_table, "name --scale --from", "make one table from stored runs, without training"),
    "figures": (_figures, "--scale --from --allow-none --notebook", "draw every figure that the stored runs allow"),
    "report": (_report, "--scale --from", "make the report page from stored runs, without training"),
    "smoke-paper": (
        _lazy("app.smoke:main", "batch", "steps"),
        "--batch --steps",
        "one optimiser step of each training at the paper's full size",
    ),
    "data": (
        _lazy("data.fetch:main", _data_sets, "dry_run"),
        "--scale --datasets --dry-run",
        "fetch the open data sets of a scale, and say how to get the others",
    ),
    "data-check": (_data_check, "--scale --datasets", "check a scale's data sets against their manifests"),
    "leaks": (_leaks, "files --train --test --out", "say what training questions give away about test questions"),
    "bench": (_bench, "--scale", "time data feed, ranking, transport and training on this machine (notebook 40)"),
    "score": (_score, SCORE, "score anyone's predictions on the test questions of a data set, beside baselines"),
    "audit": (_audit, "", "recompute the paper's own numbers against each other and the annotation files"),
    "settings": (_settings, "", "list every setting with its default and alternatives"),
    "reference": (_reference, "--scale", "copy a scale's tables, figures and predictions to results/reference/"),
    "lab": (_lab, "", "open the notebooks in JupyterLab"),
    "clean": (_clean, "--runs --dry-run", "remove caches and workflow state; never data"),
}
