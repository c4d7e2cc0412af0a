"""Which files are images, and in which order they come."""

import os
import sys
from pathlib import Path

import pytest

from encoded import NOISE, encode
from images import touch
from vitscope.cli import main
from vitscope.errors import UsageError
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing
from vitscope.images.search import find_images

PREPROCESSING = Preprocessing(size=(8, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
HOSTILE_NAMES = [
    "-rf.png",
    "<script>alert(1)</script>.png".replace("/", "\u2215"),
    "two\nlines.png",
    "#comment.png",
    " spaced .png",
    "été \U0001f40d.png",
    os.fsdecode(b"not-utf-8-\xff.png"),
    "a'b\"c,d;e.PNG",
]


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


def names(paths, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_is_searched_to_its_depth_in_the_order_of_relative_paths(folder):
    touch(folder, "b.jpg", "a/z.png", "a.webp", "a/b/c.tif", "B.jpg", "a-b/x.gif")
    expected = ["B.jpg", "a-b/x.gif", "a.webp", "a/b/c.tif", "a/z.png", "b.jpg"]
    assert names(find_images([folder]), folder) == expected
    assert find_images([str(folder)]) == find_images([folder])


def test_only_images_of_a_folder_count_and_nothing_hidden(folder):
    wanted = [f"x.{e}" for e in ("JPEG", "Jpg", "avif", "bmp", "jp2", "pgm", "ppm", "tiff", "webp")]
    touch(folder, *wanted, "notes.txt", "x.py", "x", "x.jpg.part", "x.eps", "x.pdf")
    touch(folder, ".hidden.jpg", "._x.jpg", ".git/x.jpg", "a/.thumbs/x.jpg", "jpg", ".jpg")
    assert names(find_images([folder]), folder) == sorted(wanted)


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    touch(tmp_path, ".cache/x.jpg")
    assert names(find_images([tmp_path / ".cache"]), tmp_path) == [".cache/x.jpg"]


def test_a_named_file_is_taken_whatever_it_is_called(folder):
    paths = touch(folder, "image", "image.dat", ".hidden")
    assert find_images(paths) == tuple(paths)


def test_sources_keep_their_order_and_a_path_comes_once(folder, monkeypatch):
    a, b, c = touch(folder, "a.jpg", "b.jpg", "c.jpg")
    assert find_images([c, folder, a]) == (c, a, b)
    monkeypatch.chdir(folder)
    assert find_images(["b.jpg", folder, "./b.jpg"]) == (Path("b.jpg"), a, c)


def test_links_are_followed_but_not_forever(folder, tmp_path):
    touch(folder, "a/x.jpg")
    touch(tmp_path, "elsewhere/y.jpg")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "self").symlink_to(folder / "a" / "self")
    (folder / "there").symlink_to(tmp_path / "elsewhere")
    (folder / "there-too").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    # An image whose link is broken is listed, so that it is counted among the failures.
    assert names(find_images([folder]), folder) == ["a/x.jpg", "gone.jpg", "there/y.jpg"]


def test_hostile_names_are_found_and_read(folder):
    for name in HOSTILE_NAMES:
        (folder / name).write_bytes(encode(NOISE, "PNG"))
    images = ImageSet.from_sources([folder], PREPROCESSING)
    assert names(images.addresses, folder) == sorted(HOSTILE_NAMES)
    for num_workers in (0, 1):
        (batch,) = iter_batches(images, batch_size=99, num_workers=num_workers)
        assert batch.indices == list(range(len(HOSTILE_NAMES)))


def test_a_text_file_lists_paths_relative_to_itself(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listing = folder / "list.TXT"
    lines = [
        "\ufeffb.jpg",
        "",
        "# a comment",
        "  # another",
        "   ",
        "sub/a.jpg\r",
        str(tmp_path / "absolute.jpg"),
        " leading and trailing .jpg ",
        "b.jpg",
        "./#1.jpg",
    ]
    listing.write_bytes("\n".join(lines).encode() + b"\nnot-utf-8-\xff.jpg")
    expected = [
        folder / "b.jpg",
        folder / "sub/a.jpg",
        tmp_path / "absolute.jpg",
        folder / " leading and trailing .jpg ",
        folder / "#1.jpg",
        folder / os.fsdecode(b"not-utf-8-\xff.jpg"),
    ]
    found = find_images([listing])
    assert found == tuple(expected)
    assert find_images(found) is found  # though none of them is there
    assert find_images(["images/list.TXT"])[0] == Path("images/b.jpg")


def test_wildcards_stand_for_files_unless_a_file_has_that_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    touch(folder, "w/b.jpg", "w/a.jpg", "w/sub/c.jpg", "w/[a].jpg", "w/d.txt")
    assert find_images(["w/?.jpg"]) == (Path("w/a.jpg"), Path("w/b.jpg"))
    assert find_images(["w/**/c.jpg"]) == (Path("w/sub/c.jpg"),)
    assert find_images("w/[a].jpg") == (Path("w/[a].jpg"),)
    with pytest.raises(UsageError, match=r"'w/\*.png' does not exist"):
        find_images(["w/*.png"])


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([], "no images were given"),
        (["."], "expected files ending in .apng .avif"),
        (["missing"], "'missing' does not exist: give a folder"),
        (["null\0byte"], "does not exist"),
        ([""], "'' does not exist"),
        (["x" * 5000], "cannot be searched for images: File name too long"),
        (["empty.txt"], "'empty.txt' names no image: expected one path per line"),
        (["x\n<b>\udcff"], r"'x\n<b>\udcff' does not exist"),
    ],
)
def test_sources_without_images_are_refused_in_one_line(folder, monkeypatch, sources, expected):
    monkeypatch.chdir(folder)
    (folder / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(UsageError) as caught:
        find_images(sources)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_name_of_a_command_is_checked_before_weights_are_looked_for(
    folder, monkeypatch, capsys
):
    monkeypatch.setattr("vitscope.cli.each_model.check_weights", pytest.fail)
    touch(folder, "a.png")
    command = ["audit", *[str(folder)] * 200, "nowhere", "-m", "dinov2-small"]
    assert main([*command, "-o", str(folder / "out")]) == 2
    assert "'nowhere' does not exist" in capsys.readouterr().err


def test_a_folder_that_may_not_be_searched_is_named(folder, monkeypatch):
    touch(folder, "a/x.jpg", "b/x.jpg")

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"images' cannot be searched.*Permission denied"):
        find_images([folder])


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: (path.touch(), os.truncate(path, 2**28 + 1)), "too large: 268435457"),
    ],
    ids=["pipe", "device", "sparse"],
)
def test_a_text_file_that_never_ends_is_refused(folder, make, reason):
    make(folder / "list.txt")
    with pytest.raises(UsageError, match=rf"list.txt' cannot be searched for images: {reason}"):
        find_images(folder / "list.txt")


def test_what_cannot_be_searched_is_named_and_counted_and_the_rest_goes_on(folder, monkeypatch):
    (found,) = touch(folder, "b/x.png")
    found.write_bytes(encode(NOISE, "PNG"))
    touch(folder, "a.tar/x.png", "c/x.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("a.tar"):  # The superuser may search whatever it forbids.
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = ImageSet.from_sources([folder], PREPROCESSING)
    assert names(images.addresses, folder) == ["a.tar", "b/x.png", "c/x.jpg"]
    (batch,) = iter_batches(images, batch_size=9)
    assert [(failed.index, failed.reason) for failed in batch.failures] == [
        (0, "cannot be read: Permission denied"),
        (2, "the file is empty"),
    ]
    for path in (found, folder / "c" / "x.jpg"):
        path.unlink()
    with pytest.raises(UsageError, match=r"a.tar' cannot be searched.*Permission denied"):
        find_images([folder])


def test_a_path_too_long_for_the_system_is_one_failure(folder):
    touch(folder, "x.png")
    home, name = os.open(folder, os.O_RDONLY), "d" * 250
    here = os.dup(home)
    for _ in range(20):  # 5,000 bytes in all; a path may have 4,096
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    os.close(home)
    images = ImageSet.from_sources([folder], PREPROCESSING)
    assert images.addresses[-1] == folder / "x.png"
    (batch,) = iter_batches(images, batch_size=9)
    assert [failed.reason for failed in batch.failures] == [
        "cannot be read: File name too long",
        "the file is empty",
    ]
    assert images.name_image(0).startswith(f"{folder}/dddd")


def test_what_systems_leave_beside_images_is_passed_over(folder):
    left = ["._x.jpg", "__MACOSX/x.jpg", "@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/y.png"]
    touch(folder, ".DS_Store", "Thumbs.db", "desktop.ini", "x.jpg", "below/.DS_Store", *left)
    assert names(find_images([folder]), folder) == ["x.jpg"]


def test_a_pipe_put_in_the_place_of_a_image_is_not_waited_for(folder, monkeypatch):
    (path,) = touch(folder, "x.png")
    found = path.stat()
    path.unlink()
    os.mkfifo(path)
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda p, **o: found if p == path else stat(p, **o))
    images = ImageSet((path,), PREPROCESSING)
    (batch,) = iter_batches(images, batch_size=1)
    assert [failed.reason for failed in batch.failures] == ["not a regular file"]


@pytest.mark.parametrize("std", [(0.5, 0.0, 0.5), (0.5, -1.0, 0.5), (0.5, 0.5, float("nan"))])
def test_pixels_are_not_divided_by_nothing(std):
    with pytest.raises(UsageError, match="expected three numbers above 0"):
        Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=std)
