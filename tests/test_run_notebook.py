"""Executing notebooks: strict parameters, the right kernel, kernels side by side, failures told in full."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from amif_lib.app import run_notebook
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from tests.conftest import python

pytest.importorskip("papermill")
nbformat = pytest.importorskip("nbformat")


def notebook(path: Path, *cells: str, parameters: str = 'spec = "x"', prose: str = "# Title") -> Path:
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    code = [first, *map(nbformat.v4.new_code_cell, cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(prose), *code], metadata={"kernelspec": kernel}
    )
    nbformat.write(content, path)
    return path


def call(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "amif_lib.app.run_notebook", *arguments, status=status, **environment)


def test_parameters_kernel_folder_and_output(tmp_path: Path) -> None:
    """The cells see the given values, this interpreter, the repository root; a foreign `python3` kernel is not used."""
    foreign = tmp_path / "share" / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    other = {"argv": ["/nowhere/python", "-f", "{connection_file}"], "display_name": "other", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(other))
    source = notebook(
        tmp_path / "a note.ipynb",
        "import json, os, sys\nprint(json.dumps([spec, count, rate, flag, sys.executable, os.getcwd(), "
        "os.environ['AMIF_HEADLESS']]), flush=True)",
        parameters='spec = "x"\ncount = 3\nrate = 0.5\nflag = False',
    )
    out = tmp_path / "made" / "{braces}.ipynb"
    given = ["-p", "spec", "a b", "-p", "count", "7", "-p", "rate", "1.0", "-p", "flag", "True"]
    jupyter = dict.fromkeys(("JUPYTER_DATA_DIR", "JUPYTER_PATH"), str(tmp_path / "share" / "jupyter"))
    done = call(str(source), "--out", str(out), *given, **jupyter)
    seen = json.loads(re.search(r"^\[.*\]$", done.stdout, flags=re.M).group())
    assert seen[:4] == ["a b", 7, 1.0, True] and [type(value) for value in seen[:4]] == [str, int, float, bool]
    assert seen[4:] == [sys.executable, str(paths.ROOT), "1"]
    assert any(cell.get("outputs") for cell in json.loads(out.read_text())["cells"])
    assert str(paths.ROOT) + "/" not in out.read_text() and str(out.parent) + "/" not in out.read_text()
    assert not any(cell.get("outputs") for cell in json.loads(source.read_text())["cells"])


def test_unknown_and_mistyped_parameters_are_errors_before_any_kernel_starts(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", parameters='spec = "x"\ncount: int = 3')
    with pytest.raises(InputError, match=r"no parameter 'sepc'; its parameters cell declares: spec, count"):
        run_notebook.parameters(source, {"sepc": "y"})
    with pytest.raises(InputError, match="count='many': not a number"):
        run_notebook.parameters(source, {"count": "many"})
    assert run_notebook.main([str(source), "--out", str(tmp_path / "o.ipynb"), "-p", "sepc", "y"]) == 2
    assert run_notebook.main([str(source), "--out", str(source)]) == 2  # would overwrite the notebook
    assert run_notebook.main([str(tmp_path / "none.ipynb"), "--out", str(tmp_path / "o.ipynb")]) == 2
    (tmp_path / "cut.ipynb").write_text(source.read_text()[:80])
    assert run_notebook.main([str(tmp_path / "cut.ipynb"), "--out", str(tmp_path / "o.ipynb")]) == 2
    assert not (tmp_path / "o.ipynb").exists()


def test_a_failing_cell_is_told_in_full_and_its_notebook_kept(tmp_path: Path) -> None:
    source = notebook(
        tmp_path / "n.ipynb",
        "print('before')",
        "def deep():\n    raise ValueError('the reason')\ndeep()",
        "print('never')",
    )
    out = tmp_path / "out.ipynb"
    done = call(str(source), "--out", str(out), status=1)
    assert all(text in done.stderr for text in ("ValueError: the reason", "deep()", str(out)))
    assert "before" in done.stdout and "never" not in done.stdout and "\x1b[" not in done.stderr
    assert "the reason" in out.read_text()


def test_a_kernel_that_dies_is_not_taken_for_success(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", "import os\nos._exit(9)")
    assert "kernel ended" in call(str(source), "--out", str(tmp_path / "out.ipynb"), status=1).stderr


def test_kernels_side_by_side_have_sockets_of_their_own(tmp_path: Path) -> None:
    """Four at once in one folder, over Unix sockets; all leave nothing behind."""
    source = notebook(
        tmp_path / "n.ipynb",
        "import json\nfrom ipykernel.connect import get_connection_info\n"
        "information = get_connection_info(unpack=True)\nprint(information['transport'], information['ip'])",
    )
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda name: call(str(source), "--out", str(tmp_path / f"{name}.ipynb")), "abcd"))
    sockets = {each.stdout.strip() for each in done}
    assert len(sockets) == 4
    if os.name == "posix":
        assert all(line.startswith("ipc ") for line in sockets)
        assert not any(Path(line.split(maxsplit=1)[1]).parent.exists() for line in sockets)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_terminated_runner_takes_its_kernel_along(tmp_path: Path) -> None:
    source = notebook(
        tmp_path / "n.ipynb",
        "import os, time\nprint('kernel', os.getpid(), os.environ['JUPYTER_RUNTIME_DIR'], flush=True)\ntime.sleep(100)",
    )
    runner = subprocess.Popen(
        [sys.executable, "-m", "amif_lib.app.run_notebook", str(source), "--out", str(tmp_path / "out.ipynb")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(paths.ROOT)},
    )
    _, number, folder = next(line for line in runner.stdout if line.startswith("kernel")).split(maxsplit=2)
    kernel = int(number)
    runner.send_signal(signal.SIGTERM)
    runner.wait(timeout=30)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(kernel) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not psutil.pid_exists(kernel)
    assert not Path(folder.strip()).exists()  # its sockets went too
