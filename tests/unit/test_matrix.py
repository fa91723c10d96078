"""The matrix's columns exist, and its cells are measured, refused with a reason, or absent with one."""

import pytest
import torch

from bench.parity.cells import CELLS, ROWS, Bench
from bench.parity.matrix import REMARKS, TABLES, Notes, measured

ROW = {row.title: row for row in ROWS}


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(ROW["SD 3.5"], tmp_path_factory.mktemp("matrix"))


def test_every_column_and_remark_is_there() -> None:
    shown = [title for titles in TABLES.values() for title in titles]
    assert sorted(shown) == sorted(CELLS)
    assert all(row in ROW and column in CELLS for row, column in REMARKS)


def test_a_cell_is_a_number_or_a_reason(flow: Bench) -> None:
    notes = Notes([])
    with torch.no_grad():
        cells = [measured(flow, title, notes) for title in ("peft", "attn_procs", "ControlNet, diffusers")]
    assert 0 < float(cells[0]) < 1e-5 < flow.size
    assert cells[1:] == ["–<sup>1</sup>", "refused<sup>2</sup>"]
    assert "wrote U-Nets alone" in notes.texts[0] and "needs a U-Net" in notes.texts[1]
