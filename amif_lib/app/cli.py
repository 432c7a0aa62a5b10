"""The command line, `python -m amif_lib …`. Every make target is one of these commands; make is a convenience.

Options default to the environment variables that make passes on (SCALE, MACHINE, DATASETS, ROWS, SEEDS,
PRETRAIN_SEEDS, BUDGET_HOURS, DATA_ROOT, FROM). Each command imports what it needs when it runs, so that help is instant and
the commands that need no torch run without it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
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
        paths.from_reference()  # any other FROM is refused here
        return options.run(options) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
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

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    command("doctor", _doctor, "say what this machine can run and what is missing")
    for name, text in (
        ("reproduce", "run what is missing of a scale: data check, trainings, tables, report"),
        ("plan", "list the jobs of reproduce, and which are to do, without running any"),
    ):
        sub = command(name, _reproduce if name == "reproduce" else _plan, text)
        _add_scale(sub)
        sub.add_argument(
            "--machine",
            default=_environment("MACHINE", "laptop"),
            help="laptop, workstation or slurm (default: %(default)s)",
        )
        sub.add_argument("--tables", default="", help="names of tables, comma-separated (default: all of the scale)")
        sub.add_argument(
            "--datasets",
            default=_environment("DATASETS"),
            help="question sets, comma-separated (default: all of the scale)",
        )
        sub.add_argument(
            "--rows", default=_environment("ROWS"), help="rows of the tables, comma-separated (default: all)"
        )
        sub.add_argument(
            "--seeds", type=int, default=_environment("SEEDS", "1"), help="fine-tunings per cell (default: %(default)s)"
        )
        sub.add_argument(
            "--pretrain-seeds",
            type=int,
            default=_environment("PRETRAIN_SEEDS", "1"),
            help="pre-trainings per cell, each with its fine-tunings (default: %(default)s)",
        )
        sub.add_argument(
            "--budget-hours",
            type=_hours,
            default=_environment("BUDGET_HOURS", "0"),
            help="only the rows, headline first, whose trainings fit into so many hours (default: all rows)",
        )
    sub = command(
        "run", _run, "train one run (stage 1, stage 2 or a fine-tuning), or those of a table's row on all question sets"
    )
    sub.add_argument("spec", help="a run file (.yaml, .json) or <scale>/<table>/<row>[/<stage>]")
    sub.add_argument("--processes", type=int, help="default: $AMIF_PROCESSES, else one per GPU")
    sub = command("table", _table, "make one table from stored runs, without training")
    sub.add_argument("name", help="for example table1 or lambda_sweep")
    drawn = command("figures", _figures, "draw every figure that the stored runs allow, without training")
    drawn.add_argument("--allow-none", action="store_true", help="runs that allow no figure are no error")
    drawn.add_argument("--notebook", action="store_true", help="execute notebook 20 about maps as well")
    for made in (
        sub,
        drawn,
        command("report", _report, "make the report page from stored runs, without training"),
    ):
        _add_scale(made)
        made.add_argument(
            "--from", dest="origin", metavar="reference", help="read committed results in place of your own (or FROM=)"
        )
    command(
        "smoke-paper",
        _smoke,
        "one optimiser step of each training at the paper's full size, and one ranked answer, on a CPU",
    )
    for name, run, text in (
        ("data", _data, "fetch the open data sets that a scale needs, and say how to get the others"),
        ("data-check", _data_check, "check the data sets that a scale needs against their manifests"),
    ):
        sub = command(name, run, text)
        _add_scale(sub)
        sub.add_argument(
            "--datasets",
            default=_environment("DATASETS"),
            help="manifest names, comma-separated (default: all of the scale)",
        )
        if name == "data":
            sub.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    sub = command(
        "leaks", _leaks, "say what training questions give away about test questions, in any question-answer file"
    )
    sub.add_argument("files", nargs="*", metavar="FILE", help="JSON, JSON lines or CSV; or a data set with a manifest")
    for split in ("train", "test"):
        text = f"all its records are the {split} questions, in place of those in FILE"
        sub.add_argument(f"--{split}", nargs="+", default=[], metavar="FILE", help=text)
    sub.add_argument("--out", type=Path, help="write the table to this CSV file too")
    sub = command("bench", _bench, "time data feed, ranking, transport and training on this machine (notebook 40)")
    _add_scale(sub)
    sub = command("score", _score, "score anyone's predictions on the test questions of a data set, beside baselines")
    sub.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="question ids (question_id, qid or id) and answers (prediction, pred or answer): CSV, TSV, JSON list, JSON "
        "object id -> answer or JSON lines; or a run folder of the kit, which is scored under every protocol",
    )
    sub.add_argument("--dataset", default="", help="a question set, such as vqa_rad (a run folder says it itself)")
    sub.add_argument("--training-file", default="", help="what the baselines learn from, such as published3064")
    sub.add_argument("--language", default="", help="of SLAKE's questions: en, zh or en+zh (default: en)")
    sub.add_argument(
        "--candidates", type=Path, metavar="FILE", help="the answers that were chosen among: .json or .txt"
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="write all numbers to this CSV file too")
    command(
        "audit",
        _audit,
        "recompute the paper's own numbers against each other and the annotation files, in about a minute",
    )
    command("settings", _settings, "list every setting with its default and alternatives")
    kept = command("reference", _reference, "copy a scale's tables, figures and predictions to results/reference/")
    _add_scale(kept)
    command("lab", _lab, "open the notebooks in JupyterLab")
    sub = command("clean", _clean, "remove caches, executed copies and workflow state; never data")
    sub.add_argument(
        "--runs",
        nargs="*",
        metavar="RUN_ID",
        help="these finished runs too, and those that start from them; without ids: all runs, tables and reports",
    )
    sub.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _environment(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def _add_scale(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--scale", default=_environment("SCALE", "demo"), help="demo, small, base or paper (default: %(default)s)"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _hours(text: str) -> float:
    """Hours of a budget, 0 for none; argparse makes a usage error of what is no such number."""
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not (math.isfinite(hours) and hours >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours, such as 8 or 0.5")
    return hours


def _selection(options: argparse.Namespace):
    from amif_lib.app.workflow.plan import Selection

    return Selection(
        options.scale,
        _names(options.tables),
        _names(options.datasets),
        _names(options.rows),
        options.seeds,
        options.pretrain_seeds,
        options.budget_hours,
    )


def _doctor(options: argparse.Namespace) -> int:
    from amif_lib.app import doctor

    return doctor.main()


def _reproduce(options: argparse.Namespace) -> int:
    from amif_lib.app.workflow import engine

    return engine.reproduce(_selection(options), options.machine)


def _plan(options: argparse.Namespace) -> int:
    from amif_lib.app.workflow import engine

    return engine.show_plan(_selection(options), options.machine)


def _run(options: argparse.Namespace) -> None:
    from amif_lib.experiments.rows import load_spec
    from amif_lib.training.launch import train

    for run in load_spec(options.spec):  # a table's row is one run per question set
        train(run, options.processes)


def _table(options: argparse.Namespace) -> None:
    from amif_lib.reporting import tables

    for path in tables.write(options.name, options.scale):
        print(path.read_text(encoding="utf-8") if path.suffix == ".md" else paths.shown(path))


def _execute(notebook: str, scale: str) -> int:
    """Execute a notebook that has the parameter `scale`; the executed copy goes to the scale's folder."""
    from amif_lib.app import run_notebook

    source, out = (folder / f"{notebook}.ipynb" for folder in (paths.NOTEBOOKS, paths.scale_dir(scale) / "notebooks"))
    return run_notebook.main([str(source), "--out", str(out), "-p", "scale", scale])


def _figures(options: argparse.Namespace) -> int:
    from amif_lib.reporting import figure_set

    status = figure_set.main(options.scale, options.allow_none)
    if not status and options.notebook:
        from amif_lib.app.workflow.plan import NOTEBOOKS

        status = _execute(NOTEBOOKS["maps"], options.scale)
    return status


def _report(options: argparse.Namespace) -> int:
    folder = paths.scale_dir(options.scale)
    if paths.from_reference():  # the light install has no notebook runner
        from amif_lib.reporting import report

        report.write(options.scale)
    else:
        from amif_lib.app.workflow.plan import NOTEBOOKS

        if status := _execute(NOTEBOOKS["report"], options.scale):
            return status
    print(f"Report: {paths.shown(folder / 'report.html')}")
    return 0


def _smoke(options: argparse.Namespace) -> int | None:
    from amif_lib.app import smoke

    return smoke.main()


def _data(options: argparse.Namespace) -> int:
    from amif_lib.data import fetch

    return fetch.main(options.scale, _names(options.datasets), options.dry_run)


def _data_check(options: argparse.Namespace) -> int:
    from amif_lib.data import check_page as data_page

    return data_page.main(options.scale, _names(options.datasets))


def _leaks(options: argparse.Namespace) -> None:
    from amif_lib.scoring import leaks, question_files

    given = [*options.files, *options.train, *options.test]
    if not given:
        raise InputError("leaks: name a question-answer file, or --train FILE --test FILE")
    if options.out and options.out.resolve() in {Path(name).resolve() for name in given}:
        raise InputError(f"--out {options.out}: would overwrite the file that is read; give another name")
    if question_files.is_data_set(given):
        table = leaks.report(given[0])
    else:
        table = question_files.compare(options.files, options.train, options.test, say=print)
    for _, part in table.groupby("test", sort=False):
        print("\n" + leaks.transposed(part).to_markdown(index=False, disable_numparse=True))
    print("\n" + "\n".join(leaks.in_words(table)))
    if options.out:
        _write_csv(table, options.out)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    from amif_lib.core import files

    with files.write_aside(path, "give --out a folder with room that you may write to") as aside:
        table.to_csv(aside, index=False)


def _score(options: argparse.Namespace) -> None:
    from amif_lib.scoring import score

    read = [options.file, *([options.candidates] if options.candidates else [])]
    if options.out and (options.out.is_dir() or options.out.resolve() in {path.resolve() for path in read}):
        raise InputError(f"--out {options.out}: is a folder or a file that is read; give another name")
    found = score.score_file(options.file, options.dataset, options.training_file, options.language, options.candidates)
    print(score.page(found))
    if options.out:
        _write_csv(found.table, options.out)


def _bench(options: argparse.Namespace) -> int:
    return _execute("40_benchmarks", options.scale)


def _audit(options: argparse.Namespace) -> int:
    from amif_lib.reporting import audit_page

    return audit_page.main()


def _settings(options: argparse.Namespace) -> None:
    from amif_lib.experiments import settings_page as settings

    print(settings.page(), end="")


def _reference(options: argparse.Namespace) -> None:
    from amif_lib.core import paths
    from amif_lib.reporting import reference

    print(paths.shown(reference.store(options.scale)))


def _lab(options: argparse.Namespace) -> int:
    import subprocess

    return subprocess.call(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            f"--ServerApp.root_dir={paths.ROOT}",
            "--LabApp.default_url=/lab/tree/notebooks",
        ],
        cwd=paths.ROOT,
    )


def _clean(options: argparse.Namespace) -> None:
    from amif_lib.app.workflow import clean

    clean.clean(options.runs, options.dry_run)
