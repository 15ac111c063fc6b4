"""One server for one data directory, whichever way the first one ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.data_dir import owned
from server.settings import ConfigurationError

HOLDER = """
import sys
from pathlib import Path
from server.data_dir import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_server_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigurationError, match=f"in use by another server .process {first.pid}."),
            owned(tmp_path),
        ):
            pass
        first.kill()
        first.wait()
        with owned(tmp_path) as folder:
            assert folder == tmp_path


def test_it_is_free_again_afterwards(tmp_path: Path) -> None:
    with owned(tmp_path / "data"):
        pass
    with owned(tmp_path / "data") as folder:
        assert folder.stat().st_mode & 0o077 == 0
        assert (folder / "lock").read_text() == str(os.getpid())


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="data_dir: cannot write"), owned(tmp_path / "file" / "data"):
        pass
