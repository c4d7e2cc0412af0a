"""What decoding sets for the whole process: right while it lasts, as it was found after it."""

import contextlib
import logging
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from encoded import NOISE, SMOOTH, decode, encode, reason, tiff
from vitscope.errors import ImageReadError
from vitscope.images.decoding import decode_image, open_image
from vitscope.images.pillow_switches import set_for_decoding

WHOLE = encode(np.tile(NOISE, (40, 40, 1)), "JPEG")
HALF = WHOLE[: len(WHOLE) // 2]


@pytest.fixture
def filled_up(monkeypatch):
    """As after another library has told Pillow to fill up half images."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


def is_refused(data: bytes) -> bool:
    try:
        decode_image(data, background=255)
    except ImageReadError:
        return True
    return False


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_half_an_image_is_refused_whatever_another_library_has_set(filled_up, file_format):
    data = encode(np.tile(NOISE, (8, 8, 1)), file_format)
    assert reason(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_in_every_thread_and_as_it_was_after_the_last(filled_up):
    with ThreadPoolExecutor(4) as pool:
        refused = list(pool.map(is_refused, [HALF, WHOLE] * 50))
    assert refused == [True, False] * 50
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_switch_stays_where_another_thread_still_decodes(filled_up):
    with open_image(WHOLE):
        assert is_refused(HALF)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_what_is_set_in_the_meantime_stays(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    with set_for_decoding():
        ImageFile.LOAD_TRUNCATED_IMAGES = True
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_a_process_forked_while_a_thread_decodes_can_decode():
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with set_for_decoding():
            entered.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if child == 0:  # pragma: no cover
        os._exit(0 if is_refused(HALF) and not is_refused(WHOLE) else 1)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


# Warnings


def test_a_warning_shown_once_is_not_shown_again_for_every_image(recwarn):
    warnings.simplefilter("default")
    for _ in range(3):
        decode(WHOLE)
        warnings.warn("shown once", UserWarning, stacklevel=1)
    assert [str(told.message) for told in recwarn] == ["shown once"]


@pytest.mark.parametrize("nested", [False, True])
def test_the_filters_are_those_that_were_found(nested):
    before = list(warnings.filters)
    with warnings.catch_warnings() if nested else contextlib.nullcontext(), set_for_decoding():
        assert warnings.filters != before
    with set_for_decoding(), warnings.catch_warnings():
        pass
    assert warnings.filters == before


def test_threads_leave_no_filter_behind():
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(is_refused, [WHOLE] * 200))
    assert warnings.filters == before


def test_warnings_as_errors_refuse_no_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SMOOTH.shape[0] * SMOOTH.shape[1] - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(encode(SMOOTH, "PNG")), SMOOTH)


# What libraries print


def test_decoders_print_nothing(capfd):
    damaged = bytearray(encode(np.tile(NOISE, (8, 8, 1)), "TIFF", compression="tiff_lzw"))
    for place in range(200, 1200, 3):
        damaged[place] ^= 0xFF
    assert reason(bytes(damaged))
    crowded = bytearray(tiff((2, 2), (8,), 1, bytes(4)))
    at = crowded.index((277).to_bytes(2, "little"))
    crowded[at + 8 : at + 10] = (2048).to_bytes(2, "little")
    logger = logging.getLogger()
    handlers, logger.handlers = logger.handlers, []
    try:
        assert reason(bytes(crowded))
    finally:
        logger.handlers = handlers
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("PIL").handlers == []
