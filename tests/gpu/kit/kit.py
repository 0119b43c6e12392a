"""Proves the path on GPUs on one GPU in ten minutes, in stages: the first are worth most.

    python tests/gpu/kit/kit.py                  every stage, each a process of its own with a limit
    python tests/gpu/kit/kit.py kernels ipc      these stages
    python tests/gpu/kit/kit.py --rehearse       on a CPU, small, as far as it goes there

The folder is that of the project. $OUT, by default kit-out, gets kit.jsonl with a line per stage and the log
of each. Packages that the machine lacks are in the folders site and site-ray, from the archives of
`make gpu-kit`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OUT = Path(os.environ.get("OUT", "kit-out"))

LIMITS_S = {
    "facts": 20,
    "kernels": 75,
    "ipc": 60,
    "logprob": 40,
    "bench": 90,
    "trainer": 90,
    "engine": 110,
    "loop": 110,
    "launch": 150,
}
"""Stages in the order in which they are run, with the seconds after which a stage is ended."""

ON_CPU = ("facts", "kernels", "trainer", "loop")
"""Stages of a rehearsal. `launch` runs on a CPU too if it is named; the others need CUDA."""

REHEARSAL_S = 600
"""Limit of a stage on a CPU, which may be shared."""


def main() -> None:
    named = [name for name in sys.argv[1:] if name != "--rehearse"]
    rehearses = "--rehearse" in sys.argv
    unknown = sorted(set(named) - set(LIMITS_S))
    if unknown:
        raise SystemExit(f"error: no stage {', '.join(unknown)}; there are {', '.join(LIMITS_S)}")
    OUT.mkdir(parents=True, exist_ok=True)
    stages = named or (ON_CPU if rehearses else tuple(LIMITS_S))
    ends = [run(name, REHEARSAL_S if rehearses else LIMITS_S[name]) for name in stages]
    sys.exit(int(any(ends)))


def run(name: str, limit_s: float) -> bool:
    """Run a stage, print its result and add it to kit.jsonl; returns whether it failed."""
    began, log = time.monotonic(), OUT / f"{name}.log"
    with open(log, "wb") as file:
        command = [sys.executable, str(HERE / "stages.py"), name]
        options: dict[str, Any] = {"env": environment(), "cwd": ROOT, "stdout": file, "stderr": file}
        try:
            code: int | str = subprocess.run(command, timeout=limit_s, check=False, **options).returncode
        except subprocess.TimeoutExpired:
            code = f"over {limit_s:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    facts = [json.loads(line) for line in lines if line.startswith("{")]
    result = {"stage": name, "end": code, "seconds": round(time.monotonic() - began, 1), "facts": facts}
    with open(OUT / "kit.jsonl", "a") as results:
        print(json.dumps(result), file=results)
    print(f"{name:8s} {'passed' if code == 0 else f'failed ({code})':16s} {result['seconds']:6.1f} s")
    for fact in facts:
        print("        ", json.dumps(fact))
    if code != 0:
        print("        ", "\n         ".join(lines[-8:]), f"\n         {log}", flush=True)
    return code != 0


def environment() -> dict[str, str]:
    packages = [ROOT / name for name in ("site", "site-ray") if (ROOT / name).is_dir()]
    paths = [*map(str, packages), str(ROOT), str(ROOT / "tests/support"), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "OUT": str(OUT.resolve()),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # no compiler of CUDA is needed: SGLang has these operations in torch too
        "SGLANG_FORCE_FUSED_OP_BACKEND": os.environ.get("SGLANG_FORCE_FUSED_OP_BACKEND", "torch"),
    }


if __name__ == "__main__":
    main()
