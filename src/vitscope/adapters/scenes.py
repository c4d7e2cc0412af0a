"""The model of planted scenes, `scenes:v1`, that `vitscope demo --scenes` audits."""

from importlib.resources import as_file, files

from safetensors.torch import load_file

from vitscope.adapters.timm import make_timm_adapter
from vitscope.errors import UnknownModelError
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.base import ViTAdapter

_NAME, _SIZE = "v1", 32


def load_scenes(name: str) -> ViTAdapter:
    """Load V1 of examples/study: trained on planted scenes, with 2 registers."""
    if name != _NAME:
        raise UnknownModelError(f"unknown model scenes:{name}: expected scenes:{_NAME}")
    from timm.models.vision_transformer import VisionTransformer  # here: importing it is slow

    module = VisionTransformer(
        img_size=_SIZE,
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=0,
        reg_tokens=2,
    )
    with as_file(files("vitscope.weights") / "scenes_v1.safetensors") as path:
        module.load_state_dict(load_file(path))
    preprocessing = Preprocessing(size=(_SIZE, _SIZE), mean=(0.5,) * 3, std=(0.5,) * 3)
    adapter = make_timm_adapter(module, preprocessing=preprocessing)
    return adapter.named(name, "trained by examples/study on planted scenes (Apache-2.0)")
