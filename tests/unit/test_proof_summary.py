"""The worst errors of a result, over the images that were verified."""

import math
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscope.results.summary import summarize_errors

NAN = math.nan
errors = st.one_of(st.just(NAN), st.floats(0, 1e-4))


def write(folder, *layers):
    paths = [folder / f"{i}.parquet" for i in range(len(layers))]
    for path, columns in zip(paths, layers, strict=True):
        pq.write_table(pa.table(columns), path)
    return paths


def test_the_worst_of_the_verified_and_how_many_they_are(tmp_path):
    found = summarize_errors(
        write(
            tmp_path,
            {"balance_error": [3e-6, 1e-6, 2e-6], "block_error": [1e-7, 5e-6, 2e-6]},
            {
                "balance_error": [4e-6, NAN, 1e-6],
                "block_error": [1e-6, NAN, 3e-6],
                "embedding_error": [2e-6, NAN, 0.0],
            },
        ),
        1e-4,
    )
    assert (found.max_balance_error, found.max_block_error) == (4e-6, 5e-6)
    assert (found.max_embedding_error, found.num_verified) == (2e-6, 2)
    assert math.isnan(found.max_residual_error)
    assert found.tolerance == 1e-4


def test_where_nothing_is_verified_there_is_no_error_to_tell(tmp_path):
    found = summarize_errors(write(tmp_path, {"balance_error": [NAN, NAN]}), 1e-4)
    assert found.num_verified == 0
    assert math.isnan(found.max_balance_error)


@given(st.lists(errors, min_size=1, max_size=6), st.randoms())
def test_the_order_of_images_does_not_matter(tmp_path_factory, column, random):
    folder = tmp_path_factory.mktemp("errors")
    shuffled = random.sample(column, len(column))
    found = [
        summarize_errors(write(folder, {"balance_error": c}), 1e-4) for c in (column, shuffled)
    ]
    assert asdict(found[0]) == pytest.approx(asdict(found[1]), rel=0, abs=0, nan_ok=True)
    assert found[0].num_verified == sum(not math.isnan(error) for error in column)
