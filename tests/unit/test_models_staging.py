"""Where unfinished files lie."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bus.settings import Settings
from schemas.errors import Unprocessable
from workers.models.staging import staging_folder


def test_unfinished_files_lie_below_home(settings: Settings) -> None:
    """Where the first model root is on the same file system, as it is by default."""
    assert staging_folder(settings, "pulls") == settings.path("pulls")


def test_without_a_folder_for_models_there_is_no_work(settings: Settings) -> None:
    """The error says which setting is empty."""
    models = msgspec.structs.replace(settings.models, roots=())
    with pytest.raises(Unprocessable, match=r"models\.roots names no folder"):
        staging_folder(msgspec.structs.replace(settings, models=models), "pulls")


def test_on_another_file_system_they_lie_hidden_in_the_root(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename does not cross file systems."""
    root = tmp_path / "disk"
    models = msgspec.structs.replace(settings.models, roots=(str(root), "models"))
    real = Path.stat

    class OnAnotherDisk:
        st_dev = -1

    monkeypatch.setattr(Path, "stat", lambda path, **more: OnAnotherDisk() if path == root else real(path, **more))
    assert staging_folder(msgspec.structs.replace(settings, models=models), "pulls") == root / ".pulls"
