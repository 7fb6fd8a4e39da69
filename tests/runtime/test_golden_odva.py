"""A file that version 2 of the format wrote once is read for ever, to the same bits. data/make_golden.py made it."""

import json
import sys
from pathlib import Path

import pytest

from onedva_runtime.container import load_packets

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DATA))
    from make_golden import facts  # type: ignore[import-not-found]

    yield facts
    sys.modules.pop("make_golden")


def test_the_golden_file_decodes_to_the_same_tokens(facts) -> None:
    assert (DATA / "golden.odva").stat().st_size < 30_000
    file = load_packets(DATA / "golden.odva")
    header = file.header
    assert (header.width, header.height, header.colour, header.step) == (176, 100, "golden", 0.25)
    assert (str(header.fps), str(header.time_base)) == ("24", "1/24000")
    assert header.model == "7a2456ee6dc57e16954a11c3dfd949515caef19caec42c85b4cdd2ebf8509ef2"
    assert file.frames == 26 and [packet.is_key for packet in file.packets] == [True, True, False, False, True, True]
    assert [facts(packet) for packet in file.packets] == json.loads((DATA / "golden.json").read_text())
