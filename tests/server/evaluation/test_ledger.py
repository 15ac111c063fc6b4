import pytest

from server.evaluation.ledger import Ledger

KEY = {"experiment": "switch", "seed": 0, "weights": ["ab"], "scale": {"held_out": 3}}


def test_figures_are_found_by_their_whole_key(tmp_path):
    ledger = Ledger(tmp_path / "cells")
    assert ledger.find(KEY) is None
    ledger.keep(KEY, {"right": "101"})
    assert Ledger(tmp_path / "cells").find(KEY) == {"right": "101"}
    for changes in ({"seed": 1}, {"weights": ["ac"]}, {"scale": {"held_out": 4}}):
        assert ledger.find(KEY | changes) is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": {}, "figures": {"right": "111"}}'])
def test_a_damaged_file_is_measured_again(tmp_path, damage):
    ledger = Ledger(tmp_path)
    ledger.keep(KEY, {"right": "101"})
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert ledger.find(KEY) is None


def test_what_is_no_number_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Ledger(tmp_path).keep(KEY, {"kl": float("nan")})
    assert Ledger(tmp_path).find(KEY) is None
