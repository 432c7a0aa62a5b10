"""What a method makes once before a training, such as a teacher's embeddings: `python -m amif_lib.training.extras --spec RUN`."""

from __future__ import annotations

import argparse
import logging

from amif_lib import methods
from amif_lib.data.load import pretraining_studies
from amif_lib.experiments.rows import load_spec


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m amif_lib.training.extras", description=__doc__)
    parser.add_argument("--spec", required=True, help="run file or <scale>/<table>/<row>/stage1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for spec in load_spec(arguments.spec):
        methods.load(spec.method).extras(spec, pretraining_studies(spec.data, spec.model.stored_side), {})


if __name__ == "__main__":
    main()
