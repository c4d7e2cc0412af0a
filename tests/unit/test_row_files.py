"""Rows in plain files come back as they went in, and are mapped rather than read."""

import numpy as np

from vitscope.files.tensor_files import RowFiles


def test_rows_of_all_batches_come_back_in_order(tmp_path):
    generator = np.random.default_rng(0)
    batches = [
        {
            "term/patches": generator.standard_normal((size, 5)).astype(np.float32),
            "values/cls": generator.standard_normal((size, 3)),
        }
        for size in (4, 1, 7)
    ]
    files = RowFiles(tmp_path)
    for batch in batches:
        files.append(batch)
    rows = files.open_rows()
    for name in batches[0]:
        expected = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(rows[name], expected)
        assert rows[name].dtype == expected.dtype
        assert isinstance(rows[name], np.memmap)


def test_rows_that_are_not_contiguous_are_written_as_they_are_seen(tmp_path):
    rows = np.arange(24.0).reshape(4, 6)[:, ::2]
    files = RowFiles(tmp_path)
    files.append({"rows": rows})
    np.testing.assert_array_equal(files.open_rows()["rows"], rows)
