"""The command line, `python -m amif_lib …`: every make target is one of these commands.

The module of a command is imported when it runs, so that help is instant and only what needs torch loads it.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError

FOLDERS = ("DATA_ROOT", "AMIF_RESULTS", "AMIF_PHANTOM", "AMIF_PREPARED", "HF_HOME")
PAGES = ("00", "02a", "02b", "02c", *map(str, range(11, 17)), "20", "21", "23", "90")  # no training, small pictures
COMPARED = ("17", "18")  # these compare all methods: executed only if the reference has runs of each


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Exit status 0; 1 where something ran and failed; 2 for input that cannot be used."""
    options = vars(parser().parse_args(arguments))
    for name in FOLDERS:  # a relative path means the caller's folder, but jobs run in another one
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())
    if origin := options.pop("from", ""):
        os.environ["FROM"] = origin
    function, *_ = COMMANDS[options.pop("command")]
    try:
        paths.from_reference()  # raises InputError for an unknown FROM
        return pkgutil.resolve_name(f"amif_lib.{function}")(**options) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# Options whose default is the environment variable of the same name, such as SCALE, which make passes on.
FROM_MAKE = ("--scale", "--machine", "--datasets", "--rows", "--seeds", "--pretrain-seeds", "--copies")
NAMES = {"type": lambda text: tuple(text.replace(",", " ").split()), "default": ""}
FLAG = {"action": "store_true"}
FILE, COLUMN = {"metavar": "FILE"}, {"metavar": "COLUMN", "default": ""}
OPTIONS = {
    "--scale": {"default": "demo", "help": "demo (default), small, base or paper"},
    "--machine": {"default": "laptop", "help": "laptop (default), workstation or slurm"},
    "--tables": NAMES | {"help": "names of tables, comma-separated (default: all of the scale)"},
    "--datasets": NAMES | {"help": "data sets, comma-separated (default: all of the scale)"},
    "--rows": NAMES | {"help": "rows of the tables, comma-separated, such as 6 or table4:6 (default: all)"},
    "--seeds": {"type": int, "default": 1, "help": "fine-tunings per cell (default: 1)"},
    "--pretrain-seeds": {"type": int, "help": "pre-trainings per cell (default: as many as the table names, or 1)"},
    "--from": {"metavar": "reference", "help": "reference: use the committed runs (same as FROM=reference)"},
    "spec": {"help": "a run file (.yaml, .json) or <scale>/<table>/<row>[/<stage>]"},
    "name": {"help": "for example table1 or lambda_sweep"},
    "--dry-run": FLAG | {"help": "only say what would be fetched"},
    "files": FILE | {"nargs": "*", "help": "CSV, JSON, JSON lines, parquet; or a data set with a manifest"},
    "--train": FILE | {"nargs": "+", "default": [], "help": "files of training questions only"},
    "--test": FILE | {"nargs": "+", "default": [], "help": "files of test questions only"},
    "file": FILE | {"type": Path, "help": "predictions (README: files that are read), or a run folder of the kit"},
    "--prediction": COLUMN | {"help": "the column of the predictions"},
    "--id": COLUMN | {"dest": "identity", "help": "the column of the question ids"},
    "--dataset": {"default": "", "help": "a question set, such as vqa_rad (a run folder says it itself)"},
    "--training-file": {"default": "", "help": "what the baselines learn from, such as published3064"},
    "--language": {"default": "", "help": "language of SLAKE's questions: en or zh (default: en)"},
    "--all": FLAG | {"help": "also show versions of packages and the weights that each scale starts from"},
    "--out": FILE | {"type": Path, "help": "also write all numbers to this CSV file"},
    "--batch": {"type": int, "default": 2, "help": "samples per step (default: 2; the paper: 256)"},
    "--steps": {"type": int, "default": 1, "help": "optimiser steps of each training (default: 1)"},
    "--copies": {"type": int, "choices": (0, 1), "default": 1, "help": "0: open the originals in notebooks/"},
    "arguments": {"nargs": "*", "help": "JupyterLab's own options, after --"},
    "notebooks": {"nargs": "*", "help": "only renew the executed copies of these notebooks, such as 02a"},
    "--runs": FLAG | {"help": "also remove all finished runs, tables and reports of your own"},
}
MANY = "--scale --tables --datasets --rows --seeds --pretrain-seeds"
SCORE = "file --prediction --id --dataset --training-file --language --out"
COMMANDS = {  # name: the function, called with its options as keywords; the options; the help text
    "doctor": ("app.doctor:main", "--all", "say what this machine can run and what is missing"),
    "reproduce": (
        "app.reproduce:reproduce",
        f"{MANY} --machine",
        "run what is missing of a scale, from its data check to its report",
    ),
    "plan": ("app.reproduce:show_plan", MANY, "list the jobs of reproduce and what they cost, without running any"),
    "run": ("app.cli:run", "spec", "train one run, or a table's row on all question sets"),
    "table": ("app.cli:table", "name --scale --from", "make one table from stored runs, without training"),
    "figures": ("app.cli:figures", "--scale --from", "draw every figure that the runs allow"),
    "report": ("app.cli:report", "--scale --from", "make the report page from stored runs, without training"),
    "smoke-paper": ("app.smoke:main", "--batch --steps", "one step of each training at the paper's full size"),
    "data": ("app.cli:fetch_data", "--scale --datasets --dry-run", "fetch what is open of a scale, sets and weights"),
    "data-check": ("app.cli:check_data", "--scale --datasets", "check a scale's data sets against their manifests"),
    "leaks": ("app.cli:leaks", "files --train --test --out", "measure how far training questions give away test ones"),
    "score": ("app.cli:score", SCORE, "score any model's predictions on a set's test questions, beside baselines"),
    "bench": ("app.cli:bench", "--scale", "time data feed, ranking, transport and training here (notebook 40)"),
    "audit": ("app.cli:audit", "", "check the paper's numbers against each other and against the annotation files"),
    "settings": ("app.cli:settings", "", "list every setting with its default and alternatives"),
    "reference": ("app.cli:reference", "notebooks --scale", "copy a scale's results to results/reference/"),
    "lab": ("app.lab:main", "--copies arguments", "open the notebooks in JupyterLab, as working copies in lab/"),
    "clean": ("app.clean:main", "--runs", "remove caches and logs; never data"),
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands, with the environment's settings as defaults."""
    about = "AMiF Kit: an independent reproduction of AMiF for medical visual question answering. Not for clinical use."
    end = "Settings come from options or from the environment (SCALE=small python -m amif_lib reproduce)."
    whole = argparse.ArgumentParser(prog="python -m amif_lib", description=about, epilog=end)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        for option in options.split():
            variable = option.removeprefix("--").replace("-", "_").upper()
            given = os.environ.get(variable) if option in FROM_MAKE else None
            command.add_argument(option, **OPTIONS[option] | ({"default": given} if given else {}))
    return whole


def run(spec: str) -> None:
    from amif_lib.experiments.rows import load_spec
    from amif_lib.training.launch import train

    for each in load_spec(spec):
        train(each)


def table(name: str, scale: str) -> None:
    from amif_lib.reporting import layout, tables

    for path in layout.write(tables.collect(name, scale)):
        print(path.read_text(encoding="utf-8") if path.suffix == ".md" else paths.shown(path))
    _say_what_is_shown()


def _execute(notebook: str, scale: str, *given: str) -> int:
    """Execute a notebook that has the parameter `scale`; its executed copy goes to the scale's folder."""
    from amif_lib.app import run_notebook

    source, out = (folder / f"{notebook}.ipynb" for folder in (paths.NOTEBOOKS, paths.scale_dir(scale) / "notebooks"))
    return run_notebook.main([str(source), "--out", str(out), "-p", "scale", scale, *given])


def figures(scale: str) -> None:
    import matplotlib

    from amif_lib.reporting import figure_set

    matplotlib.use("Agg")  # no window
    for path in figure_set.draw_all(scale):
        if path.suffix in (".png", ".csv"):
            print(paths.shown(path))
    _say_what_is_shown()


def report(scale: str) -> int:
    from amif_lib.reporting import report as page

    if paths.from_reference():  # the light environment has no notebook runner
        page.write(scale)
    elif status := _execute("90_reproduction_report", scale, "-p", "source", "runs"):
        return status
    print(f"Report: {paths.shown(paths.scale_dir(scale) / 'report.html')}")
    _say_what_is_shown()
    return 0


def _say_what_is_shown() -> None:
    """Say that a selection in the environment (`make report ROWS=6`) does not change what a page shows."""
    if given := [name for name in ("DATASETS", "ROWS", "SEEDS", "PRETRAIN_SEEDS") if os.environ.get(name)]:
        print(f"{', '.join(given)}: not read here; each table shows what was last run (make reproduce, make table2 …)")


def fetch_data(scale: str, datasets: tuple[str, ...], dry_run: bool) -> int:
    from amif_lib.app import doctor, weights
    from amif_lib.data import fetch

    if datasets:
        return fetch.main(datasets, dry_run)
    return fetch.main(doctor.data_sets(scale), dry_run) | weights.fetch(scale, dry_run)


def check_data(scale: str, datasets: tuple[str, ...]) -> int:
    from amif_lib.app import doctor
    from amif_lib.data import check

    found = check.check(datasets or doctor.data_sets(scale))
    print(found.to_markdown(index=False))
    bad = ~found["status"].isin(("ok", "partial"))  # what is there of a partial set can be used
    if bad.any():
        print(f"\n{bad.sum()} checks failed; data_manifests/<set>.md says where a set comes from", file=sys.stderr)
    return int(bad.any())


def leaks(files: list[str], train: list[str], test: list[str], out: Path | None) -> None:
    from amif_lib.data import manifests
    from amif_lib.scoring import leaks, question_files

    given = [*files, *train, *test]
    if not given:
        raise InputError("leaks: name a question-answer file, or --train FILE --test FILE")
    if len(given) == 1 and not Path(given[0]).exists() and given[0] in manifests.names():
        table = leaks.report(given[0])
    else:
        table = question_files.compare(files, train, test, say=print)
    for _, part in table.groupby("test", sort=False):
        print("\n" + leaks.transposed(part).to_markdown(index=False, disable_numparse=True))
    _write_csv(table, out, given)


def score(file: Path, out: Path | None, **chosen: str) -> None:
    from amif_lib.scoring import score

    found = score.score_file(file, **chosen)
    print(score.page(found))
    _write_csv(found.table, out, [file])


def _write_csv(table: Any, path: Path | None, read: list[str | Path]) -> None:
    from amif_lib.core import files

    if path and path.resolve() in {Path(name).resolve() for name in read}:
        raise InputError(f"--out {path}: would overwrite an input file; give another name")
    if path:
        with files.atomic_write(path, "give --out a writable folder with enough space") as temporary:
            table.to_csv(temporary, index=False)


def bench(scale: str) -> int:
    return _execute("40_benchmarks", scale)


def audit() -> None:
    from amif_lib.reporting import audit_page

    audit_page.run_cells()
    print(f"Page: {paths.shown(paths.results() / 'audit' / 'audit.html')}")


def settings() -> None:
    from amif_lib.experiments import settings_page

    print(settings_page.page(), end="")


def reference(scale: str, notebooks: list[str]) -> int:
    """Store a scale's reference and the executed copies of `PAGES`, or only the copies of the named notebooks."""
    from amif_lib.app import run_notebook
    from amif_lib.reporting import reference, table_rows

    if not notebooks:
        print(f"Reference: {paths.shown(reference.store(scale))}")
    os.environ["FROM"] = "reference"  # the copies show what a reader gets in a fresh clone
    pages = [*PAGES, *(COMPARED if "methods" in table_rows.planned_tables(scale) else ())] if scale == "demo" else []
    for name in notebooks or pages:
        found = sorted(paths.NOTEBOOKS.glob(f"{name}*.ipynb"))
        if len(found) != 1:
            raise InputError(f"{name}: {len(found)} notebooks have this number; give that of one, such as 02a")
        executed = paths.scale_dir(scale) / "notebooks" / found[0].name
        if status := run_notebook.main([str(found[0]), "--out", str(executed)]):
            return status
        reference.keep_notebook(executed, scale)
    return 0
