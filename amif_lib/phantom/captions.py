"""Writes the phantom's figure captions from a latent case, in the style of articles: one or two sentences, no sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from amif_lib.phantom.reports import REGION, choose, sentence, state

if TYPE_CHECKING:
    from amif_lib.phantom.cases import Case

IMAGES = {  # the noun phrase that a caption begins with; {view}, {region}, {weighting}
    "xr_chest": ("{view} chest radiograph", "{view} radiograph of the chest", "Chest X-ray, {view} view"),
    "ct": ("{view} CT of the {region}", "{view} computed tomography image of the {region}"),
    "mr_brain": (
        "{view} T{weighting}-weighted MR image of the brain",
        "T{weighting}-weighted MRI of the brain, {view}",
    ),
}
VERBS = ("showing", "demonstrating", "that shows", "revealing")
NOTHING = ("without abnormality", "with normal findings", "showing no abnormality")
POINTERS = ("(arrow)", "(white arrow)", "(arrowhead)")
# Every fifth caption has a remark that is not plain ASCII, as articles do
REMARKS = (" – same patient", " obtained after ≈ 3 months", " (pixels of 1 × 1 mm)")


def caption(case: Case, rng: np.random.Generator) -> str:
    """A caption that names the image, its region and what can be seen in it of the case's findings."""
    view = case.views[0]
    template = choose(rng, IMAGES.get(case.study, IMAGES["ct"]))
    image = template.format(
        view=view.capitalize() if template.startswith("{view}") else view,
        region=REGION[case.study],
        weighting=2 if case.anatomy["t2"] > 0.5 else 1,
    )
    image += choose(rng, REMARKS) if rng.random() < 0.2 else ""
    seen = case.kinds(view)
    if not seen:
        return sentence(f"{image} {choose(rng, NOTHING)}")
    first, *others = (state(case, kind, rng) for kind in seen)
    joint = "; " if first.startswith(("the ", "midline")) else f" {choose(rng, VERBS)} "
    return " ".join([sentence(f"{image}{joint}{first} {choose(rng, POINTERS)}"), *map(sentence, others)])
