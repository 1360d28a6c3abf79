"""Where a timm model's symmetries live: its attentions, its MLPs, and which Linears follow which norms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from qvec_deploy.io.user_cache import remembered_value
from qvec_deploy.jobs.apart import call
from qvec_deploy.models import DECIDING_PACKAGES, ModelArgs, structure

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Attention:
    """One multi-head self-attention without norms inside.

    Attributes:
        qkv: Module name of the Linear whose rows are q, k and v, each head by head.
        table: A tensor with one column a head (Swin's relative position biases); empty without one.
    """

    qkv: str
    proj: str
    heads: int
    table: str = ""


@dataclass(frozen=True)
class Mlp:
    """Two Linears with a pointwise activation between, by module name."""

    fc1: str
    fc2: str


@dataclass(frozen=True)
class Geometry:
    """The places of a model's symmetries.

    Attributes:
        norms: Norm and the Linear that alone reads it, by module name.
    """

    attentions: tuple[Attention, ...] = ()
    mlps: tuple[Mlp, ...] = ()
    norms: tuple[tuple[str, str], ...] = ()


def find_geometry(name: str, args: ModelArgs, *, classes: int = 1) -> Geometry:
    """The geometry of a timm model, known without weights; the same for any number of classes."""
    make = partial(call, "qvec_deploy.vectors.symmetric_places:look_for_geometry", name, dict(args), classes)
    return remembered_value(Geometry, (name, dict(args)), make, packages=DECIDING_PACKAGES)


def look_for_geometry(name: str, args: ModelArgs, classes: int) -> Geometry:
    """The geometry of a model's plain ViT, DeiT-III and Swin blocks, looked for anew.

    Blocks of other kinds, attentions with norms on q and k, and gated or normed MLPs have other symmetries: they are
    left out, and only their distance to the donor is judged.
    """
    from timm.layers import Mlp as TimmMlp
    from timm.layers.attention import Attention as TimmAttention
    from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
    from timm.models.vision_transformer import Block
    from torch import nn

    model = structure(name, classes, args)
    attentions: list[Attention] = []
    mlps: list[Mlp] = []
    norms: list[tuple[str, str]] = []
    for name, block in model.named_modules():
        if not isinstance(block, Block | SwinTransformerBlock):
            continue
        attention, mlp = block.attn, block.mlp
        if isinstance(attention, TimmAttention | WindowAttention) and isinstance(attention.qkv, nn.Linear):
            norms.append((f"{name}.norm1", f"{name}.attn.qkv"))
            table = f"{name}.attn.relative_position_bias_table" if isinstance(attention, WindowAttention) else ""
            if _all_identity(attention, "q_norm", "k_norm", "norm"):
                attentions.append(Attention(f"{name}.attn.qkv", f"{name}.attn.proj", attention.num_heads, table))
        if type(mlp) is TimmMlp and isinstance(mlp.fc1, nn.Linear):
            norms.append((f"{name}.norm2", f"{name}.mlp.fc1"))
            if _all_identity(mlp, "norm"):
                mlps.append(Mlp(f"{name}.mlp.fc1", f"{name}.mlp.fc2"))
    return Geometry(tuple(attentions), tuple(mlps), tuple(norms))


def _all_identity(module: nn.Module, *children: str) -> bool:
    from torch import nn

    return all(isinstance(getattr(module, child, None), nn.Identity | None) for child in children)
