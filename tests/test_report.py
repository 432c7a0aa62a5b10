"""The report page from made-up runs, as text and in a real browser, and the stored runs behind it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from urllib.parse import unquote

import matplotlib
import pandas as pd
import pytest

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.reporting import report
from amif_lib.reporting.table_rows import Selection, planned_tables, required_runs
from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

matplotlib.use("Agg")
SETS = ("phantom_vqa_rad", "phantom_slake")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Two tables over two question sets and five replicates of the contrasts' configurations on them."""
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("a folder with spaces"), SETS)
        write_table("table1", "demo", {"demo": (5,)})
        write_table("table4", "demo", {"1": (0, 1, 3, 5, 6, 8), "3": (0, 1, 5, 8), "5": (0, 5), "6": (5,)})
        known = experiments.table_settings
        five = {"contrasts": {"replicates": {"demo": 5}}}
        patch.setattr(experiments, "table_settings", lambda name: known(name) | five.get(name, {}))
        for row in experiments.rows("contrasts", "demo"):
            for run in row.runs:
                wrong = {5, run.seed, *((0, 1, 3, 6) if row.row == "no_pretraining" else (8,))}
                write_run(run, wrong_at(*wrong), blank=wrong_at(*range(8)))
                for stage in run.trainings()[:-1]:
                    write_run(stage)
        plan("table1", "table4")
        yield


def plan(*names: str) -> None:
    """A plan of these tables, as `make reproduce` leaves it behind."""
    path = paths.plan("demo")
    path.parent.mkdir(parents=True, exist_ok=True)
    jobs = [{"rule": "data", "name": "demo"}, *({"rule": "table", "name": name} for name in names)]
    path.write_text(json.dumps({"selection": {}, "jobs": jobs}), encoding="utf-8")


@pytest.fixture(scope="module")
def path(demo):
    return report.write("demo")


@pytest.fixture(scope="module")
def page(path):
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_else_and_begins_with_the_result(page):
    assert not re.search(r"<(script|link|iframe)|src=\"(?!data:image/png;base64,)", page)
    text = " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())
    first = text[text.index("Reproduction report") :]
    said = ("of 12 comparisons over 5 replicates", "The full model answers", "shown another case's image")
    places = [first.find(part) for part in (*said, "synthetic demo data; not comparable with the paper")]
    assert -1 not in places and places == sorted(places)
    commit = stored.load_run(required_runs("table4", "demo")[0]).commit
    assert f"Runs of commit {commit[:12]}" in text
    said = ("question only (trained on blank images)", "nearest question on the same image", "strict@1")
    said += ("model.width", "768", "What the paper prints, on the real data sets", "detectable", "p after Holm")
    said += ("another case's image at test time only", "not by the paper's authors", "not for clinical use")
    assert [part for part in said if part not in text] == []
    parts = ["contrasts", "table1", "table4", "figures", "made", "conditions"]
    assert re.findall(r'<h2 id="(\w+)"', page) == parts and set(re.findall(r'href="#(\w+)"', page)) == set(parts)
    links = re.findall(r'href="([^"#]+)"', page)
    assert links and all((paths.scale_dir("demo") / link).exists() for link in links)


def test_a_teaching_run_says_so(demo, monkeypatch):
    monkeypatch.setattr(report, "planned_tables", lambda scale: ["table1"])
    collected = [report.tables.collect("table1", "demo", Selection(only=("demo",)))]
    said = " ".join(report.result(collected))
    assert "Teaching run" in said and "comparisons" not in said


def test_a_second_report_changes_no_table_unless_it_was_edited_and_escapes_what_it_is_given(monkeypatch, path):
    monkeypatch.setattr(report.figure_set, "draw_all", lambda *_, **__: [])
    monkeypatch.setattr(report, "planned_tables", lambda scale: ["table4"])
    csv = paths.scale_dir("demo") / "tables" / "table4.csv"
    before = csv.stat().st_mtime_ns
    report.write("demo")
    assert csv.stat().st_mtime_ns == before
    csv.write_text("edited by hand", encoding="utf-8")
    rows = Selection.rows

    def with_markup(self, name, scale):
        return [row.model_copy(update={"label": "<script>alert(1)</script>"}) for row in rows(self, name, scale)]

    monkeypatch.setattr(Selection, "rows", with_markup)
    text = report.write("demo").read_text(encoding="utf-8")
    assert pd.read_csv(csv)["ours"].notna().all()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_what_is_planned_and_missing_is_refused(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    assert planned_tables("demo") == list(experiments.tables_of("demo"))
    plan("table5")
    assert planned_tables("demo") == ["table5"]
    with pytest.raises(InputError, match="make reproduce SCALE=demo"):
        report.write("demo")
    assert not (paths.scale_dir("demo") / "report.html").exists()


def test_settings_that_differ():
    got = report.settings_that_differ("small")
    found = got.set_index("setting")
    assert found.loc["model.image_size"].tolist()[:3] == ["stage 1, stage 2, fine-tuning", "288", "160"]
    assert "60" in got[got["setting"] == "train.epochs"].set_index("stage").loc["fine-tuning"].tolist()
    assert report.settings_that_differ("paper").empty


# --- in a browser ---

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files"]
FLAGS += ["--virtual-time-budget=10000", "--hide-scrollbars", "--enable-logging=stderr", "--dump-dom"]
# The page has no script, so a frame of a given width around it is measured from outside; its details are opened first.
FRAME = """<!DOCTYPE html><html><body style="margin:0">
<iframe id="f" src="{page}" style="border:0;width:{width}px;height:900px"></iframe><pre id="out"></pre><script>
window.onload = () => {{
  const inside = document.getElementById("f").contentDocument, root = inside.documentElement;
  inside.querySelectorAll("details").forEach(part => part.open = true);
  const wide = [...inside.querySelectorAll(".numbers")].filter(box => box.scrollWidth > box.clientWidth);
  const first = wide.map(box => {{ box.scrollLeft = 9999; const cell = box.querySelector("td");
    return cell.getBoundingClientRect().left - box.getBoundingClientRect().left; }});
  document.getElementById("out").textContent = JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth, letters: parseFloat(getComputedStyle(inside.body).fontSize),
    images: [...inside.images].map(image => image.complete && image.naturalWidth > 0), first: first,
    links: [...inside.links].map(link => link.getAttribute("href")),
    ids: [...inside.querySelectorAll("[id]")].map(one => one.id),
  }});
}};
</script></body></html>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium found (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_the_browser(path, tmp_path, width):
    """All loads, nothing is logged, links resolve; wide tables scroll in their boxes and keep their first column."""
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=path.as_uri(), width=width), encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}", f"--window-size={max(width, 500)},900", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=90, check=True)
    seen = json.loads(unescape(re.search(r'<pre id="out">(.+?)</pre>', done.stdout, re.DOTALL).group(1)))
    assert "CONSOLE" not in done.stderr
    assert seen["width"] == width >= seen["needed"] and seen["letters"] >= 14
    assert width > 1000 or (len(seen["first"]) > 2 and all(abs(left) < 1 for left in seen["first"]))
    assert len(seen["images"]) >= 3 and all(seen["images"])
    for link in seen["links"]:
        assert link[1:] in seen["ids"] if link.startswith("#") else (path.parent / unquote(link)).exists(), link
