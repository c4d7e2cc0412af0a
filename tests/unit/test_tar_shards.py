"""Images in tar archives: which members they are, and what hostile archives come to."""

import os
import pickle
import tarfile
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest

from containers import make_header, make_tar
from encoded import NOISE, encode
from vitscope.errors import ImageReadError, UsageError
from vitscope.images import stores
from vitscope.images.addresses import image_stem, printable_address, read_image
from vitscope.images.image_set import ImageSet
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images
from vitscope.images.tar_shards import TarMember, list_members

PNG = encode(NOISE, "PNG")
END = bytes(2 * tarfile.BLOCKSIZE)


@pytest.fixture
def shard(tmp_path):
    def write(content: bytes, name: str = "000.tar") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def members(found) -> list[str]:
    return [address.member for address in found]


def refusal(archive: Path) -> str:
    with pytest.raises(UsageError) as caught:
        find_images(archive)
    assert str(caught.value).isprintable()
    return str(caught.value)


# Which members are images


def test_images_are_found_in_the_order_of_the_archive_and_read_by_their_place(shard):
    contents = {"b.png": PNG, "b.json": b"{}", "a/c.JPG": b"second", "a/c.cls": b"7", "a.webp": b""}
    archive = shard(make_tar(contents))
    found = find_images(archive)
    assert members(found) == ["b.png", "a/c.JPG", "a.webp"]
    assert [read_image(address) for address in found] == [PNG, b"second", b""]
    assert printable_address(found[1]) == f"{archive}::a/c.JPG"
    assert [image_stem(address) for address in found] == ["b", "c", "a"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_and_long_names(shard, form):
    deep = "/".join(["d" * 50] * 3) + "/" + "k" * 90 + ".png"
    found = list_members(shard(make_tar({"x.png": b"1", deep: b"22", "y.png": b"3"}, format=form)))
    assert members(found) == ["x.png", deep, "y.png"]
    assert [address.read() for address in found] == [b"1", b"22", b"3"]


def test_parts_of_a_sample_and_hidden_members_are_left_out(shard):
    names = ["k.seg.png", "k.png", "k.png.txt", "k", ".png", "._k.png", ".git/k.png", "./k2.png"]
    found = list_members(shard(make_tar(dict.fromkeys([*names, "__MACOSX/x.png"], PNG))))
    assert members(found) == ["k.png", "./k2.png"]
    assert found.num_left_out == 1


@pytest.mark.parametrize(
    "names",
    [
        ["IMG_2020.01.04.jpg", "IMG_2020.01.05.jpg", "IMG_2021.01.04.jpg", "IMG_3.jpg"],
        ["DSC1.NEF.jpg", "DSC2.NEF.jpg", "DSC3.CR2.JPG"],
        ["my.cat.jpg", "my.dog.jpg", "v1.2.final.png"],
        ["a/x.jpg", "b/x.edited.jpg"],
    ],
)
def test_names_of_photographs_have_dots(shard, names):
    found = list_members(shard(make_tar(dict.fromkeys(names, PNG))))
    assert members(found) == names
    assert found.num_left_out == 0
    assert [image_stem(address) for address in found] == [Path(name).stem for name in names]


def test_what_is_left_out_is_noted_and_goes_with_the_set(shard, tmp_path):
    shard(make_tar(dict.fromkeys(["k.png", "k.seg.png", "m.png", "m.SEG.png"], PNG)))
    shard(make_tar({"n.png": PNG, "n.thumb.jpg": PNG}), "001.tar")
    preprocessing = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    images = ImageSet.from_sources(tmp_path, preprocessing)
    assert members(images.addresses) == ["k.png", "m.png", "n.png"]
    (note,) = images.notes
    assert note.startswith("3 members of the archives are called like images but were left out")
    assert images.select([0]).notes == images.notes
    (tmp_path / "plain.tar").write_bytes(make_tar({"k.png": PNG}))
    assert find_images(tmp_path / "plain.tar").notes == ()


def test_a_name_that_comes_twice_is_two_images(shard):
    found = list_members(shard(make_tar([("k.png", b"1"), ("k.png", b"2")])))
    assert [address.read() for address in found] == [b"1", b"2"]


# What is found where


def test_a_folder_without_images_is_searched_for_archives(tmp_path, shard):
    (tmp_path / "b").mkdir()
    shard(make_tar({"x.png": b"1"}), "b/1.tar")
    shard(make_tar({"y.png": b"2"}), "a.tar")
    shard(b"not read", "a.parquet")
    assert members(find_images(tmp_path)) == ["y.png", "x.png"]
    shard(PNG, "z.png")
    assert find_images(tmp_path) == (tmp_path / "z.png",)


def test_ranges_in_braces_name_many_archives(tmp_path, shard, monkeypatch):
    for number in range(8, 12):
        shard(make_tar({f"{number}.png": b""}), f"{number:03}.tar")
    expected = [f"{number}.png" for number in range(8, 12)]
    monkeypatch.chdir(tmp_path)
    assert members(find_images("{008..011}.tar")) == expected
    assert members(find_images("0{1..1}{0..1}.tar")) == expected[2:]
    assert "'012.tar' does not exist" in refusal("{010..012}.tar")
    for pattern in ("{5..4}.tar", "{0..9999999}.tar"):
        assert "expected a range that goes up" in refusal(pattern)
    shard(make_tar({"itself.png": b""}), "{008..011}.tar")
    assert members(find_images("{008..011}.tar")) == ["itself.png"]


def test_an_archive_comes_once_and_may_stand_in_a_list(tmp_path, shard):
    archive = shard(make_tar({"x.png": b"1"}))
    (tmp_path / "list.txt").write_text("000.tar\nelsewhere.png\n")
    listed = find_images(tmp_path / "list.txt")
    assert members(listed[:1]) == ["x.png"]
    assert listed[1:] == (tmp_path / "elsewhere.png",)
    assert find_images([archive, tmp_path / "." / "000.tar"]) == tuple(list_members(archive))
    assert find_images([*listed[:1], archive]) == listed[:1]


# Addresses


def test_addresses_are_small_and_travel(shard):
    archive = shard(make_tar({f"some/folder/{k:08}.png": b"content" for k in range(1000)}))
    found = list_members(archive)
    sent = pickle.dumps(found)
    assert pickle.loads(sent) == found
    assert len(sent) < 70 * len(found)
    assert pickle.loads(sent)[-1].read() == b"content"


def test_only_the_member_is_read(shard):
    archive = shard(make_tar({"a.png": b"1", "b.png": b"2"}))
    first, second = list_members(archive)
    data = bytearray(archive.read_bytes())
    data[: second.offset] = bytes(second.offset)
    archive.write_bytes(data)
    assert second.read() == b"2"
    assert first.read() == b"\0"


# Hostile archives


def test_names_are_names_and_are_printed_as_such(shard):
    names = [
        "../../up.png",
        "/etc/x.png",
        "two\nlines.png",
        "\x1b[2J.png",
        os.fsdecode(b"\xff.png"),
    ]
    found = list_members(shard(make_tar(dict.fromkeys(names, PNG))))
    assert members(found) == names
    shown = [printable_address(address) for address in found]
    assert all(name.isprintable() and name.isascii() for name in shown)
    assert shown[0].endswith("000.tar::../../up.png")
    assert shown[2].endswith(r"::two\nlines.png")
    assert shown[4].endswith(r"::\xff.png")
    assert [address.read() for address in found] == [PNG] * len(names)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_regular_file_is_a_failure(shard, kind):
    link = make_header("link.png", type=kind, linkname="/etc/passwd")
    folder = make_header("folder.png", type=tarfile.DIRTYPE)
    found = list_members(shard(link + folder + make_tar({"good.png": PNG})))
    assert members(found) == ["link.png", "good.png"]
    with pytest.raises(ImageReadError, match="not a regular file"):
        found[0].read()


def test_a_hard_link_is_the_image_that_it_leads_to(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PNG)
    for name in ("b.png", "c.png"):
        (tmp_path / "in" / name).hardlink_to(tmp_path / "in" / "a.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a.png", "b.png", "c.png"):
            archive.add(tmp_path / "in" / name, arcname=f"./{name}")
        assert [info.islnk() for info in archive.getmembers()] == [False, True, True]
    found = list_members(tmp_path / "x.tar")
    assert [(image_stem(address), address.read()) for address in found] == [(k, PNG) for k in "abc"]


def test_a_hard_link_leads_backwards_and_through_others(shard):
    def link(name: str, to: str) -> bytes:
        return make_header(name, type=tarfile.LNKTYPE, linkname=to)

    def image(content: bytes) -> bytes:
        return make_header("a.png", size=1) + content.ljust(512, b"\0")

    links = link("b.png", "./a.png") + link("c.png", "b.png") + link("self.png", "self.png")
    data = link("early.png", "a.png") + image(b"1") + links + image(b"2")
    found = list_members(shard(data + link("d.png", "a.png") + END))
    read = {image_stem(address): address for address in found if address.size is not None}
    assert [(k, read[k].read()) for k in "bcd"] == [("b", b"1"), ("c", b"1"), ("d", b"2")]
    assert set(read) == {"a", "b", "c", "d"}


def test_headers_for_all_members_do_not_pile_up(shard, monkeypatch):
    seen = []
    take_next = tarfile.TarFile.next

    def count(self):
        member = take_next(self)
        seen.append(len(self.pax_headers))
        return member

    headers = [tarfile.TarInfo.create_pax_global_header({f"key{k}": "x"}) for k in range(50)]
    data = b"".join(header + make_header(f"{k}.png") for k, header in enumerate(headers))
    monkeypatch.setattr(tarfile.TarFile, "next", count)
    assert len(list_members(shard(data + END))) == 50
    assert max(seen) == 1


def test_a_member_with_holes_is_a_failure(shard):
    info = tarfile.TarInfo("holes.png")
    info.size = 4
    info.pax_headers = {"GNU.sparse.size": "9999999999", "GNU.sparse.map": "0,4"}
    data = info.tobuf(tarfile.PAX_FORMAT) + b"1234".ljust(512, b"\0") + make_tar({"x.png": PNG})
    found = list_members(shard(data))
    assert members(found) == ["holes.png", "x.png"]
    with pytest.raises(ImageReadError, match="not a regular file"):
        found[0].read()


@pytest.mark.parametrize("size", [10**6, 2**40, 2**62, 2**63, 2**80])
def test_a_size_beyond_the_archive_is_told_before_anything_is_read(shard, size):
    data = make_tar({"a.png": PNG})[: -tarfile.RECORDSIZE] + make_header("b.png", size=size)
    assert "is not a complete tar archive" in refusal(shard(make_header("b.png", size=size) + END))
    assert "is not a complete tar archive" in refusal(shard(data))


def test_a_member_that_is_too_large_is_a_failure(shard, monkeypatch):
    found = list_members(shard(make_tar({"large.png": bytes(1000), "small.png": PNG})))
    monkeypatch.setattr(stores, "MAX_FILE_BYTES", 999)
    with pytest.raises(ImageReadError, match="too large: 1000 bytes, more than 999"):
        found[0].read()
    assert found[1].read() == PNG


def test_sizes_below_zero_do_not_lead_around_for_ever(shard):
    header = bytearray(make_header("x.png", size=0))
    header[124:136] = b"\xff" * 12  # −1 in base 256; −512 below
    for tail in (b"\xff\xff", b"\xfe\x00", b"\xfc\x00"):
        header[134:136] = tail
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        assert "is not a complete tar archive" in refusal(shard(bytes(header) * 3 + END))


def test_an_endless_header_is_not_read(shard):
    data = make_header("@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=2**20) + bytes(2**20)
    assert "a header of more than 65536 bytes" in refusal(shard(data + make_tar({"x.png": PNG})))
    chain = make_header("p", type=tarfile.XHDTYPE, size=0) * 5000
    assert "a header of more than 65536 bytes" in refusal(shard(chain + make_tar({"x.png": PNG})))


def test_cut_anywhere_an_archive_is_refused_in_one_line(shard):
    whole = make_tar({"a.png": PNG, "b.png": PNG})
    first, second = list_members(shard(whole))
    end = second.offset + tarfile.BLOCKSIZE
    cuts = [0, 1, 511, 512, first.offset + 9, 1023, 1024, 1500, end - 512 + 5, end, end + 100]
    assert all(a < b for a, b in pairwise(cuts))
    for cut in cuts:
        message = refusal(shard(whole[:cut]))
        assert "000.tar is not a complete tar archive" in message
        assert "fetch or write it again, or leave it out" in message
    # One block of zeros is an end, whatever a writer fills the last record with.
    assert len(list_members(shard(whole[: end + 512]))) == 2


def test_damage_in_the_middle_is_not_taken_for_the_end(shard):
    data = bytearray(make_tar({"a.png": PNG, "b.png": PNG, "c.png": PNG}))
    data[1024 + 5] ^= 1  # in the second header, whose checksum no longer fits
    assert "1 members can be read" in refusal(shard(bytes(data)))


@pytest.mark.parametrize("content", [PNG, b"\x1f\x8b" + bytes(600), b"text " * 300, bytes(400)])
def test_what_is_no_archive_is_refused(shard, content):
    assert "is not a complete tar archive, 0 members can be read" in refusal(shard(content))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "x.tar.zst"])
def test_compressed_archives_are_refused_with_what_to_do(shard, name):
    assert "decompress it to a .tar file" in refusal(shard(b"", name))


def test_archives_without_images_are_refused(shard):
    assert "none of the 2 members" in refusal(shard(make_tar({"a.json": b"", "b.seg.png": b""})))
    parts = [f"{key}.{part}.png" for key in "ab" for part in ("left", "right")]
    message = refusal(shard(make_tar(dict.fromkeys(["a.json", *parts], PNG))))
    assert "none of the 5 members" in message
    assert "4 look like parts of samples, such as key.seg.png" in message
    assert "none of the 0 members" in refusal(shard(END))


def test_an_archive_that_changed_is_a_failure(shard):
    archive = shard(make_tar({"a.png": PNG}))
    (address,) = list_members(archive)
    archive.write_bytes(archive.read_bytes()[:600])
    with pytest.raises(ImageReadError, match=r"88 bytes came where \d+ were expected"):
        address.read()
    archive.unlink()
    with pytest.raises(ImageReadError, match="cannot be read: No such file"):
        address.read()


def test_a_pipe_called_archive_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    assert "not a regular file" in refusal(tmp_path / "x.tar")


def test_the_archive_that_tarfile_writes_of_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PNG)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "in", arcname=".")
    (address,) = find_images(tmp_path / "x.tar")
    assert isinstance(address, TarMember)
    assert BytesIO(address.read()).read() == PNG
