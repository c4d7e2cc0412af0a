"""Explaining many images: what an interruption keeps, and what may be resumed."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from audits import tiny_vit
from images import write_images
from vitscope import Explanation, explain
from vitscope.errors import UsageError
from vitscope.runs.output import Output


@pytest.fixture(scope="module")
def vit():
    return tiny_vit()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images: the second cannot be read, the first uses little of the range."""
    folder = write_images(tmp_path_factory.mktemp("photos"), 4)
    (folder / "0001.png").write_bytes(b"no image")
    with Image.open(folder / "0000.png") as image:
        Image.fromarray(np.asarray(image) // 64 + 100).save(folder / "0000.png")
    return folder


def stop(done, _):
    if done == 3:
        raise KeyboardInterrupt


def test_an_interrupted_run_resumes_to_the_same_result(vit, photos, tmp_path):
    run = partial(explain, vit, photos, heads=True, out=tmp_path / "out")
    expected = explain(vit, photos, heads=True)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(on_progress=stop)
    assert caught.value.__notes__ == ["2 of 4 images are kept: give resume=True to resume"]
    assert [path.name for path in tmp_path.iterdir()] == [".out.run"]
    with pytest.raises(UsageError, match="unfinished run"):
        run()
    with pytest.raises(UsageError, match="heads was True and now is False"):
        run(resume=True, heads=False)
    seen = []
    resumed = run(resume=True, on_progress=lambda *now: seen.append(now))
    assert seen == [(2, 4), (4, 4)]  # the image that cannot be read is tried again
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert repr(resumed.summary) == repr(expected.summary)  # NaN differs
    assert "0000.png" in " ".join(resumed.summary.data.notes)
    assert resumed.failures == expected.failures
    for index in range(3):
        one, other = resumed.read_image(index), expected.read_image(index)
        assert np.array_equal(one["attention"], other["attention"])
        assert np.array_equal(one.heads_by_layer, other.heads_by_layer)
    seen.clear()
    run(resume=True, on_progress=lambda *now: seen.append(now))
    assert seen == []
    with pytest.raises(UsageError, match=r"holds a different result .layer was 1 and now is 0."):
        run(resume=True, layer=0)
    output = Output(tmp_path / "out", overwrite=False, resume=True)
    plan = resumed.provenance["plan"]
    assert output.has(Explanation, plan)
    assert not output.has(Explanation, plan | {"unknown": ["a forward"]})


def test_what_cannot_be_compared_is_not_resumed(vit, photos, tmp_path):
    with pytest.raises(UsageError, match="resume needs `out`"):
        explain(vit, photos, resume=True)
    settings = {"maps": ["rollout", "gradient_input"], "out": tmp_path / "out"}
    with pytest.raises(UsageError, match="resume needs a target by name or a vector"):
        explain(vit, photos, resume=True, target=lambda features, _: features[:, 0], **settings)
