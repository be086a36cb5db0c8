"""What a dvc that was killed while it wrote leaves torn is mended before the next one starts.

DVC writes two files in place: its list of readers and writers, without which it refuses to start and which says
nothing once they are gone, and dvc.lock. Every long stage keeps a copy of dvc.lock, whole, as it was when it began.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from bench.files import write_text

LOCK, COPY, BUSY = Path("dvc.lock"), Path(".dvc/tmp/dvc.lock"), Path(".dvc/tmp/rwlock")
_AGAIN_S = 0.5
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def keep(lock: Path = LOCK, copy: Path = COPY) -> None:
    """Called by a stage that dvc runs: it writes nothing meanwhile."""
    if lock.exists() and not _torn_lock(lock):
        write_text(copy, lock.read_text(encoding="utf-8"))


def mend(lock: Path = LOCK, copy: Path = COPY, busy: Path = BUSY) -> list[str]:
    """A line for each file that was mended. One that is being written right now is whole when we look again."""
    said = []
    if _torn_json(busy) and _still(busy, _torn_json):
        busy.unlink(missing_ok=True)
        said.append(f"{busy}: torn by a dvc that was killed; removed")
    if _torn_lock(lock) and copy.exists() and _still(lock, _torn_lock):
        write_text(lock, copy.read_text(encoding="utf-8"))
        said.append(f"{lock}: torn by a dvc that was killed; as it was when the last stage began")
    return said


def _still(path: Path, torn: Callable[[Path], bool]) -> bool:
    time.sleep(_AGAIN_S)
    return torn(path)


def _torn_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _torn_lock(path: Path) -> bool:
    """Cut off somewhere: what is written in blocks of some kilobytes ends within a line."""
    try:
        text = path.read_text(encoding="utf-8")
        return not text.endswith("\n") or not isinstance(yaml.load(text, Loader=_Loader), dict)  # noqa: S506  # a safe loader
    except FileNotFoundError:
        return False
    except (ValueError, yaml.YAMLError):
        return True
