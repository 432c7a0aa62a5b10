"""`make data-check`: the check as a table on the terminal, and as one page with all that decides the use of the data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from amif_lib.core import files, paths
from amif_lib.data import check as data_check
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.reporting import layout

TEMPLATES = {"data_check.html": "data_check.html.j2", "data_check.md": "data_check.md.j2"}
GOOD = ("ok", "partial")  # partial: the set can be used, as far as it is there


def main(scale: str, names: Iterable[str] = ()) -> int:
    """Check the named sets, or those that the scale needs; print the table, write the page. Exit status 1 for bad data."""
    experiments.scale_settings(scale)  # an unknown scale is said before minutes of checking
    if not names:
        from amif_lib.app.doctor import needs_of

        names = needs_of(scale)[0]
    for name in names:
        manifests.load(name)
    reports: dict[str, pd.DataFrame] = {}
    found = pd.concat([data_check.lines(name, reports=reports) for name in names], ignore_index=True)
    print(found.drop(columns="kind").to_markdown(index=False))
    bad = found[~found["status"].isin(GOOD)]
    if len(bad):
        print(
            f"\n{len(bad)} of {len(found)} checks failed; data_manifests/<set>.md says where each set comes from",
            file=sys.stderr,
        )
    print("\nPage: " + ", ".join(paths.shown(path) for path in write(scale, found, reports)))
    return int(len(bad) > 0)


def write(scale: str, found: pd.DataFrame, reports: Mapping[str, pd.DataFrame] = MappingProxyType({})) -> list[Path]:
    """Write `results/<scale>/data/data_check.html` and `.md` from tables of `data_check.lines`; returns their paths.

    `reports` holds the sets' `leaks.report` as `data_check.lines` gives them; of a set that it lacks none is shown.

    The pages hold counts, names and digests, no picture and no text of a set. Raises InputError where the folder cannot
    be written.
    """
    folder = paths.scale_dir(scale) / "data"
    sets = [_section(str(name), lines, reports) for name, lines in found.groupby("data_set", sort=False)]
    written = []
    for name, template in TEMPLATES.items():
        as_html = name.endswith(".html")
        environment = Environment(autoescape=as_html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters["table"] = _html if as_html else _markdown
        content = {
            "scale": scale,
            "sets": sets,
            "overview": _overview(sets),
            "good": sum(found["status"] == "ok"),
            "total": len(found),
            "style": Markup(_style()),
        }
        page = environment.from_string((Path(__file__).parent / template).read_text(encoding="utf-8")).render(content)
        files.write_text(folder / name, page)
        written.append(folder / name)
    return written


def _style() -> str:
    """The report's style sheet, so that both pages look alike."""
    text = (paths.PACKAGE / "reporting" / "report.html.j2").read_text(encoding="utf-8")
    return text.partition("<style>")[2].partition("</style>")[0]


def _html(frame: pd.DataFrame, kind: str = "words") -> Markup:
    return Markup(layout.html(frame, kind))


def _markdown(frame: pd.DataFrame, kind: str = "words") -> str:
    return frame.astype(str).map(lambda text: text.replace("|", "\\|")).to_markdown(index=False, disable_numparse=True)


def _section(name: str, lines: pd.DataFrame, reports: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    manifest = manifests.load(name)
    leaks, note = _leaks(manifest, lines, reports.get(name))
    downloads = [
        {
            "file": source.target,
            "address": f"{source.url} {source.file} {source.revision}".strip(),
            "size": f"{source.bytes / 1e6:.1f} MB" if source.bytes else "unknown",
            "checksum": "recorded" if source.sha256 else "none",
            "whose": _whose(source.official),
            "fetched by the kit's makers": "yes" if source.exercised else "never",
        }
        for source in manifest.downloads
    ]
    return {
        "manifest": manifest,
        "folder": paths.shown(manifests.folder_of(manifest)),
        "status": _status(lines),
        "files": lines.loc[~lines["kind"].isin(("count", "leak")), ["item", "status", "detail"]],
        "counts": _counts(lines[lines["kind"] == "count"]),
        "downloads": pd.DataFrame(downloads),
        "leak_lines": lines.loc[lines["kind"] == "leak", ["item", "status", "detail"]],
        "about": _about(manifest),
        "leaks": leaks,
        "leaks_note": note,
    }


def _overview(sets: Iterable[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for one in sets:
        manifest = one["manifest"]
        rows.append(
            {
                "set": manifest.name,
                "what": f"{manifest.title}, {manifest.version}",
                "used for": manifest.role,
                "licence": manifest.licence.text,
                "access": manifest.access.level,
                "where": one["folder"],
                "status": one["status"],
            }
        )
    return pd.DataFrame(rows)


def _status(lines: pd.DataFrame) -> str:
    """One word or two for a whole set, from its lines."""
    if (absent := lines[lines["kind"] == "folder"]["status"]).isin(("missing", "needs credential")).any():
        return str(absent.iloc[0])
    wrong = lines.loc[lines["status"] != "ok", "status"]
    counted = wrong.value_counts()
    return ", ".join(f"{n} {status}" for status, n in counted.items()) or f"ok ({len(lines)} checks)"


def _counts(lines: pd.DataFrame) -> pd.DataFrame:
    """One line per split: what was counted, with the manifest's number beside it where that differs."""
    if lines.empty:
        return pd.DataFrame()
    split, what = zip(*(item.split(": ", 1) for item in lines["item"]), strict=True)
    shown = [
        detail.replace(", expected ", " (expected ") + ")" * (", expected " in detail)
        for detail in lines["detail"].str.removesuffix(", nothing recorded to compare with")
    ]
    long = pd.DataFrame({"split": split, "what": [name.replace("_", " ") for name in what], "shown": shown})
    wide = long.pivot(index="split", columns="what", values="shown")
    order = [list(dict.fromkeys(long[key])) for key in ("split", "what")]
    return wide.reindex(index=order[0], columns=order[1]).fillna("").reset_index().rename_axis(columns=None)


def _leaks(manifest: manifests.Manifest, lines: pd.DataFrame, report: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """The table of leakage and ceilings of a question set, or why there is none."""
    if manifest.role != "questions":
        return pd.DataFrame(), "The set has no questions."
    if report is None:
        said = lines.loc[lines["kind"] == "leak", "detail"]
        return pd.DataFrame(), said.iloc[0] if len(said) else "The questions could not be read; see the lines above."
    from amif_lib.scoring import leaks

    return leaks.transposed(report), ""


def _about(manifest: manifests.Manifest) -> list[tuple[str, str]]:
    """What else the manifest records, name and text; what it leaves empty is not there."""
    verified, licence, leakage = manifest.verified, manifest.licence, manifest.leakage
    checked = f"looked at on {licence.checked_on}" if licence.checked_on else "live page not looked at"
    mirrors = [
        f"{mirror.id} ({', '.join(filter(None, (mirror.kind, mirror.revision, _whose(mirror.official), mirror.note)))})"
        for mirror in manifest.mirrors
    ]
    about = {
        "Licence stated at": f"{licence.url} ({checked})" if licence.url else "",
        "Compared with the files by": ", ".join(filter(None, (verified.by, verified.date, verified.how))),
        "Record fields": ", ".join(manifest.fields),
        "Encoding": manifest.encoding,
        "Checks": ", ".join(manifest.checks),
        "To be cleaned of": ", ".join(leakage.protected_by),
        "Id shared with other sets": leakage.id_key,
        "Known overlaps": "; ".join(leakage.known_overlaps),
        "Also at": "; ".join(mirrors),
        "Environment variables": ", ".join(manifest.access.env_vars),
    }
    return [(name, text) for name, text in about.items() if text]


def _whose(official: bool) -> str:
    return "the publisher's" if official else "a mirror"
