"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

from vitscope.images.photographs import write_demo_photographs
from vitscope.weights.embedded import embedded_available

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.real_weights
@pytest.mark.skipif(not embedded_available(), reason="the packages of the demo extra are absent")
def test_the_ten_lines_of_python_run(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    photographs = tmp_path / "all"
    write_demo_photographs(photographs)
    (tmp_path / "photos").mkdir()
    for photograph in sorted(photographs.glob("*whole*"))[:24]:
        photograph.rename(tmp_path / "photos" / photograph.name)
    exec(compile(code, str(README), "exec"), {})
    out = capsys.readouterr().out
    assert "a verdict takes 100 images or more" in out  # 24 are quicker
    assert (tmp_path / "results" / "from-python" / "summary.json").is_file()
