"""Heatmap and weight gradients of a model of every family of timm that has a convolution equal plain autograd's."""

import pytest
import timm
import torch
from reference import MODES, assert_equal, ours, plain
from torch import nn

QUICK = ("test_", "starnet", "mobilenetv3", "mobilevit")
NO_CONVOLUTION = {"gemma4_vit", "naflexvit"}
FAMILIES = {
    "beit": ("beit_base_patch16_224", dict(depth=2)),
    "byoanet": ("botnet26t_256", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", dict(img_size=56, depth=1)),
    "deit": ("deit_tiny_patch16_224", {}),
    "densenet": ("densenet121", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", dict(img_size=224)),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", dict(depth=2)),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_b", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", dict(img_size=128)),
    "inception_v3": ("inception_v3", dict(img_size=128)),
    "inception_v4": ("inception_v4", dict(img_size=128)),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformerv2_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv5": ("mobilenetv5_base", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "nasnet": ("nasnetalarge", dict(stem_size=32, num_features=1344)),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", dict(img_size=32)),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", dict(depth=1)),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m1", {}),
    "res2net": ("res2next50", {}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}),
    "sequencer": ("sequencer2d_s", {}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {}),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {}),
    "vgg": ("vgg11_bn", dict(mlp_ratio=0.1)),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("test_vit", {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", dict(depth=2)),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": ("xception41p", {}),
    "xcit": ("xcit_nano_12_p8_224", {}),
}  # fmt: skip


def built(name, img_size=64, **options):
    """The model and two images of a size that it takes: some models are told it, others take any."""
    images = torch.randn(2, 3, img_size, img_size)
    for told in ({"img_size": img_size}, {}):
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, num_classes=3, **told, **options)
            with torch.no_grad():
                model.eval()(images)
            return model, images
        except (TypeError, RuntimeError) as error:
            reason = error
    raise reason


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    """Everywhere, also in the layers that compute in float32 whatever they are given."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def condition(model):
    """Make rounding stay rounding and every path count.

    A batch norm over the last few numbers of two images multiplies a rounding by up to 1/sqrt(eps), layer after layer;
    weights that begin at zero (heads, the last scale of a residual branch) hide what lies before them.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 0.1
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)


def test_every_family_is_here():
    assert set(timm.list_modules()) - NO_CONVOLUTION == set(FAMILIES)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if name.startswith(QUICK) else pytest.mark.slow)
        for family, (name, _) in FAMILIES.items()
    ],
)
def test_equals_plain_autograd(family):
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    model, images = built(name, **options)
    condition(model)
    labels = torch.arange(len(images)) % 3
    normalized_by_batch = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    for mode in MODES if normalized_by_batch else ("frozen",):
        assert_equal(ours(model, images, labels, mode), plain(model, images, labels, mode))
