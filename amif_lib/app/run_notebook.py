"""Execute a notebook without a browser: `python -m amif_lib.app.run_notebook NOTEBOOK --out OUT.ipynb -p key value`.

Uses papermill, but refuses unknown parameters, runs this interpreter as kernel, and gives each kernel its own sockets.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError


def read_notebook(notebook: Path) -> dict[str, Any]:
    """The notebook's JSON. Raises InputError if it is missing or not a notebook."""
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        content["cells"]
    except FileNotFoundError:
        raise InputError(f"{paths.shown(notebook)}: no such notebook") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{paths.shown(notebook)}: not a notebook (JSON with cells)") from None
    return content


def code_digest(notebook: Path) -> str:
    """Short hash of the notebook's code cells. Prose, outputs and metadata do not count."""
    code = ["".join(c["source"]).rstrip() for c in read_notebook(notebook)["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def parameters(notebook: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """The given texts as values of the types that the notebook's `parameters` cell declares.

    Raises InputError for a name that the cell does not declare, or a text that is not a Python literal.
    """
    import papermill

    read_notebook(notebook)
    declared, values, where = papermill.inspect_notebook(_plain(notebook)), {}, paths.shown(notebook)
    for name, text in given.items():
        if name not in declared:
            raise InputError(f"{where}: no parameter {name!r}; its parameters cell declares: {', '.join(declared)}")
        try:
            wants_text = isinstance(ast.literal_eval(declared[name]["default"]), str)
            values[name] = text if wants_text else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise InputError(f"{where}: parameter {name}={text!r}: not a number, nor True or False") from None
    return values


def _plain(path: Path) -> str:
    """A path with braces escaped, since papermill would replace {name} by a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def run(notebook: Path, out: Path, given: Mapping[str, str] | None = None) -> None:
    """Execute `notebook` in the repository root and save the executed copy, without this machine's paths, as `out`.

    What cells print goes to standard output as it appears. Raises InputError for bad parameters and papermill's or the
    kernel's own exception when a cell fails; `out` then holds everything up to the failure.
    """
    import papermill
    from traitlets.config import Config

    if out.resolve() == notebook.resolve():
        raise InputError(f"--out {out}: the executed copy must not overwrite the notebook")
    values, out = parameters(notebook, given or {}), out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    shown = {"stdout_file": sys.stdout, "stderr_file": sys.stdout, "progress_bar": False, "autosave_cell_every": 30}
    kernel = {"kernel_name": "python3", "language": "python", "cwd": str(paths.ROOT), "start_timeout": 180}
    try:
        with _own_kernel() as sockets:
            config = Config({"KernelManager": {"transport": "ipc", "ip": sockets}})
            papermill.execute_notebook(_plain(notebook), _plain(out), values, config=config, **kernel, **shown)
    finally:
        if out.is_file():
            text = out.read_text(encoding="utf-8")
            for folder in (str(out.parent), str(paths.results()), str(paths.ROOT), str(Path(sys.prefix).parent)):
                text = text.replace(json.dumps(folder)[1:-1] + "/", "")
            out.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _own_kernel() -> Iterator[str]:
    """Make this interpreter the kernel `python3`; yields the path of its sockets (files, since ports may be taken)."""
    with tempfile.TemporaryDirectory(prefix="amif-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # a short path
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": command, "display_name": "Python 3", "language": "python"}
        files.write_json(Path(folder) / "kernels" / "python3" / "kernel.json", kernel)
        before = dict(os.environ)
        os.environ |= {"JUPYTER_PATH": folder, "JUPYTER_RUNTIME_DIR": folder, "AMIF_HEADLESS": "1"}
        os.environ["IPYTHONDIR"] = f"{folder}/ipython"  # no start-up files of the user, no shared history database
        try:
            yield f"{folder}/k"  # k-1 to k-5
        finally:
            os.environ.clear()
            os.environ |= before


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebook of a command line; exit status 0, 1 if a cell failed, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m amif_lib.app.run_notebook", description="Execute a notebook.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where the executed copy goes")
    value = {"dest": "given", "nargs": 2, "metavar": ("KEY", "VALUE"), "help": "a declared parameter"}
    parser.add_argument("-p", action="append", default=[], **value)
    options = parser.parse_args(arguments)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel and its files are cleaned up
    try:
        run(options.notebook, options.out, dict(options.given))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # papermill, nbclient and the kernel raise many kinds; each is reported, none hidden
        kind = type(error).__name__
        said = re.sub(r"\x1b\[[0-9;]*m", "", f"{kind}: {error}")  # without colours
        if kind == "DeadKernelError":
            said = "the kernel ended without a message; most often the machine ran out of memory (see make doctor)"
        print(f"error: {paths.shown(options.notebook)}: {said}\nexecuted copy: {options.out}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
