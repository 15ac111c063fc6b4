from __future__ import annotations

import pytest
import torch

from mappers import memory
from mappers.memory import free_memory


@pytest.mark.parametrize(
    ("limit", "used", "files", "free"),
    [
        ("max", 0, 0, 2048),
        ("4096", 3072, 0, 1024),
        ("4096", 5000, 0, 0),
        ("999999", 0, 0, 2048),
        ("4096", 4096, 600, 1200),
    ],
)
def test_free_is_what_both_the_machine_and_the_control_group_leave(tmp_path, monkeypatch, limit, used, files, free):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       2 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {files}\nactive_file {files}\nslab 3\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == free
