"""Coverage-guided fuzzing of one target with atheris, for as long as you like.

    pip install atheris
    python tests/fuzz/run.py ratings --runs 100000

A finding is written to the folder `crash-…` names, as atheris says; make it a case of fuzz_corpus.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mfdmc_fast"]):
    from fuzz_corpus import CORPUS
    from fuzz_targets import MOST_SECONDS, targets


def main() -> None:
    every = targets()
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of one target with atheris.")
    parser.add_argument("target", choices=every)
    parser.add_argument("--runs", type=int, default=10_000)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    seeds = every[chosen.target].seeds
    replayed = [case.make(seeds) for case in CORPUS if case.target == chosen.target]
    for number, data in enumerate([*seeds, *replayed]):
        (corpus / str(number)).write_bytes(data)
    options = [f"-runs={chosen.runs}", f"-timeout={MOST_SECONDS:.0f}", "-rss_limit_mb=2048", str(corpus)]
    atheris.Setup([sys.argv[0], *options], lambda data: every[chosen.target].run(data, folder) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
