"""What the leak in VQA-RAD's circulating training file is worth: accuracy on the leaked and on the other questions."""

from __future__ import annotations

from collections.abc import Sequence

from amif_lib.data import load
from amif_lib.experiments.stored import Run
from amif_lib.reporting import figures
from amif_lib.reporting.figures import BLUE, GREY, ORANGE, Drawn
from amif_lib.scoring import leaks

LEAKING = "published3064"
LOOKS = {
    "official1797": ("o", GREY, "official1797"),
    "clean2772": ("s", BLUE, "clean2772 (as the next, without the leak)"),
    LEAKING: ("D", ORANGE, "published3064 (leaks)"),
}


def leak_worth(runs: Sequence[Run] = ()) -> Drawn:
    """`leaks.worth` on VQA-RAD, drawn; `runs` are fine-tunings on it. Raises InputError where its file is absent."""
    data = leaks.worth({file: load.load_questions("vqa_rad", file, images=False) for file in LOOKS}, LEAKING, runs)
    sizes = data.drop_duplicates("part").set_index("part")["n"]
    shown = data.assign(line="", value=data["accuracy"], kind=data["training_file"])
    shown["column"] = data["part"].map(lambda part: f"{sizes[part]} {part} questions")
    shown["row"] = data["system"].str.replace(", ", ",\n")
    figure = figures.estimates(shown, LOOKS, spread=0.25)
    caption = (
        f"What the leak in VQA-RAD's training file of 3,064 questions is worth: it holds {sizes['leaked']} of the "
        f"{sizes.sum()} test questions with their answers, in other words on the same image. Accuracy by the training "
        "file that is answered from, with 95% intervals from resampling images. The baselines read no image."
    )
    return figure, data, caption
