"""Makes the file that the encoder runs, once per model: `python -m workers.memory.vectors.prepare FOLDER FILE`.

A process of its own, because building takes ten times the memory that running does. Afterwards the file is complete or
not there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from workers.memory.vectors.bert import Floats, UnsupportedModel
from workers.memory.vectors.graph import build_graph
from workers.memory.vectors.onnx_model import OnnxModel

# Cosine between the vectors of the quantised and of the original graph, below which the original is kept. On processors
# with 8-bit dot products it is 0.98 and more for every text below; older ones may overflow 16 bits on the way.
_MIN_COSINE: Final = 0.95

# Exit status for a model of another build (EX_DATAERR of sysexits.h).
EX_UNSUPPORTED: Final = 65

_PROBES: Final = (
    "Where did I leave the keys?",
    "On 3 May Ana said that her train to Lisbon leaves at 07:40 from platform 4.",
    "The heating comes on at six, except on Sundays, when nobody is up before nine.",
    "def area(radius): return 3.14159 * radius ** 2",
    "Yes.",
    "Buy milk, eggs, two lemons and the bread with seeds; ask the baker whether the rye one is back. " * 4,
)


def prepare(folder: Path, file: Path) -> None:
    """Write the graph of the model in `folder` to `file`, whole or not at all. Raises UnsupportedModel."""
    quantised = build_graph(folder).SerializeToString()
    original = build_graph(folder, is_quantised=False)
    least = float(np.min(np.sum(_probe(quantised, folder) * _probe(original.SerializeToString(), folder), axis=1)))
    if least < _MIN_COSINE:
        sys.stderr.write(
            f"8-bit weights keep a cosine of {least:.3f} only on this processor: the model stays as it is\n"
        )
        quantised = original.SerializeToString()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = file.with_suffix(f".{os.getpid()}.new")
    try:
        with new.open("wb") as stream:
            stream.write(quantised)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _probe(model: bytes, folder: Path) -> Floats:
    return OnnxModel(model, folder, threads=1).encode(_PROBES)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare one model; status EX_UNSUPPORTED with a reason on stderr when that cannot be done."""
    folder, file = (Path(word) for word in (sys.argv[1:] if argv is None else argv))
    try:
        prepare(folder, file)
    except UnsupportedModel as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_UNSUPPORTED) from error


if __name__ == "__main__":
    main()
