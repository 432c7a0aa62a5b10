"""Which digests of code are known to give the same bits: `results/reference/equal_code.json`.

A change of a result-determining module that alters no result would make every stored run look outdated. Where the same runs,
trained by both codes on one machine under deterministic algorithms, are equal in every weight, log-likelihood and map,
`python -m amif_lib reference --equals FOLDER` notes it, with the runs that show it. It is shown for what those runs use,
and for no setting that none of them has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from amif_lib.core import files, paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import stored as results
from amif_lib.experiments.predictions import CANDIDATES, PREDICTIONS

Kind = Literal["code", "maps"]
COMPARED: dict[Kind, tuple[str, ...]] = {
    "code": (
        "model/model.safetensors",
        PREDICTIONS,
        CANDIDATES,
        f"{results.BLANK_TEST}/{PREDICTIONS}",
    ),
    "maps": ("maps.npz", "example_maps.npz", "soft_labels.npz", "hard_negatives.csv"),
}


def noted() -> list[dict[str, Any]]:
    """The committed notes, oldest first: `kind, earlier, later` (digests), `runs` (id, stage, label, files) and `versions`."""
    path = paths.reference() / "equal_code.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def same_as(digest: str, kind: Kind = "code") -> set[str]:
    """A digest and every one that notes, in any number of steps, say is equal to it."""
    pairs = [(note["earlier"], note["later"]) for note in noted() if note["kind"] == kind]
    found: set[str] = {digest}
    while more := {end for pair in pairs if found & set(pair) for end in pair} - found:
        found |= more
    return found


def present() -> set[str]:
    """Digests of code that trains as the present code does."""
    return same_as(results.code_digest())


def present_maps() -> set[str]:
    """Digests of code that makes maps as the present code does."""
    return same_as(results.map_digest(), "maps")


def note(earlier: Path) -> list[dict[str, Any]]:
    """Compare every finished run that two results folders share, and note that their codes are equal.

    `earlier` is the results folder of the other code; the other one is the present. Returns the notes added. Raises
    InputError where they share no finished run, a folder's runs are of several codes, a file differs or is missing on
    one side (naming it), or what was compared is of one code.
    """
    mine = {path.parent.name for path in (paths.results() / "runs").glob("*/provenance.json")}
    shared = [name for name in sorted(mine) if (earlier / "runs" / name / "provenance.json").is_file()]
    if not shared:
        raise InputError(f"{paths.shown(earlier)}: shares no finished run with {paths.shown(paths.results())}")
    sides = [[results.Run(root / "runs" / name) for name in shared] for root in (earlier, paths.results())]
    codes = [_single(results.digests(runs), "code") for runs in sides]
    found: dict[Kind, list[dict[str, Any]]] = {"code": [], "maps": []}
    for one, other in zip(*sides, strict=True):
        for kind, names in COMPARED.items():
            equal = [name for name in names if _equal(one.directory / name, other.directory / name)]
            if equal and (kind == "maps" or names[0] in equal):  # no equality of codes without the weights
                found[kind].append(
                    {"run": one.run_id, "stage": one.spec.stage, "label": one.spec.label, "files": equal}
                )
    maps = [_single(_map_codes(runs), "maps") for runs in sides]
    out = []
    for kind, (before, after) in (("code", codes), ("maps", maps)):
        if before != after and found[kind]:
            versions = results.provenance()["versions"]
            out.append({"kind": kind, "earlier": before, "later": after, "runs": found[kind], "versions": versions})
    if not out:
        raise InputError(f"{paths.shown(earlier)}: its runs are of the same code ({codes[0]}); nothing to note")
    kept = [
        n
        for n in noted()
        if all((n["kind"], n["earlier"], n["later"]) != (o["kind"], o["earlier"], o["later"]) for o in out)
    ]
    files.write_text(paths.reference() / "equal_code.json", json.dumps([*kept, *out], indent=1) + "\n")
    return out


def _single(codes: dict[str, list[str]], kind: str) -> str:
    if len(codes) > 1:
        raise InputError(
            f"{kind}: the runs compared are of {len(codes)} codes ({', '.join(codes)}); compare runs of one"
        )
    return next(iter(codes), "")


def _map_codes(runs: list[results.Run]) -> dict[str, list[str]]:
    import numpy as np

    out: dict[str, list[str]] = {}
    for path in (run.directory / name for run in runs for name in COMPARED["maps"] if name.endswith(".npz")):
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                out.setdefault(str(stored["code"]) if "code" in stored.files else "", []).append(path.parent.name)
    return out


def _equal(one: Path, other: Path) -> bool:
    """Whether both files are there and hold the same; False where neither is. Raises InputError where they differ."""
    if not one.is_file() and not other.is_file():
        return False
    for here, there in ((one, other), (other, one)):
        if not there.is_file():
            raise InputError(f"{paths.shown(here)}: has no counterpart {paths.shown(there)}")
    contents = [_content(path) for path in (one, other)]
    if contents[0].keys() != contents[1].keys() or any(contents[0][name] != contents[1][name] for name in contents[0]):
        odd = sorted(name for name in contents[0] if contents[0].get(name) != contents[1].get(name))
        raise InputError(
            f"{paths.shown(one)} and {paths.shown(other)} differ ({', '.join(odd)[:80]}): these codes are not equal"
        )
    return True


def _content(path: Path) -> dict[str, bytes]:
    """What a file holds, by name, as bytes; without the digest of the code that made it."""
    import numpy as np
    import pandas as pd

    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {name: array.tobytes() for name, array in load_file(path).items()}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name].tobytes() for name in stored.files if name != "code"}
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
        return {name: repr([np.asarray(x).tolist() for x in frame[name]]).encode() for name in frame}
    return {"text": path.read_bytes()}
