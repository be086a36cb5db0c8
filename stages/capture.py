"""Stage `capture`: q, k, v and weights of a trained model's attention, into data/real/minilm.safetensors."""

from pathlib import Path

from bench import capture, guard


def main() -> None:
    """Written whole or not at all."""
    guard.die_with_dvc()
    capture.capture(Path("data/real/minilm.safetensors"))


if __name__ == "__main__":
    main()
