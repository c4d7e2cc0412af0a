"""Tables and shards written together, put together, and gone through side by side."""

from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.errors import ResultError
from vitscope.results.records import TableWriter, replace_columns

ABOVE, LEVEL = ("above",), ("level",)


def write_table(path, sizes, group_rows=1):
    with closing(TableWriter(path, group_rows)) as writer:
        start = 0
        for size in sizes:
            values = np.arange(start, start + size, dtype=float)
            writer.write(pa.table({"image_id": list(map(str, values)), "level": values}))
            start += size
    return start


def columns_of(sizes):
    """What is known of each shard: a new number and a better one, in the order of the rows."""
    start = 0
    for size in sizes:
        rows = torch.arange(start, start + size)
        yield {ABOVE: rows + 0.5, LEVEL: -rows.double()}
        start += size


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), group_rows=st.integers(1, 30))
def test_new_columns_meet_their_rows_however_shards_lie_in_row_groups(
    tmp_path_factory, sizes, group_rows
):
    path = tmp_path_factory.mktemp("tables") / "images.parquet"
    n = write_table(path, sizes, group_rows)
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    assert all(rows >= group_rows for rows in groups[:-1])
    assert max(groups) < group_rows + max(sizes)
    replace_columns(path, columns_of(sizes))
    table = pq.read_table(path)
    assert table.column_names == ["image_id", "level", "above"]
    assert table["image_id"].to_pylist() == [str(float(k)) for k in range(n)]
    assert table["level"].to_pylist() == [-k for k in range(n)]
    assert table["above"].to_pylist() == [k + 0.5 for k in range(n)]


@pytest.mark.parametrize("shards", [[4, 4], [4, 4, 4, 1], [4, 5, 3], [12, 4]], ids=str)
def test_shards_of_other_images_are_refused_and_the_table_stays(tmp_path, shards):
    path = tmp_path / "images.parquet"
    write_table(path, [4, 4, 4])
    before = path.read_bytes()
    with pytest.raises(ResultError, match="does not match its features"):
        replace_columns(path, columns_of(shards))
    assert path.read_bytes() == before
