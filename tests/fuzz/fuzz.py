"""Fuzzes a parser with atheris, from and into its corpus:

    pip install atheris
    python tests/fuzz/fuzz.py container -max_total_time=600        # or bundle; options are libFuzzer's

What it finds is written to tests/fuzz/found/. The corpus runs as a test (test_corpus.py); to minimise it, merge the old
folder into an empty one: python tests/fuzz/fuzz.py container -set_cover_merge=1 NEW OLD.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    atheris: Any = importlib.import_module("atheris")  # not in `dev`: it has no wheels for some systems

    name, *options = sys.argv[1:]
    # As plain files: atheris sees little of modules that an editable install's own loader brings.
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "runtime")]
    with atheris.instrument_imports(include=["onedva_runtime", f"{name}_target"]):
        one_input = importlib.import_module(f"{name}_target").one_input
    if not any(not option.startswith("-") for option in options):
        options.append(str(HERE / "corpus" / name))
    (HERE / "found").mkdir(exist_ok=True)
    defaults = [f"-artifact_prefix={HERE / 'found'}/", "-max_len=16384", "-timeout=10", "-rss_limit_mb=2048"]
    again = f"{sys.executable} {__file__} {name}"  # how a merge calls itself, through a shell
    atheris.Setup([again, *defaults, *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
