"""Is a receiver in the coordinates of a vector's donor? What is proven about that, and what is not.

A vision transformer computes the same function with many sets of weights: permute the neurons of an MLP, and nothing
shows outside. A quantization vector rho belongs to the coordinates of its donor: if theta -> g(theta) is such a
symmetry, then what fits g(theta) is g(rho), not rho.

Proven, the quantizer's part held to by tests. The absmax quantizer with one scale a row commutes with permutations and
sign flips of rows and of columns, and with positive scaling of rows (up to rounding, where the scale is no power of
two). A linear change of coordinates that commutes with AdamW's update is a signed permutation (arXiv 2604.03420, given
that a symmetry has to commute with the update in that form). Undoing what commutes with the quantizer changes neither
the receiver's function nor what quantization makes of it; that is all that is undone here.

Argued, not proven. Donor and receiver are in common coordinates because both start from one pretrained model and
neither is trained far from it. No theorem says so; hence the comparison.

False in general. That rho is invariant: it moves with the coordinates. That W -> A W B + C with invertible A and B
leaves rho usable: the quantizer does not commute with scaling of columns or with rotations. That models of *different*
bases can be brought together by a permutation: nothing says that their rho have to do with one another, so such a
receiver is refused. Clipping (method `mse`, or a clip below 1) breaks the commuting with sign flips, since the code
-2^(bits-1) has no mirror image; groups break it with permutations of columns.

What the sketch cannot see. A rotation, inside a head or of the residual stream, cannot be told from foreign weights
and is refused like them. Scales within 25 per cent of 1, gains within 2 per cent of their donor's, and the bias of a
norm that alone was moved into the next Linear pass as fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.sketch import Read, Sketch, make_sketch
from qvec_deploy.vectors.symmetries import (
    GAIN,
    Explained,
    commutes,
    examine_attention,
    examine_mlp,
    gain_moved,
    squares_between,
)
from qvec_deploy.vectors.undo import TensorChange

if TYPE_CHECKING:
    from qvec_deploy.vectors.symmetric_places import Geometry

UNRELATED = 0.7
"""Relative distance of weights from which they have another base: fine-tunes are within 0.2, strangers about 1.4."""


@dataclass(frozen=True)
class CoordinateFinding:
    """A symmetry that stands between receiver and donor."""

    symmetry: str
    where: str
    units: int
    undone: bool


@dataclass(frozen=True)
class Coordinates:
    """What a comparison of receiver and donor found.

    Attributes:
        distances: Relative distance to the donor by Linear, after all that was found is accounted for; empty where
            a folded gain hides it.
        distance: The same for all Linears together; None likewise.
        changes: What undoes the findings, by tensor; see `undo.corrected`.
    """

    findings: tuple[CoordinateFinding, ...]
    distances: Mapping[str, float]
    distance: float | None
    changes: Mapping[str, TensorChange] = field(repr=False, default_factory=dict)


def check_coordinates(receiver: Sketch, donor: Sketch, geometry: Geometry, scheme: Scheme) -> Coordinates:
    """Compare two sketches, symmetry by symmetry.

    Args:
        geometry: Where the model's symmetries are; an empty one judges distances only.
        scheme: The grid that a symmetry has to commute with to be undone.

    Raises:
        IncompatibleError: Other Linears, another base, or a Linear that no symmetry known here explains.
    """
    _require_same_shapes(receiver, donor)
    _require_places(geometry, donor)
    folded = [pair for pair in geometry.norms if gain_moved(receiver, donor, *pair)]
    if folded:  # the Linears behind such norms cannot be compared until their gains are back
        return Coordinates(
            tuple(CoordinateFinding(GAIN, norm, len(donor.gains[norm]), False) for norm, _ in folded), {}, None
        )
    explained = {mlp.fc1: examine_mlp(receiver, donor, mlp) for mlp in geometry.mlps}
    explained |= {attention.qkv: examine_attention(receiver, donor, attention) for attention in geometry.attentions}
    squares = {name: squares_between(receiver.linears[name].rows, donor.linears[name].rows) for name in donor.linears}
    changes: dict[str, TensorChange] = {}
    for part in explained.values():
        squares |= part.squares
        changes |= part.changes
    distances = {name: _relative(error, norm) for name, (error, norm) in squares.items()}
    distance = _relative(sum(error for error, _ in squares.values()), sum(norm for _, norm in squares.values()))
    _require_related(distance, distances)
    return Coordinates(_findings(explained, donor, scheme), distances, distance, changes)


def require_same_coordinates(read: Read, donor: Sketch, geometry: Geometry, scheme: Scheme) -> None:
    """Refuse a receiver that is not in the donor's coordinates; it is read one tensor at a time."""
    findings = check_coordinates(sketch_like(donor, read), donor, geometry, scheme).findings
    require_undone(findings)
    if findings:
        raise IncompatibleError(
            f"the receiver is not in its donor's coordinates: {findings[0].symmetry} in {findings[0].where}",
            hint="write a receiver that is: qvec-deploy vector check RECEIVER VECTOR --model NAME -o FILE",
        )


def require_undone(findings: tuple[CoordinateFinding, ...]) -> None:
    """Refuse findings that cannot be undone without changing what quantization does."""
    for finding in findings:
        if not finding.undone:
            raise IncompatibleError(
                f"the receiver is not in its donor's coordinates: {finding.symmetry} in {finding.where}",
                hint="the quantizer does not commute with that; use the checkpoint as its training saved it, "
                "before any export or fusion",
            )


def sketch_like(donor: Sketch, read: Read) -> Sketch:
    """The sketch of a receiver over the tensors, and with the seed, of a donor's."""

    def present(name: str) -> Float32:
        try:
            return read(name)
        except KeyError as error:
            raise IncompatibleError(
                f"the receiver has no {name}, which the donor has", hint="both must be fine-tunes of one model"
            ) from error

    return make_sketch((f"{module}.weight" for module in (*donor.linears, *donor.gains)), present, seed=donor.seed)


def _findings(explained: Mapping[str, Explained], donor: Sketch, scheme: Scheme) -> tuple[CoordinateFinding, ...]:
    """All that was found, in the model's order."""
    return tuple(
        CoordinateFinding(symmetry, where, units, commutes(symmetry, scheme))
        for where in donor.linears
        if where in explained
        for symmetry, units in explained[where].found.items()
    )


def _require_same_shapes(receiver: Sketch, donor: Sketch) -> None:
    if receiver.seed != donor.seed:
        raise IncompatibleError("two sketches of different seeds do not compare", hint="extract both vectors anew")
    shapes, wanted = _shapes(receiver), _shapes(donor)
    odd = next((name for name, shape in wanted.items() if shapes.get(name) != shape), None)
    if odd is not None:
        raise IncompatibleError(
            f"the receiver has another {odd} than the donor", hint="both must be fine-tunes of one model"
        )


def _shapes(sketch: Sketch) -> dict[str, tuple[object, ...]]:
    linears = {name: (linear.rows.shape, linear.columns.shape) for name, linear in sketch.linears.items()}
    return {**linears, **{name: gain.shape for name, gain in sketch.gains.items()}}


def _require_places(geometry: Geometry, donor: Sketch) -> None:
    places = [(mlp.fc1, mlp.fc2, 1) for mlp in geometry.mlps]
    places += [(attention.qkv, attention.proj, 3) for attention in geometry.attentions]
    for first, second, parts in places:
        missing = [name for name in (first, second) if name not in donor.linears]
        if missing or len(donor.linears[first].rows) != parts * len(donor.linears[second].columns):
            raise IncompatibleError(
                f"the vector does not fit the model: {missing[0] if missing else first}",
                hint="name the model, and its arguments, that donor and receiver are fine-tunes of",
            )


def _require_related(distance: float, distances: Mapping[str, float]) -> None:
    if distance > UNRELATED:
        raise IncompatibleError(
            f"another base: the receiver's weights are {distance:.2f} of their norm away from the donor's",
            hint="a vector fits fine-tunes of its donor's own pretrained base",
        )
    worst = max(distances, key=distances.__getitem__, default=None)
    if worst is not None and distances[worst] > UNRELATED:
        raise IncompatibleError(
            f"{worst} is {distances[worst]:.2f} of its norm away from the donor's, and no known symmetry explains it",
            hint="use the checkpoint as its training saved it, before any export, fusion or pruning",
        )


def _relative(error: float, norm: float) -> float:
    return float((error / norm) ** 0.5) if norm else float(error > 0)
