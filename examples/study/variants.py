"""temporary"""
import timm, torch
from torch.utils.flop_counter import FlopCounterMode
def make_variant(name, *, depth, width=96, heads=3, image_size=32, patch=4):
    return timm.models.VisionTransformer(img_size=image_size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, reg_tokens=4 if name in("V1","V6","V4") else 0, drop_path_rate=0.1 if name=="V6" else 0)
def describe_costs(model):
    with FlopCounterMode(display=False) as f: model(torch.zeros(1,3,32,32,device=next(model.parameters()).device))
    return sum(p.numel() for p in model.parameters()), f.get_total_flops()
VARIANTS = {"V0":"plain","V1":"registers","V2":"x"}
