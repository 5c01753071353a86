"Where a network looks: tasks whose evidence has a known place, every form of layer, the package grad-cam as oracle."
import numpy as np
import pytest
import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.interpret.gradcam import heat_maps, last_map, map_layer

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE, SIDE, COLORS = 96, 48, 3
STAGES = ["ds_r1_k3_s1_e1_c16"], ["ir_r1_k3_s2_e3_c24"], ["ir_r1_k3_s2_e3_c32"]


def squares(n, seed):
    "Make pictures of noise with one colored square each: the pictures, the color's number, where the square is."
    draws = torch.Generator().manual_seed(seed)
    x = .25*torch.randn(n, 3, SIZE, SIZE, generator=draws)
    y = torch.randint(0, COLORS, (n,), generator=draws)
    inside = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    for i in range(n):
        top, left = torch.randint(0, SIZE - SIDE + 1, (2,), generator=draws).tolist()
        square = slice(top, top + SIDE), slice(left, left + SIDE)
        x[i][:, square[0], square[1]] -= 1
        x[i, y[i]][square] += 3
        inside[i][square] = True
    return x, y, inside


def resnet():
    net = ResNet(BasicBlock, [1, 1, 1, 1], channels=(16, 32, 32, 32), stem_width=16, num_classes=COLORS)
    net.layer3 = net.layer4 = nn.Identity()             # stays at a step of 8 pixels
    return net


def vit(**kwargs):
    return VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=COLORS, **kwargs)


NETWORKS = dict(
    resnet=resnet,
    convnext=lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(16, 24, 32, 32), kernel_sizes=3, output_stride=8, num_classes=COLORS),
    efficientnet=lambda: EfficientNet(decode_arch_def(STAGES), num_features=64, stem_size=16, num_classes=COLORS),
    mobilenet=lambda: MobileNetV3(decode_arch_def([*STAGES, ["cn_r1_k1_s1_c64"]]), num_features=64, stem_size=16, num_classes=COLORS),
    vit=vit,
    vit_average=lambda: vit(global_pool="avg", class_token=False),
    vit_registers=lambda: vit(reg_tokens=3),
    swin=lambda: SwinTransformer(img_size=SIZE, patch_size=4, window_size=3, embed_dim=32, depths=(1, 1), num_heads=(2, 4), num_classes=COLORS))


@pytest.fixture(scope="module", params=list(NETWORKS))
def trained(request):
    "Train a tiny network to name the color of the square: its name, the network."
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    net = NETWORKS[request.param]()
    steps = 80
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=.05)
    for i in range(steps):
        x, y, _ = squares(16, 100 + i)
        for group in optimizer.param_groups: group["lr"] = 2e-3*min(1, (i + 1)/20)*(1 - i/steps)
        loss = F.binary_cross_entropy_with_logits(net(x), F.one_hot(y, COLORS).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(before)
    return request.param, net.eval()


def test_the_heat_lies_in_the_square(trained):
    name, net = trained
    x, y, inside = squares(32, 1)
    assert (net(x).argmax(1) == y).float().mean() >= .95
    heat, _ = heat_maps(net, x, y)
    share = (heat*inside).sum((1, 2))/heat.sum((1, 2))
    assert share.mean() >= .7, f"{name}: {share.mean():.2f} of the heat is in the square"


def test_the_heat_is_that_of_the_package_grad_cam(trained):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    _, net = trained
    x, y, _ = squares(4, 2)
    layer = map_layer(net, x)
    with GradCAM(net, [layer.module], reshape_transform=None if layer.form == "nchw" else layer.maps) as package:
        want = package(x, [ClassifierOutputTarget(o) for o in y.tolist()])
    heat, _ = heat_maps(net, x, y)
    for a, b in zip(heat.numpy(), want): assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= .999


FORMS = dict(       # name: side of the pictures, then what is found
    resnet18=(64, "layer4", "nchw", (2, 2), 0), convnext_atto=(64, "norm_pre", "nchw", (2, 2), 0),
    maxvit_nano_rw_256=(256, "norm", "nchw", (8, 8), 0),
    vit_tiny_patch16_224=(64, "blocks.10", "tokens", (4, 4), 1), deit_tiny_distilled_patch16_224=(64, "blocks.10", "tokens", (4, 4), 2),
    vit_small_patch14_reg4_dinov2=(56, "blocks.10", "tokens", (4, 4), 5), vit_base_patch16_siglip_224=(64, "blocks", "tokens", (4, 4), 0),
    cait_xxs24_224=(64, "blocks", "tokens", (4, 4), 0), swin_tiny_patch4_window7_224=(224, "layers.3.blocks.0", "nhwc", (7, 7), 0))


@pytest.mark.parametrize("name", FORMS)
def test_the_layer_of_known_networks(name):
    side, *want = FORMS[name]
    fixed = {} if name in ("resnet18", "convnext_atto", "maxvit_nano_rw_256") else dict(img_size=side)
    net = timm.create_model(name, num_classes=2, **fixed)
    x = torch.randn(1, 3, side, side)
    layer = map_layer(net, x)
    assert [layer.name, layer.form, layer.grid, layer.prefix] == want
    assert last_map(net, x) is layer.module and net.training


def test_the_layer_of_torchvision_and_transformers():
    from torchvision.models import swin_t, vit_b_16
    from transformers import ViTConfig, ViTForImageClassification
    found = map_layer(vit_b_16(image_size=64), torch.randn(1, 3, 64, 64))
    assert (found.form, found.grid, found.prefix) == ("tokens", (4, 4), 1) and found.name.endswith("encoder_layer_10")
    found = map_layer(swin_t(), torch.randn(1, 3, 64, 64))
    assert (found.form, found.grid) == ("nhwc", (2, 2)) and found.name == "features.7.0"
    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
    theirs = ViTForImageClassification(config)
    found = map_layer(theirs, torch.randn(2, 3, 32, 32))
    assert (found.form, found.grid, found.prefix) == ("tokens", (4, 4), 1) and found.name.endswith("layers.1")
    assert heat_maps(theirs, torch.randn(2, 3, 32, 32))[0].shape == (2, 32, 32)


def test_pictures_that_are_not_square():
    net = VisionTransformer(img_size=(32, 64), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=2)
    x = torch.randn(2, 3, 32, 64)
    assert map_layer(net, x).grid == (4, 8) and heat_maps(net, x)[0].shape == (2, 32, 64)
    swin = SwinTransformer(img_size=(32, 64), patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=2)
    assert map_layer(swin, x).grid == (4, 8)


def test_a_layer_by_its_name():
    net, x = vit(), torch.randn(2, 3, SIZE, SIZE)
    by_name, by_module = heat_maps(net, x, [0, 1], "blocks.0.norm1")[0], heat_maps(net, x, [0, 1], net.blocks[0].norm1)[0]
    assert torch.equal(by_name, by_module) and not torch.equal(by_name, heat_maps(net, x, [0, 1])[0])
    with pytest.raises(UnknownOptionError, match="blocks.0"): heat_maps(net, x, layer="block.0")


def test_layers_without_places_are_refused_with_what_to_name():
    net, x = vit(), torch.randn(2, 3, SIZE, SIZE)
    for layer in ("head", net.fc_norm, "blocks.0.attn.q_norm"):         # numbers of a picture, of a class token, of each head
        with pytest.raises(ConfigError, match="layer='blocks"): heat_maps(net, x, layer=layer)
    lost = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 500)), nn.Flatten(), nn.Linear(2000, 2))
    with pytest.raises(ConfigError, match=r"'1' \(2, 4, 500\)"): heat_maps(lost, torch.randn(2, 2, 10, 100))
