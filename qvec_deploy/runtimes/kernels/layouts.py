"""Device layouts: how codes lie in the int32 words that the kernels read. Numpy only.

A layout is derived from the canonical codes when a bundle is lowered, is lossless, and is known by id and version:
a program compiled for one layout must never be given another one's words.

`p32` (exactly `bits` bits a weight, for tensor cores; rows a multiple of 64, columns a multiple of 256): a block of
64 rows by 256 columns has 16 * bits rows of 32 words. With n = 64 * nb + c + 32 * h (c below 32) and
k = 256 * kb + 16 * slot + r, the unsigned code of (n, k) lies in half h of the words [16 * (bits * kb + t) + r,
32 * nb + c]. A half holds f = 16 // bits fields: slot s lies in word t = s // f, from bit bits * (s % f) of the half.
At 3 bits that leaves slot 15 and bit 15 of every half: bit t of the slot's code is bit 15 of word t. So one shift and
one mask give the codes of two rows, for the 16 columns that one tensor core instruction takes.

`rows` (every other shape): the canonical stream of packed/FORMAT.md, transposed, so that neighbours in memory are
neighbouring rows: [bits * ceil(columns / 32), rows]. Rows are padded to 32 columns and to nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.packed import pack_codes, unpack_codes, words_per_row
from qvec_deploy.tensors import MAX_BITS, MIN_BITS, Int8, Int32

K_BLOCK = 256
"""Columns of a block of `p32`."""

N_BLOCK = 64
"""Rows of a block of `p32`."""

GROUP_STEP = 16
"""Groups are a multiple of this: the columns that one tensor core instruction takes."""

_SLOTS, _LANES, _PAIR = 16, 16, 32


@dataclass(frozen=True)
class DeviceLayout(ABC):
    """One way to lay codes out for a kernel.

    Attributes:
        id: What plugins and files call it.
        version: Changes when the same codes come to give other words.
    """

    id: str
    version: int

    @abstractmethod
    def takes(self, rows: int, columns: int, bits: int, group_size: int = 0) -> bool:
        """Whether the kernels take a weight of this shape, width and group size (0: one scale a row)."""

    def require(self, rows: int, columns: int, bits: int, group_size: int) -> None:
        """Refuse a weight that the kernels do not take."""
        if not self.takes(rows, columns, bits, group_size):
            raise IncompatibleError(
                f"layout {self.id} does not take a weight of shape ({rows}, {columns}) at {bits} bits in groups of "
                f"{group_size}",
                hint="kernels.layouts.choose_layout says which layout does",
            )

    @abstractmethod
    def words_shape(self, rows: int, columns: int, bits: int) -> tuple[int, int]:
        """Shape of the words of a (rows, columns) weight."""

    @abstractmethod
    def pack(self, codes: Int8, bits: int) -> Int32:
        """Lay codes out.

        Args:
            codes: (rows, columns) int8, each within [-2^(bits-1), 2^(bits-1) - 1].

        Returns:
            int32 of `words_shape`.
        """

    @abstractmethod
    def unpack(self, words: Int32, bits: int, shape: tuple[int, int]) -> Int8:
        """The inverse of `pack`.

        Args:
            words: int32 of `words_shape`.

        Raises:
            IntegrityError: The words have another shape or type, or padding that `pack` does not write.
        """

    def _require(self, words: Int32, bits: int, shape: tuple[int, int]) -> None:
        expected = self.words_shape(*shape, bits) if self.takes(*shape, bits) else None
        if words.dtype != np.int32 or words.shape != expected:
            raise IntegrityError(
                f"words are {words.dtype} of shape {words.shape}; layout {self.id} version {self.version} of a weight "
                f"of shape {shape} at {bits} bits has {expected or 'no such weight'}",
                hint="lower the bundle again with this version",
            )


class _P32(DeviceLayout):
    def takes(self, rows: int, columns: int, bits: int, group_size: int = 0) -> bool:
        groups = not group_size or (
            group_size % GROUP_STEP == 0
            and columns % group_size == 0
            and (K_BLOCK % group_size == 0 or group_size % K_BLOCK == 0)
        )
        whole = rows > 0 and columns > 0 and rows % N_BLOCK == 0 and columns % K_BLOCK == 0
        return bits in (2, 3, 4) and whole and groups

    def words_shape(self, rows: int, columns: int, bits: int) -> tuple[int, int]:
        return columns // K_BLOCK * bits * _LANES, rows // 2

    def pack(self, codes: Int8, bits: int) -> Int32:
        rows, columns = codes.shape
        if codes.dtype != np.int8 or not self.takes(rows, columns, bits):
            raise ValueError(
                f"layout {self.id} does not take {codes.dtype} codes of shape {codes.shape} at {bits} bits"
            )
        blocks, per, zero = columns // K_BLOCK, _SLOTS // bits, np.uint8(1 << (bits - 1))
        words = np.empty(self.words_shape(rows, columns, bits), np.uint32)
        halves = np.empty((N_BLOCK, blocks, bits, _LANES), np.uint16)
        seen = np.uint64(0)
        for start in range(0, rows, N_BLOCK):  # combined before they are turned: the turn then moves words, not codes
            fields = np.ascontiguousarray(codes[start : start + N_BLOCK]).view(np.uint8) + zero
            seen |= np.bitwise_or.reduce(fields.view(np.uint64), axis=None)
            slots = fields.reshape(N_BLOCK, blocks, _SLOTS, _LANES)
            halves[...] = slots[:, :, 0 : per * bits : per]
            for position in range(1, per):
                shift = np.uint16(bits * position)
                halves |= slots[:, :, position : per * bits : per].astype(np.uint16) << shift
            if per * bits < _SLOTS:  # 3 bits: the last slot in the spare bits
                for word in range(bits):
                    bit = slots[:, :, -1].astype(np.uint16) >> np.uint16(word)
                    halves[:, :, word] |= bit << np.uint16(15)
            pair = halves.reshape(2, _PAIR, -1).astype(np.uint32)
            words[:, start // 2 : start // 2 + _PAIR] = (pair[0] | pair[1] << np.uint32(16)).T
        if int(np.bitwise_or.reduce(np.array([seen]).view(np.uint8))) >> bits:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits")
        return words.view(np.int32)

    def unpack(self, words: Int32, bits: int, shape: tuple[int, int]) -> Int8:
        self._require(words, bits, shape)
        rows, columns = shape
        blocks, per = columns // K_BLOCK, _SLOTS // bits
        zero, mask = np.uint8(1 << (bits - 1)), np.uint16((1 << bits) - 1)
        codes = np.empty(shape, np.int8)
        fields = np.empty((N_BLOCK, blocks, _SLOTS, _LANES), np.uint8)
        for start in range(0, rows, N_BLOCK):
            pair = np.ascontiguousarray(words[:, start // 2 : start // 2 + _PAIR].T).view(np.uint32)
            halves = np.stack([pair.astype(np.uint16), (pair >> np.uint32(16)).astype(np.uint16)])
            halves = halves.reshape(N_BLOCK, blocks, bits, _LANES)
            for position in range(per):
                fields[:, :, position : per * bits : per] = halves >> np.uint16(bits * position) & mask
            if per * bits < _SLOTS:
                top = (halves >> np.uint16(15)).astype(np.uint8)
                fields[:, :, -1] = sum(top[:, :, word] << np.uint8(word) for word in range(bits))
            codes[start : start + N_BLOCK] = (fields.reshape(N_BLOCK, columns) - zero).view(np.int8)
        return codes


class _Rows(DeviceLayout):
    def takes(self, rows: int, columns: int, bits: int, group_size: int = 0) -> bool:
        groups = not group_size or (group_size % GROUP_STEP == 0 and columns % group_size == 0)
        return MIN_BITS <= bits <= MAX_BITS and rows > 0 and columns > 0 and groups

    def words_shape(self, rows: int, columns: int, bits: int) -> tuple[int, int]:
        return words_per_row(columns, bits), rows

    def pack(self, codes: Int8, bits: int) -> Int32:
        return np.ascontiguousarray(pack_codes(codes, bits).T)

    def unpack(self, words: Int32, bits: int, shape: tuple[int, int]) -> Int8:
        self._require(words, bits, shape)
        return unpack_codes(np.ascontiguousarray(words.T), bits, shape[1])


LAYOUTS: Mapping[str, DeviceLayout] = MappingProxyType({"p32": _P32("p32", 1), "rows": _Rows("rows", 1)})
"""Every layout by its id, the fastest first."""


def choose_layout(rows: int, columns: int, bits: int, group_size: int = 0) -> DeviceLayout:
    """The fastest layout that takes a weight."""
    for layout in LAYOUTS.values():
        if layout.takes(rows, columns, bits, group_size):
            return layout
    raise IncompatibleError(
        f"the GPU kernels do not take a weight of shape ({rows}, {columns}) at {bits} bits in groups of {group_size}",
        hint=f"group sizes that divide the columns and are multiples of {GROUP_STEP} work, and so does one scale a row",
    )


def layout_named(name: str, version: int | None = None) -> DeviceLayout:
    """The layout of an id.

    Args:
        version: The version that words were written in; None for whatever this version has.
    """
    layout = LAYOUTS.get(name)
    if layout is None or version not in (None, layout.version):
        known = ", ".join(f"{each.id} version {each.version}" for each in LAYOUTS.values())
        raise IncompatibleError(
            f"words in layout {name!r}"
            + ("" if version is None else f" version {version}")
            + f"; this version: {known}",
            hint="lower the bundle again with this version",
        )
    return layout
