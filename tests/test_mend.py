"""What a dvc that was killed within a write leaves is mended, and nothing else is touched."""

from pathlib import Path

import pytest

from bench import mend
from bench.__main__ import main

WHOLE = "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: p\n      md5: 0123\n  b:\n    cmd: y\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root, as far as this is concerned."""
    (tmp_path / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mend, "_AGAIN_S", 0.01)
    return tmp_path


def test_whole_files_are_left_alone(folder: Path) -> None:
    (folder / "dvc.lock").write_text(WHOLE, encoding="utf-8")
    (folder / ".dvc/tmp/rwlock").write_text('{"write": {}, "read": {}}', encoding="utf-8")
    mend.keep()
    (folder / "dvc.lock").write_text(WHOLE + "  c:\n    cmd: z\n", encoding="utf-8")
    assert mend.mend() == []
    assert "cmd: z" in (folder / "dvc.lock").read_text(encoding="utf-8")
    assert (folder / ".dvc/tmp/rwlock").exists()


def test_nothing_there_is_nothing_torn(folder: Path) -> None:
    mend.keep()
    assert mend.mend() == []
    assert not (folder / ".scratch").exists()


@pytest.mark.parametrize("kept", [0, 3, 40, len(WHOLE) - 1])
def test_a_torn_lock_is_as_it_was_when_the_last_stage_began(
    kept: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "dvc.lock").write_text(WHOLE, encoding="utf-8")
    mend.keep()
    (folder / "dvc.lock").write_text(WHOLE[:kept], encoding="utf-8")
    mend.keep()  # of what is torn, no copy is kept
    assert main(["validate"]) == 0
    assert "dvc.lock: torn by a dvc that was killed; as it was" in capsys.readouterr().out
    assert (folder / "dvc.lock").read_text(encoding="utf-8") == WHOLE


def test_a_torn_lock_of_which_there_is_no_copy_stays_as_it_is(folder: Path) -> None:
    (folder / "dvc.lock").write_text(WHOLE[:9], encoding="utf-8")
    assert mend.mend() == []
    assert (folder / "dvc.lock").read_text(encoding="utf-8") == WHOLE[:9]


@pytest.mark.parametrize("text", ["", '{"write": {"a'])
def test_a_torn_list_of_readers_and_writers_is_removed(text: str, folder: Path) -> None:
    (folder / ".dvc/tmp/rwlock").write_text(text, encoding="utf-8")
    assert mend.mend() == [".dvc/tmp/rwlock: torn by a dvc that was killed; removed"]
    assert not (folder / ".dvc/tmp/rwlock").exists()
