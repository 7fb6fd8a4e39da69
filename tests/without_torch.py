"""Runs Python code in which torch must not be imported: `python without_torch.py 'import onedva'`.

Any attempt fails the run, also one inside `try … except ImportError`: the runtime is not to use torch just because it
happens to be installed.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

attempts: list[str] = []


class Ban(MetaPathFinder, Loader):
    """Finds torch before anything else does, so that only importing it fails: to ask whether it is there is allowed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.split(".")[0] == "torch" else None

    def exec_module(self, module: ModuleType) -> None:
        attempts.append(module.__name__)
        raise ImportError(f"{module.__name__} is banned here")


if __name__ == "__main__":
    sys.meta_path.insert(0, Ban())
    exec(compile(sys.argv[1], "<code>", "exec"), {"__name__": "__main__"})
    if attempts:
        sys.exit(f"tried to import {', '.join(attempts)}")
