"""The command line: instant help, one-line errors, and commands that need no torch running without it."""

from __future__ import annotations

import pkgutil
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from amif_lib.app import clean, cli, doctor
from amif_lib.core import files, paths
from amif_lib.experiments import rows as experiments
from tests.conftest import ROOT, python

# Makes this interpreter one of a light install: neither modules nor package records of the heavy packages are found.
WITHOUT = """
import importlib.metadata as metadata, sys
from importlib.machinery import PathFinder
HEAVY = {"torch", "torchvision", "transformers", "accelerate", "open_clip", "open_clip_torch", "papermill", "snakemake",
         "huggingface_hub", "tokenizers", "IPython"}
class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HEAVY else PathFinder.find_spec(name, path, target)
sys.meta_path = [Light if finder is PathFinder else finder for finder in sys.meta_path]
found = metadata.version
def version(name):
    if name in HEAVY:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
from amif_lib.app.cli import main
sys.exit(main())
"""


def light(*arguments: str, status: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the kit in a light install."""
    return python("-c", WITHOUT, *arguments, status=status, **environment)


def test_help_lists_every_command_and_each_exists_without_torch() -> None:
    done = light("--help")
    assert "Not for clinical use" in done.stdout
    assert set(cli.COMMANDS) == set(re.findall(r"^    ([a-z-]+)(?: |$)", done.stdout, flags=re.M))
    for target, _, _ in cli.COMMANDS.values():
        assert callable(pkgutil.resolve_name(f"amif_lib.{target}"))


def test_what_the_readme_says_can_be_called() -> None:
    text, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    targets = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.M))
    known = {name for line in re.findall(r"^([a-z0-9 -]+):", makefile, re.M) for name in line.split()}
    assert len(targets) > 8 and targets <= known
    named = set(re.findall(r"python -m amif_lib ([a-z][a-z-]+)", text))
    used = set(re.findall(r"\$\(RUN\) ([a-z-]+)", makefile))
    assert named and len(used) > 8 and named | used <= set(cli.COMMANDS)
    places = re.findall(r"`((?:amif_lib|data_manifests|notebooks)/[\w./]+)`", text)
    linked = re.findall(r"\]\((results/[^)]+)\)", text)
    assert len(linked) > 8 and all((ROOT / place).is_file() for place in linked)
    assert all((ROOT / place).exists() for place in places)


@pytest.mark.parametrize("command", ["settings", "plan", "doctor", "data", "data-check"])
def test_commands_without_training_need_no_torch(command: str, tmp_path: Path) -> None:
    """A light install may lack data or a notebook engine; what it must not do is fail on an import."""
    done = light(
        command,
        *(["--datasets", "vqa_rad"] if command in ("data", "data-check") else []),
        *(["--dry-run"] if command == "data" else []),
        status=None,
        DATA_ROOT=str(tmp_path),
        AMIF_RESULTS=str(tmp_path / "results"),
    )
    assert "Traceback" not in done.stderr and "ModuleNotFoundError" not in done.stderr, done.stderr
    assert done.returncode in (0, 1, 2) and done.stdout + done.stderr
    if command == "doctor":
        assert done.returncode == 0 and "SCALE=demo: not yet\n  not installed: torch" in done.stdout
        assert "  data sets not found: medpix2, medpix2_questions, vqa_rad" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("table table9", "table 'table9': unknown"),
        ("table prompts", "table 'prompts': unknown"),
        ("data-check --datasets nothing", "nothing"),
        ("data --datasets nothing", "nothing"),
        ("reproduce --scale huge", "SCALE=huge"),
        ("reproduce --rows 99", "ROWS: 99"),
        ("reproduce --machine cray", "MACHINE=cray"),
        ("reproduce --scale small", "data sets not found: medpix2, medpix2_questions, vqa_rad"),
    ],
)
def test_input_errors_are_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "no data"))
    assert cli.main(arguments.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and message in said


def test_settings_come_from_the_environment_as_make_passes_them(monkeypatch) -> None:
    asked = {"SCALE": "small", "MACHINE": "slurm", "SEEDS": "3", "ROWS": "1, 6", "DATASETS": "", "PRETRAIN_SEEDS": ""}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    options = cli.parser().parse_args(["reproduce", "--scale", "demo"])
    assert (options.scale, options.machine, options.seeds, options.pretrain_seeds) == ("demo", "slurm", 3, None)
    assert options.rows == ("1", "6") and options.datasets == ()


# --- clean ---------------------------------------------------------------------------------------------------------


KEPT = ("results/paper/table1.csv", "results/reference/demo/x.csv", "data/phantom/x.png", "results/private/x.png")
KEPT += ("results/other/logs/a.log", "results/.ssh/specs/x", "results/logs/x", "results/small/data/vqa_rad/x.json")
CLEANED = ("results/demo/logs/a.log", "results/.snakemake/log/x", "amif_lib/__pycache__/x.pyc")
RECORD = "results/.snakemake/metadata/x"  # of the code that made each table


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[experiments.RunSpec]:
    """A results folder with the runs behind row 6 of Table 4, a table, logs and things that must survive."""
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "results" / "small" / "data"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    runs = experiments.load_spec("demo/table4/6")[0].trainings() + experiments.load_spec("demo/table4/1")[:1]
    for run in runs:
        run.directory.mkdir(parents=True)
        (run.directory / "spec.json").write_text(run.model_dump_json())
        (run.directory / "metrics.json").write_text("{}")
    for name in (*KEPT, "results/demo/tables/table4.csv", "results/demo/plan.json", RECORD, *CLEANED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return runs


def test_clean_leaves_runs_unless_asked_and_always_data_and_committed_results(stored, tmp_path) -> None:
    clean.main()
    own = ("results/demo/tables/table4.csv", "results/demo/plan.json", RECORD)
    assert all((run.directory / "metrics.json").is_file() for run in stored)
    assert all((tmp_path / name).is_file() for name in (*KEPT, *own))
    assert not any((tmp_path / name).exists() for name in CLEANED)
    clean.main(runs=True)
    assert not any((tmp_path / "results" / name).exists() for name in ("runs", "demo", ".snakemake"))
    assert [name for name in KEPT if not (tmp_path / name).is_file()] == []


@pytest.mark.parametrize("place", ["demo", "runs"])
def test_clean_refuses_while_a_job_is_at_work(stored, tmp_path, capsys, place) -> None:
    folder = stored[0].directory if place == "runs" else tmp_path / "results" / "demo"
    with files.exclusive(folder / ".lock", "this"):
        assert cli.main(["clean", "--runs"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "is in use by process" in said and (tmp_path / CLEANED[0]).is_file()


# --- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_weighs_the_machine_in_at_most_25_lines(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "data_sets", lambda scale: [] if scale == "demo" else ["vqa_rad"])
    monkeypatch.setattr(doctor.check, "presence", lambda name: ("missing", ""))
    for size, gpus, found in ((1e9, {}, (2, 3, 4, 4)), (512e9, {"GPU": 80.0}, (0, 1, 1, 1))):
        monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda size=size: SimpleNamespace(total=size))
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, size=size: SimpleNamespace(free=size / 2))
        monkeypatch.setattr(doctor, "gpus", lambda gpus=gpus: gpus)
        assert tuple(len(doctor.obstacles(scale, gpus)) for scale in doctor.NEEDS) == found
        assert sum(found) < len(doctor.report()) <= 25


def test_doctor_measures_the_disk_of_the_results(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "data_sets", lambda scale: [])
    free = {tmp_path: 1e12}  # the clone's own disk is full
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free.get(Path(path), 0)))
    for folder, lacks in ((str(tmp_path / "not" / "yet"), False), (str(paths.ROOT), True)):
        monkeypatch.setenv("AMIF_RESULTS", folder)
        assert any("set AMIF_RESULTS to a larger disk" in said for said in doctor.obstacles("demo", {})) is lacks
