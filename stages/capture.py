"""Stage `capture`: q, k, v and weights of a trained model's attention, into data/real/minilm.safetensors."""

import sys
from pathlib import Path

from attn.contract import Unsupported
from bench import capture, guard, stage_log
from bench.jobs import REAL


def main() -> int:
    """Written whole or not at all; exit 1, in a sentence, where the model is not installed."""
    stage_log.note()
    guard.die_with_dvc()
    try:
        capture.capture(Path(REAL))
    except Unsupported as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
