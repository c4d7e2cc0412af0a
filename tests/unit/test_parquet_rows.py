"""Images in Parquet files: which column they are, and what hostile files come to."""

import os
import pickle
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import make_image_column, write_parquet
from encoded import NOISE, encode
from vitscope.errors import ImageReadError, UsageError
from vitscope.images import parquet_rows, stores
from vitscope.images.addresses import printable_address, read_image
from vitscope.images.parquet_rows import list_rows
from vitscope.images.search import find_images

PNG = encode(NOISE, "PNG")
TEN = [PNG + bytes([row]) for row in range(10)]


def refusal(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        find_images(file)
    assert str(caught.value).isprintable()
    return str(caught.value)


def contents(file: Path) -> list[bytes]:
    return [read_image(address) for address in find_images(file)]


# Columns


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("row_group_size", [1, 3, 10])
def test_a_column_of_bytes_is_read_row_by_row(tmp_path, kind, row_group_size):
    columns = {"label": list(range(10)), "jpg": pa.array(TEN, kind), "other": pa.array(TEN)}
    file = write_parquet(tmp_path / "x.parquet", columns, row_group_size=row_group_size)
    found = find_images(file)
    assert [address.read() for address in found] == TEN
    assert [address.read() for address in reversed(found)] == TEN[::-1]
    assert [printable_address(address) for address in found[::9]] == [f"{file}::0", f"{file}::9"]


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_the_struct_of_hugging_faces_datasets(tmp_path, use_dictionary):
    columns = {"label": list(range(10)), "image": make_image_column(TEN)}
    options = {"row_group_size": 4, "use_dictionary": use_dictionary}
    assert contents(write_parquet(tmp_path / "x.parquet", columns, **options)) == TEN


def test_the_one_column_of_bytes_is_taken_whatever_it_is_called(tmp_path):
    columns = {"text": ["a"] * 10, "Bild": pa.array(TEN), "n": list(range(10))}
    assert contents(write_parquet(tmp_path / "x.parquet", columns)) == TEN


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"a": pa.array(TEN), "b": pa.array(TEN)}, "found: a (binary), b (binary)"),
        ({"text": ["a"], "other": ["path.png"]}, "found: text (string), other (string)"),
        (
            {"two\nlines": pa.array(TEN), "\x1b[2J": pa.array(TEN)},
            r"found: two\nlines (binary), \x1b[2J (binary)",
        ),
        (
            {f"property {k}": [k] for k in range(30)} | {"b": ["x"], "image": ["path.png"]},
            "found: image (string), property 0 (int64), property 1 (int64), property 2 (int64), "
            "property 3 (int64) and 27 more): rename",
        ),
    ],
)
def test_an_unclear_column_is_asked_for(tmp_path, columns, found):
    file = write_parquet(tmp_path / "x.parquet", columns)
    assert found in refusal(file)
    assert "rename the column of images" in refusal(file)


@pytest.mark.parametrize(
    ("column", "kind"),
    [(["path.png"], "string"), ([[{"bytes": PNG}]], "list<element: struct<bytes: binary>>")],
)
def test_a_column_that_holds_no_bytes_is_told_by_its_type(tmp_path, column, kind):
    file = write_parquet(tmp_path / "x.parquet", {"image": pa.array(column)})
    assert f"found: image ({kind})): rename the column of images" in refusal(file)


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int32(), pa.binary()),
        pa.binary(len(PNG)),
        pa.binary_view(),
        pa.struct([("bytes", pa.dictionary(pa.int32(), pa.binary()))]),
    ],
    ids=str,
)
def test_every_kind_of_bytes_is_read(tmp_path, kind):
    other = bytes(len(PNG))
    rows = [PNG, other, PNG, PNG, other]
    values = [{"bytes": row} for row in rows] if pa.types.is_struct(kind) else rows
    file = write_parquet(
        tmp_path / "x.parquet", {"image": pa.array(values, kind)}, row_group_size=2
    )
    assert contents(file) == rows


def test_digests_beside_the_images_are_no_images(tmp_path):
    digests = pa.array([bytes(16)] * 10, pa.binary(16))
    file = write_parquet(tmp_path / "x.parquet", {"md5": digests, "photo": pa.array(TEN)})
    assert contents(file) == TEN


def test_a_column_of_another_kind_does_not_hide_the_images(tmp_path):
    columns = {"image": ["path.png"] * 10, "image_bytes": pa.array(TEN), "mask": pa.array(TEN)}
    assert contents(write_parquet(tmp_path / "x.parquet", columns)) == TEN


def test_files_of_a_folder_come_in_the_order_of_their_paths(tmp_path):
    write_parquet(tmp_path / "b.parquet", {"image": pa.array(TEN[5:])})
    write_parquet(tmp_path / "a.parquet", {"image": pa.array(TEN[:5])})
    assert contents(tmp_path) == TEN


# Reading


def test_only_the_column_is_read_and_one_row_group_is_kept(tmp_path, monkeypatch):
    columns = {"image": make_image_column(TEN), "other": pa.array(TEN)}
    found = list_rows(write_parquet(tmp_path / "x.parquet", columns, row_group_size=5))
    asked = []
    iter_batches = pq.ParquetFile.iter_batches

    def read(self, batch_size, row_groups, columns):
        asked.append((row_groups, columns))
        return iter_batches(self, batch_size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", read)
    assert [address.read() for address in found] == TEN
    assert asked == [([0], ["image.bytes"]), ([1], ["image.bytes"])]
    assert parquet_rows._read_group.cache_info().currsize == 1


def test_what_was_kept_is_not_given_out_for_a_file_that_was_written_again(tmp_path):
    file = tmp_path / "x.parquet"
    for byte in (b"a", b"b"):
        write_parquet(file, {"image": pa.array([byte * 9, byte * 8])})
        found = list_rows(file)
        assert [address.read() for address in found] == [byte * 9, byte * 8]
    # An address of before is of what lies there now, as that of any other file is.
    write_parquet(file, {"image": pa.array([b"c" * 9])})
    assert found[0].read() == b"c" * 9
    with pytest.raises(ImageReadError, match="cannot be read: "):
        found[1].read()


def test_a_file_that_took_the_place_of_another_of_its_age_and_size_is_read(tmp_path):
    for name, byte in (("x.parquet", b"a"), ("y.parquet", b"b")):
        write_parquet(tmp_path / name, {"image": pa.array([byte * 9])})
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    (found,) = list_rows(tmp_path / "x.parquet")
    assert found.read() == b"a" * 9
    (tmp_path / "y.parquet").replace(tmp_path / "x.parquet")
    assert found.read() == b"b" * 9


def test_addresses_are_small_and_travel(tmp_path):
    columns = {"image": make_image_column([PNG] * 1000)}
    found = list_rows(write_parquet(tmp_path / "x.parquet", columns, row_group_size=100))
    sent = pickle.dumps(found)
    assert pickle.loads(sent) == found
    assert len(sent) < 30 * len(found)
    assert pickle.loads(sent)[-1].read() == PNG


def test_rows_without_bytes_are_failures(tmp_path):
    structs = make_image_column([PNG, None, PNG])
    nulls = pa.array([PNG, None, PNG])
    both = pa.array([{"bytes": PNG}, None, {"bytes": PNG}], pa.struct([("bytes", pa.binary())]))
    for column in (structs, nulls, both):
        found = list_rows(write_parquet(tmp_path / "x.parquet", {"image": column}))
        assert [found[0].read(), found[2].read()] == [PNG, PNG]
        with pytest.raises(ImageReadError, match="its row has no bytes"):
            found[1].read()


def test_a_image_that_is_too_large_is_a_failure(tmp_path, monkeypatch):
    found = list_rows(write_parquet(tmp_path / "x.parquet", {"image": pa.array([b"1", PNG])}))
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", len(PNG) - 1)
    assert found[0].read() == b"1"
    with pytest.raises(ImageReadError, match=f"too large: {len(PNG)} bytes"):
        found[1].read()


# Hostile files


def test_a_file_without_rows_is_refused(tmp_path):
    empty = write_parquet(tmp_path / "x.parquet", {"image": pa.array([], pa.binary())})
    assert "has 0 rows" in refusal(empty)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(20) + b"PAR1", PNG])
def test_what_is_no_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    assert "is not a complete Parquet file" in refusal(tmp_path / "x.parquet")


def test_cut_anywhere_a_file_is_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", {"image": pa.array(TEN)})
    whole = file.read_bytes()
    for cut in range(0, len(whole), 97):
        file.write_bytes(whole[:cut])
        assert "is not a complete Parquet file" in refusal(file)


def test_damaged_pages_are_failures_of_their_rows(tmp_path):
    columns = {"image": pa.array(TEN, pa.binary())}
    options = {"row_group_size": 5, "use_dictionary": False, "compression": "snappy"}
    file = write_parquet(tmp_path / "x.parquet", columns, **options)
    found = list_rows(file)
    data = bytearray(file.read_bytes())
    data[4:60] = b"\xff" * 56  # the header and the beginning of the first page
    file.write_bytes(data)
    for address in found[:5]:
        with pytest.raises(ImageReadError, match="cannot be read: ") as caught:
            address.read()
        assert str(caught.value).isprintable()
    assert [address.read() for address in found[5:]] == TEN[5:]


def test_a_row_group_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "x.parquet", {"image": make_image_column(TEN)})
    monkeypatch.setattr(parquet_rows, "_MAX_GROUP_BYTES", sum(map(len, TEN)) - 1)
    assert "row group 0 of" in refusal(file)
    assert "write the file with row groups of fewer rows" in refusal(file)


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_footer_that_claims_less_than_there_is_does_not_help(
    tmp_path, monkeypatch, use_dictionary
):
    columns = {"image": pa.array([bytes(1000)] * 100)}
    options = {"use_dictionary": use_dictionary, "compression": "zstd"}
    found = list_rows(write_parquet(tmp_path / "x.parquet", columns, **options))
    decoded = []
    iter_column = parquet_rows._iter_column

    def count(group):
        for data in iter_column(group):
            decoded.append(data)
            yield data

    # The bound is set behind the footer's claim, as if that had been believed.
    monkeypatch.setattr(parquet_rows, "_MAX_GROUP_BYTES", 10_000)
    monkeypatch.setattr(parquet_rows, "_iter_column", count)
    with pytest.raises(ImageReadError, match="its row group has more than 10000 bytes"):
        found[0].read()
    assert len(decoded) == 11


def test_more_rows_than_bytes_are_refused(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", {"image": pa.array([PNG] * 100_000)})
    assert file.stat().st_size < 100_000
    assert "has 100000 rows in" in refusal(file)


def test_one_large_image_in_every_row_does_not_fill_the_memory(tmp_path):
    large = bytes(2**18)
    columns = {"image": make_image_column([large] * 500)}
    file = write_parquet(tmp_path / "x.parquet", columns, compression="none")
    found = list_rows(file)
    tracemalloc.start()
    assert len(found[-1].read()) == len(large)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 125 MiB written out; kept are one of them and 500 references.
    assert kept < 2 * len(large)
    assert peak < 10 * len(large)


def test_a_file_that_went_is_a_failure(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", {"image": pa.array(TEN)})
    found = list_rows(file)
    file.unlink()
    with pytest.raises(ImageReadError, match="cannot be read: No such file"):
        found[0].read()
