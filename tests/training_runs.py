"""Short training runs of a nano model, in the test's process and, as a script, in processes of their own:

python tests/training_runs.py CLIPS OUTPUT MODEL.json '{"steps": 3}' [--resume]
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nano import random_transform
from onedva import train as training
from onedva.config import OneDVAConfig
from onedva.model import OneDVA
from onedva.train_config import TrainConfig

QUICK: dict[str, Any] = {
    "frames": ((5, 1.0),),
    "sizes": ((48, 64, 0.5), (32, 32, 0.5)),
    "positions_per_batch": 32,
    "steps": 6,
    "warmup": 5,
    "evaluate_every": 0.0,
    "save_every": 0.0,  # after every step
}


def quick_start(config: OneDVAConfig, clips: Any, *, seed: int = 0) -> OneDVA:
    """A start as good as any where only the run matters: the real one takes a minute."""
    torch.manual_seed(seed)
    model = OneDVA(config)
    assert model.transform is not None
    random_transform(model.transform)
    return model


def quick_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**QUICK, **changes})


def train_apart(
    clips: Path, output: Path, model: OneDVAConfig, *, processes: int = 1, resume: bool = False, **changes: Any
) -> subprocess.Popen[str]:
    """Start the script below in a process of its own, or by torchrun in several."""
    config = output.with_suffix(".model.json")
    config.write_text(model.to_json())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, str(clips), str(output), str(config)]
    command += [json.dumps(changes), *(["--resume"] if resume else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    clips, output, config, changes, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    training.linear_start = quick_start
    training.bf16_is_faster = lambda: False
    training.run(
        clips=clips,
        output=Path(output),
        model=OneDVAConfig.from_json(Path(config).read_text()),
        train=quick_config(**{name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(changes).items()}),
        resume="--resume" in flags,
        quiet=True,
    )
