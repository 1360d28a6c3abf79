"""Weights at exactly `bits` bits each: the codec, and the file that holds a model's weights. See FORMAT.md."""

from qvec_deploy.packed.codec import BLOCK, pack, pack_codes, unpack, unpack_codes, words_per_row
from qvec_deploy.packed.file_layout import FORMAT, VERSION, Entry, Layout, scale_name
from qvec_deploy.packed.packed_file import PackedFile, PackedInfo, Span, entry_of, write_packed

__all__ = [
    "BLOCK",
    "FORMAT",
    "VERSION",
    "Entry",
    "Layout",
    "PackedFile",
    "PackedInfo",
    "Span",
    "entry_of",
    "pack",
    "pack_codes",
    "scale_name",
    "unpack",
    "unpack_codes",
    "words_per_row",
    "write_packed",
]
