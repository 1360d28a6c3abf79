"""The families of timm's vision transformers, one small configuration each, and timm's modules that are none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PLAIN = {"embed_dim": 48, "depth": 2, "num_heads": 4}
PYRAMID = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}


@dataclass(frozen=True)
class Family:
    """A small configuration of a family.

    Attributes:
        args: For timm.create_model; fewer and narrower blocks where the model takes such arguments.
        side: Of the images, where the model takes any; its own where None.
    """

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    side: int | None = None


def _plain(model: str, side: int = 64, **args: Any) -> Family:
    return Family(model, {"img_size": side, **PLAIN, **args})


FAMILIES: dict[str, Family] = {
    "vit": Family("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
    "vit clip": _plain("vit_base_patch16_clip_224"),
    "vit siglip": _plain("vit_base_patch16_siglip_224"),
    "vit so150m": _plain("vit_so150m_patch16_reg4_map_256"),
    "vit parallel": _plain("vit_small_patch16_18x2_224"),
    "dinov2 with registers": _plain("vit_small_patch14_reg4_dinov2", 56),
    "dinov3": _plain("vit_small_patch16_dinov3"),
    "aimv2": _plain("aimv2_large_patch14_224", 56),
    "flexivit": _plain("flexivit_small"),
    "deit": Family("deit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
    "deit distilled": Family("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}),
    "deit3": _plain("deit3_small_patch16_224"),
    "beit": _plain("beit_base_patch16_224"),
    "beitv2": _plain("beitv2_base_patch16_224"),
    "eva": _plain("eva_large_patch14_196", 56),
    "eva02": _plain("eva02_tiny_patch14_224", 56),
    "eva02 with normed MLP": _plain("eva02_large_patch14_224", 56),
    "vit rope": _plain("vit_small_patch16_rope_224"),
    "vit rope mixed": _plain("vit_small_patch16_rope_mixed_ape_224"),
    "perception encoder": _plain("vit_pe_core_tiny_patch16_384"),
    "vit relpos": _plain("vit_relpos_small_patch16_224"),
    "vit srelpos": _plain("vit_srelpos_small_patch16_224"),
    "vit sam": _plain("samvit_base_patch16_224"),
    "vit hybrid": Family("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 2}),
    "naflexvit": Family("naflexvit_base_patch16_gap", PLAIN),
    "deepseek vit": Family("deepseek_vit_412m", {"depth": 1}, side=112),
    "gemma4 vit": Family("gemma4_vit_167m", {"depth": 1}, side=128),
    "qwen3 vit": Family("qwen3_vit_88m", {"depth": 1}, side=128),
    "swin": Family("swin_tiny_patch4_window7_224", {"img_size": 56, "window_size": 7, **PYRAMID}),
    "swinv2": Family("swinv2_tiny_window8_256", {"img_size": 64, **PYRAMID}),
    "swinv2 cr": Family("swinv2_cr_tiny_224", {"img_size": 64, **PYRAMID}),
    "cait": _plain("cait_xxs24_224"),
    "xcit": Family("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}),
    "pit": Family("pit_ti_224", {"img_size": 64}),
    "pit distilled": Family("pit_ti_distilled_224", {"img_size": 64}),
    "tnt": Family("tnt_s_patch16_224", {"img_size": 64, "depth": 2}),
    "twins pcpvt": Family("twins_pcpvt_small", {"img_size": 64, "depths": [1, 1, 1, 1]}),
    "twins svt": Family("twins_svt_small", {"depths": [2, 2, 2, 2]}),
    "pvtv2": Family("pvt_v2_b0", side=128),
    "levit": Family("levit_128s", {"depth": [1, 1, 1]}),
    "levit conv": Family("levit_conv_128s", {"depth": [1, 1, 1]}),
    "coat": Family("coat_tiny", {"img_size": 64}),
    "coat lite": Family("coat_lite_tiny", {"img_size": 64}),
    "convit": Family("convit_tiny", {"img_size": 64, "depth": 2, "local_up_to_layer": 1}),
    "crossvit": Family("crossvit_9_240"),
    "mvitv2": Family("mvitv2_tiny", {"img_size": 64}),
    "volo": Family("volo_d1_224", {"img_size": 64}),
    "nest": Family("nest_tiny", {"img_size": 224}),
    "hiera": Family("hiera_tiny_224", {"img_size": 64, "stages": [1, 1, 1, 1]}),
    "hieradet of sam2": Family("hieradet_small", {"stages": [1, 1, 1, 1]}, side=128),
    "maxvit": Family("maxvit_nano_rw_256", {"img_size": 64}),
    "coatnet": Family("coatnet_nano_rw_224", {"img_size": 64}),
    "davit": Family("davit_tiny", {"depths": [1, 1, 1, 1]}, side=128),
    "gcvit": Family("gcvit_xxtiny"),
    "focalnet": Family("focalnet_tiny_srf", side=128),
    "mobilevit": Family("mobilevit_xxs", side=128),
    "mobilevitv2": Family("mobilevitv2_050", side=128),
    "efficientformer": Family("efficientformer_l1"),
    "efficientformerv2": Family("efficientformerv2_s0"),
    "swiftformer": Family("swiftformer_xs"),
    "fastvit": Family("fastvit_sa12", side=128),
    "efficientvit mit": Family("efficientvit_b0", side=128),
    "efficientvit msra": Family("efficientvit_m0"),
    "efficientvim": Family("efficientvim_m1", side=128),
    "tinyvit": Family("tiny_vit_5m_224", side=128),
    "edgenext": Family("edgenext_xx_small", side=128),
    "nextvit": Family("nextvit_small", side=128),
    "repvit": Family("repvit_m0_9", side=128),
    "shvit": Family("shvit_s1", side=128),
    "iformer": Family("iformer_t", side=128),
    "lowformer": Family("lowformer_b0", side=128),
    "cpubone": Family("cpubone_b0_bfrobust", side=128),
    "csatv2": Family("csatv2", side=128),
    "visformer": Family("visformer_tiny", {"img_size": 64}),
    "vitamin": Family("vitamin_small_224", {"img_size": 64}),
    "poolformer": Family("poolformer_s12", side=128),
    "caformer": Family("caformer_s18", side=128),
    "sequencer": Family("sequencer2d_s", {"img_size": 56, "layers": [1, 1, 1, 1]}),
    "gmlp": Family("gmlp_ti16_224", {"img_size": 64}),
    "mambaout": Family("mambaout_femto", side=128),
    "inception next": Family("inception_next_atto", side=128),
}
"""Every family by name, those without attention that are built of a transformer's blocks included."""

CONVOLUTIONAL = frozenset(
    [
        "byoanet",
        "byobnet",
        "convmixer",
        "convnext",
        "cspnet",
        "cspnext",
        "densenet",
        "dla",
        "dpn",
        "efficientnet",
        "fasternet",
        "ghostnet",
        "hardcorenas",
        "hgnet",
        "hrnet",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "lcnetv2",
        "mobilenetv3",
        "mobilenetv5",
        "nasnet",
        "nfnet",
        "pnasnet",
        "rdnet",
        "regnet",
        "repghost",
        "res2net",
        "resnest",
        "resnet",
        "resnetv2",
        "rexnet",
        "selecsls",
        "senet",
        "sknet",
        "starnet",
        "tresnet",
        "vgg",
        "vovnet",
        "xception",
        "xception_aligned",
    ]
)
"""timm's modules of other networks, those that end in a block or two of attention included."""
