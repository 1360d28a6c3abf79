"""Integer codes to the payload of FORMAT.md and back, at exactly `bits` bits a code. Pure numpy.

One method serves every width. Eight codes lie in eight bytes, that is in one uint64 lane; three rounds of
shift-and-mask push neighbours together (bytes into pairs, pairs into fours, fours into eight), after which
the low `bits` bytes of the lane are the payload. Unpacking runs the rounds backwards. The work goes chunk by
chunk through buffers that stay in the cache, so temporary memory is under a megabyte (or three times one row,
if a row is longer than a chunk). Hosts are little-endian, as the format is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IntegrityError
from qvec_deploy.tensors import MAX_BITS, MIN_BITS, Int8, Int32, PackedTensor, QuantizedTensor

BLOCK = 32  # codes; the smallest number that fills whole int32 words at every width

_CHUNK = 1 << 18  # codes worked on at a time: three buffers of 256 KiB; larger ones fall out of the cache
_LANE = 8  # codes in a uint64

_UInt8 = NDArray[np.uint8]
_UInt64 = NDArray[np.uint64]


def words_per_row(columns: int, bits: int) -> int:
    """int32 words that a row of `columns` codes takes: bits * ceil(columns / 32)."""
    return bits * -(-columns // BLOCK)


def pack_codes(codes: Int8, bits: int) -> Int32:
    """Pack a matrix of codes.

    Args:
        codes: (out, in) int8, every one within [-2^(bits-1), 2^(bits-1) - 1].
        bits: Width of a code, 2 to 8.

    Returns:
        (out, words) int32, `words` being bits * ceil(in / 32).

    Raises:
        ValueError: Not an int8 matrix, no such width, or a code out of range.
    """
    _require_width(bits)
    if codes.ndim != 2 or codes.dtype != np.int8:
        raise ValueError(f"codes are a {codes.dtype} array of shape {codes.shape}, not an int8 matrix")
    offset = np.uint8(1 << (bits - 1))
    payload = np.empty((codes.shape[0], words_per_row(codes.shape[1], bits)), np.int32)
    packed = _lane_units(payload, bits)
    source = _rows_to_walk(codes.view(np.uint8))
    rows, columns = source.shape
    padded, step = _chunking(rows, columns)
    buffer = np.empty((step, padded), np.uint8)
    spare = np.empty(buffer.size // _LANE, np.uint64)
    seen = np.uint64(0)
    for start in range(0, rows, step):
        chunk = buffer[: min(step, rows - start)]
        chunk[:, columns:] = offset  # the padding, code 0; the last chunk was worked on in this buffer
        np.add(source[start : start + len(chunk)], offset, out=chunk[:, :columns])
        lanes = chunk.reshape(-1).view(np.uint64)
        seen |= np.bitwise_or.reduce(lanes)
        _squeeze(lanes, spare[: lanes.size], bits)
        units = lanes.view(packed.dtype).reshape(lanes.size, -1)
        first = start * padded // _LANE
        for column in range(packed.shape[1]):
            packed[first : first + lanes.size, column] = units[:, column]
    if seen & ~_repeat((1 << bits) - 1, 8):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits")
    return payload


def unpack_codes(payload: Int32, bits: int, columns: int) -> Int8:
    """Unpack what `pack_codes` packed.

    Args:
        payload: (out, words) int32.
        bits: Width of a code, 2 to 8.
        columns: Codes in a row; the rest of a row's last 32 is padding.

    Returns:
        (out, columns) int8.

    Raises:
        IntegrityError: The payload has another size, or its padding is not code 0.
        ValueError: No such width.
    """
    _require_width(bits)
    if payload.ndim != 2 or payload.dtype != np.int32 or payload.shape[1] != words_per_row(columns, bits):
        raise IntegrityError(
            f"payload is {payload.dtype} of shape {payload.shape} for rows of {columns} codes of {bits} bits",
            hint=f"expected int32 with {words_per_row(columns, bits)} words a row; build the file again",
        )
    offset = np.uint8(1 << (bits - 1))
    packed = _lane_units(payload, bits)
    codes = np.empty((payload.shape[0], columns), np.int8)
    target = _rows_to_walk(codes.view(np.uint8))
    rows = target.shape[0]
    padded, step = _chunking(*target.shape)
    compact = np.zeros(step * padded // _LANE, np.uint64)  # only its low `bits` bytes are ever written
    spread, spare = np.empty_like(compact), np.empty_like(compact)
    for start in range(0, rows, step):
        size = min(step, rows - start) * padded // _LANE
        first = start * padded // _LANE
        units = compact[:size].view(packed.dtype).reshape(size, -1)
        for column in range(packed.shape[1]):
            units[:, column] = packed[first : first + size, column]
        _spread(compact[:size], spread[:size], spare[:size], bits)
        chunk = spread[:size].view(np.uint8).reshape(-1, padded)
        np.subtract(chunk[:, : target.shape[1]], offset, out=target[start : start + step])
        if (chunk[:, target.shape[1] :] != offset).any():
            raise _padding_error(bits, columns)
    return codes


def pack(tensor: QuantizedTensor) -> PackedTensor:
    """Pack a quantized weight matrix.

    Raises:
        ValueError: Codes do not fit the scheme's width.
    """
    rows, columns = tensor.codes.shape
    payload = pack_codes(tensor.codes, tensor.scheme.bits)
    return PackedTensor(payload, tensor.scale, tensor.scheme, (rows, columns))


def unpack(tensor: PackedTensor) -> QuantizedTensor:
    """Unpack a weight matrix: the inverse of `pack`.

    Raises:
        IntegrityError: The payload does not belong to the shape, or its padding is not code 0.
    """
    rows, columns = tensor.shape
    if len(tensor.payload) != rows:
        raise IntegrityError(
            f"payload has {len(tensor.payload)} rows for a weight of shape {tensor.shape}",
            hint="build the file again",
        )
    codes = unpack_codes(tensor.payload, tensor.scheme.bits, columns)
    return QuantizedTensor(codes, tensor.scale, tensor.scheme)


def check_padding(payload: Int32, bits: int, columns: int) -> None:
    """Look at the padding alone, which costs one block a row.

    Args:
        payload: (out, words) int32, of the right size.

    Raises:
        IntegrityError: The padding is not code 0.
    """
    used = columns % BLOCK
    if used and unpack_codes(payload[:, -bits:], bits, BLOCK)[:, used:].any():
        raise _padding_error(bits, columns)


def _padding_error(bits: int, columns: int) -> IntegrityError:
    return IntegrityError(
        f"rows of {columns} codes of {bits} bits are padded with something else than code 0",
        hint="the payload is damaged or of another layout; build the file again",
    )


def _require_width(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits: the codec knows {MIN_BITS} to {MAX_BITS}")


def _rows_to_walk(matrix: _UInt8) -> _UInt8:
    """Blocks where rows are whole blocks, so that chunks need not end with a row; else the rows."""
    return matrix.reshape(-1, BLOCK) if matrix.shape[1] % BLOCK == 0 else matrix


def _chunking(rows: int, columns: int) -> tuple[int, int]:
    """Codes in a padded row, and rows in a chunk (at least 1)."""
    padded = max(1, -(-columns // BLOCK)) * BLOCK
    return padded, max(1, min(rows, _CHUNK // padded))


def _lane_units(payload: Int32, bits: int) -> NDArray[Any]:
    """The payload as one row per lane, in the largest unit that divides its `bits` bytes."""
    unit = np.uint32 if bits % 4 == 0 else np.uint16 if bits % 2 == 0 else np.uint8
    return np.ascontiguousarray(payload).reshape(-1).view(unit).reshape(-1, bits // np.dtype(unit).itemsize)


def _repeat(pattern: int, width: int) -> np.uint64:
    """`pattern` in every field of `width` bits of a lane."""
    return np.uint64(sum(pattern << position for position in range(0, 64, width)))


def _rounds(bits: int) -> list[tuple[np.uint64, np.uint64, np.uint64]]:
    """Shift, mask of the neighbour that stays, mask of the one that moves (where it moves to), per round."""
    rounds = []
    for width in (8, 16, 32):
        used = bits * width // 8
        stays = _repeat((1 << used) - 1, 2 * width)
        rounds.append((np.uint64(width - used), stays, stays << np.uint64(used)))
    return rounds


def _squeeze(lanes: _UInt64, spare: _UInt64, bits: int) -> None:
    """Eight codes, a byte each, into the low `bits` bytes of their lane, in place."""
    for shift, stays, moves in _rounds(bits):
        np.right_shift(lanes, shift, out=spare)
        _merge(lanes, stays, spare, moves, bits, out=lanes)


def _spread(lanes: _UInt64, target: _UInt64, spare: _UInt64, bits: int) -> None:
    """The inverse of `_squeeze`, from `lanes` into `target`."""
    for shift, stays, moves in reversed(_rounds(bits)):
        np.left_shift(lanes, shift, out=spare)
        _merge(lanes, stays, spare, moves << shift, bits, out=target)
        lanes = target


def _merge(staying: _UInt64, stays: np.uint64, moved: _UInt64, moves: np.uint64, bits: int, out: _UInt64) -> None:
    """The fields under `stays` from one side and those under `moves` from the other; `moved` is used up."""
    if bits <= 4:  # what is not wanted of either side has been shifted clear of both masks: one `and` less
        np.bitwise_or(staying, moved, out=out)
        np.bitwise_and(out, stays | moves, out=out)
    else:
        np.bitwise_and(moved, moves, out=moved)
        np.bitwise_and(staying, stays, out=out)
        np.bitwise_or(out, moved, out=out)
