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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m amif_lib",
        description="AMiF Kit: an independent reproduction of AMiF for medical visual question answering. "
        "Not for clinical use.",
        epilog="Settings come from options or from the environment (SCALE=small python -m amif_lib reproduce).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Namespace], int | None], text: str, *shared: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        for option in shared:
            default, kind, about = SHARED[option]
            value = os.environ.get(option.upper().replace("-", "_")) or default
            sub.add_argument(f"--{option}", type=kind, default=value, help=f"{about} (default: %(default)s)")
        return sub

    many = ("scale", "machine", "tables", "datasets", "rows", "seeds", "pretrain-seeds")
    command("doctor", _lazy("app.doctor:main"), "say what this machine can run and what is missing")
    for name, text in (
        ("reproduce", "run what is missing of a scale: data check, trainings, tables, report"),
        ("show_plan", "list the jobs of reproduce, which are to do, and what they cost, without running any"),
    ):
        command(name.removeprefix("show_"), _lazy(f"app.reproduce:{name}", _request, "machine"), text, *many)
    sub = command(
        "run", _run, "train one run (stage 1, stage 2 or a fine-tuning), or a table's row on all question sets"
    )
    sub.add_argument("spec", help="a run file (.yaml, .json) or <scale>/<table>/<row>[/<stage>]")
    sub.add_argument("--processes", type=int, help="default: $AMIF_PROCESSES, else one per GPU")
    table = command("table", _table, "make one table from stored runs, without training", "scale")
    table.add_argument("name", help="for example table1 or lambda_sweep")
    figures = command("figures", _figures, "draw every figure that the stored runs allow, without training", "scale")
    figures.add_argument("--allow-none", action="store_true", help="runs that allow no figure are no error")
    figures.add_argument("--notebook", action="store_true", help="execute notebook 20 about maps as well")
    report = command("report", _report, "make the report page from stored runs, without training", "scale")
    for sub in (table, figures, report):
        sub.add_argument(
            "--from", dest="origin", metavar="reference", help="read committed results (or FROM=reference)"
        )
    command(
        "smoke-paper", _lazy("app.smoke:main"), "one optimiser step of each training at the paper's full size, on a CPU"
    )
    sub = command(
        "data",
        _lazy("data.fetch:main", _data_sets, "dry_run"),
        "fetch the open data sets of a scale, and say how to get the others",
        "scale",
        "datasets",
    )
    sub.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    command("data-check", _data_check, "check a scale's data sets against their manifests", "scale", "datasets")
    sub = command("leaks", _leaks, "say what training questions give away about test questions")
    sub.add_argument(
        "files", nargs="*", metavar="FILE", help="CSV, JSON, JSON lines, parquet; or a data set with a manifest"
    )
    for split in ("train", "test"):
        text = f"all its records are the {split} questions, in place of those in FILE"
        sub.add_argument(f"--{split}", nargs="+", default=[], metavar="FILE", help=text)
    sub.add_argument("--out", type=Path, help="write the table to this CSV file too")
    command(
        "bench",
        lambda options: _execute("40_benchmarks", options.scale),
        "time data feed, ranking, transport and training on this machine (notebook 40)",
        "scale",
    )
    sub = command("score", _score, "score anyone's predictions on the test questions of a data set, beside baselines")
    sub.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="predictions as CSV, JSON, JSON lines, parquet or xlsx (README: files that are read); or a run folder of "
        "the kit, which is scored under every protocol",
    )
    sub.add_argument("--prediction", default="", metavar="COLUMN", help="the column of the predictions")
    sub.add_argument("--id", default="", metavar="COLUMN", help="the column of the question ids")
    sub.add_argument("--dataset", default="", help="a question set, such as vqa_rad (a run folder says it itself)")
    sub.add_argument("--training-file", default="", help="what the baselines learn from, such as published3064")
    sub.add_argument("--language", default="", help="of SLAKE's questions: en or zh (default: en)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write all numbers to this CSV file too")
    command("audit", _audit, "recompute the paper's own numbers against each other and the annotation files")
    command(
        "settings",
        lambda _: print(import_module("amif_lib.experiments.settings_page").page(), end=""),
        "list every setting with its default and alternatives",
    )
    command("reference", _reference, "copy a scale's tables, figures and predictions to results/reference/", "scale")
    command("lab", _lab, "open the notebooks in JupyterLab")
    sub = command("clean", _clean, "remove caches and workflow state; never data")
    sub.add_argument("--runs", action="store_true", help="all finished runs, tables and reports of your own too")
    sub.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _lazy(target: str, *names: str | Callable[[Namespace], object]) -> Callable[[Namespace], int | None]:
    """A command that calls `module:function`, imported when it runs, with options by name or made of all options."""

    def run(options: Namespace) -> int | None:
        module, _, function = target.partition(":")
        given = [getattr(options, name) if isinstance(name, str) else name(options) for name in names]
        return getattr(import_module(f"amif_lib.{module}"), function)(*given)

    return run


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _number(text: str) -> int | None:
    return int(text) if text else None


SHARED: dict[str, tuple[str, Callable[[str], object], str]] = {
    "scale": ("demo", str, "demo, small, base or paper"),
    "machine": ("laptop", str, "laptop, workstation or slurm"),
    "tables": ("", _names, "names of tables, comma-separated; empty: all of the scale"),
    "datasets": ("", _names, "data sets, comma-separated; empty: all of the scale"),
    "rows": ("", _names, "rows of the tables, comma-separated; empty: all"),
    "seeds": ("1", int, "fine-tunings per cell"),
    "pretrain-seeds": (
        "",
        _number,
        "pre-trainings per cell; empty: as many as the table names, or 1",
    ),
}


def _request(options: Namespace):
    from amif_lib.app.jobs import Request

    seeds = (options.seeds, options.pretrain_seeds)
    return Request(options.scale, options.tables, options.datasets, options.rows, *seeds)


def _run(options: Namespace) -> None:
    from amif_lib.experiments.rows import load_spec
    from amif_lib.training.launch import train

    for run in load_spec(options.spec):  # a table's row is one run per question set
        train(run, options.processes)


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
    _refuse_overwriting(options.out, given)
    if len(given) == 1 and not Path(given[0]).exists() and given[0] in manifests.names():
        table = leaks.report(given[0])
    else:
        table = question_files.compare(options.files, options.train, options.test, say=print)
    for _, part in table.groupby("test", sort=False):
        print("\n" + leaks.transposed(part).to_markdown(index=False, disable_numparse=True))
    _write_csv(table, options.out)


def _score(options: Namespace) -> None:
    from amif_lib.scoring import score

    _refuse_overwriting(options.out, [options.file])
    chosen = (options.dataset, options.training_file, options.language, options.prediction, options.id)
    found = score.score_file(options.file, *chosen)
    print(score.page(found))
    _write_csv(found.table, options.out)


def _refuse_overwriting(out: Path | None, read: list[str | Path]) -> None:
    if out and (out.is_dir() or out.resolve() in {Path(name).resolve() for name in read}):
        raise InputError(f"--out {out}: is a folder or a file that is read; give another name")


def _write_csv(table: pd.DataFrame, path: Path | None) -> None:
    from amif_lib.core import files

    if path:
        with files.atomic_write(path, "give --out a folder with room that you may write to") as aside:
            table.to_csv(aside, index=False)


def _audit(options: Namespace) -> int:
    from importlib.util import find_spec

    from amif_lib.app import run_notebook
    from amif_lib.reporting import audit_page

    folder, notebook = paths.results() / "audit", audit_page.NOTEBOOK
    if all(map(find_spec, ("papermill", "ipykernel", "nbclient"))):
        if status := run_notebook.main([str(notebook), "--out", str(folder / "notebooks" / notebook.name)]):
            return status
    else:  # the light install
        audit_page.run_cells()
    print(f"Page: {paths.shown(folder / 'audit.html')}")
    return 0


def _reference(options: Namespace) -> None:
    from amif_lib.reporting import reference

    print(f"Reference: {paths.shown(reference.store(options.scale))}")


def _lab(options: Namespace) -> int:
    import subprocess

    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    where = [f"--ServerApp.root_dir={paths.ROOT}", "--LabApp.default_url=/lab/tree/notebooks"]
    return subprocess.call([sys.executable, "-m", "jupyterlab", *where], cwd=paths.ROOT, env=environment)


def _clean(options: Namespace) -> None:
    from amif_lib.app.clean import clean

    for path in clean(options.runs, options.dry_run):
        print(f"{'would remove' if options.dry_run else 'removed'} {paths.shown(path)}")
