"""Build hook: compiles schemas/_scan.c beside its source; without a compiler the same loop runs in Python, slower."""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileScan(BuildHookInterface[Any]):
    """Runs for `pip install .` and for the editable install of `scripts/start`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; say what happened when it does not work, and let the installation go on."""
        folder = Path(self.root) / "schemas"
        target = folder / f"_scan{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [
            *shlex.split(sysconfig.get_config_var("CC") or "cc"),
            *("-O3", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unused-parameter"),
            f"-I{sysconfig.get_path('include')}",
            str(folder / "_scan.c"),
            "-o",
            str(target),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            print(f"schemas/_scan.c was not compiled, the bus runs without it: {reason}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"schemas/{target.name}")
