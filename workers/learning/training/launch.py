"""Starts one training as several processes with torchrun: `python -m workers.learning.training.launch --folder JOB ...`.

The processes find each other at a file and speak over loopback (CPU) or NCCL (GPU). It ends with the service, and what it
started ends with it. On SIGTERM torchrun passes it on and waits for them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bus.parent import die_with_parent
from workers.learning.training.spec import MEETING


def main(argv: Sequence[str] | None = None) -> None:
    """Run them to their end."""
    parser = argparse.ArgumentParser(prog="python -m workers.learning.training.launch", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the job")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--processes", type=int, required=True, help="how many")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    from torch.distributed import run

    with tempfile.TemporaryDirectory(prefix=MEETING, dir=args.folder) as meeting:
        run.main(
            [
                f"--nproc-per-node={args.processes}",
                "--nnodes=1",
                # At a file: no port is opened, on no interface.
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={meeting}/launcher",
                "--rdzv-conf=store_type=file",
                f"--rdzv-id={os.getpid()}",
                "--max-restarts=0",
                "--local-addr=127.0.0.1",
                "-m",
                "workers.learning.training.trainer",
                f"--folder={args.folder}",
                f"--parent={os.getpid()}",
                # Written by torchrun, for each process its own.
                "--rank=${local_rank}",
                f"--meeting={meeting}/processes",
            ]
        )


if __name__ == "__main__":
    main()
