"""The blocks of a recipe about what is measured, what must be reached, and what is compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from qvec_deploy.recipe.blocks import Block

SHARED = ("version", "name", "evaluate", "images", "measure", "select", "gates", "variants", "target.batch_sizes")
"""Fields that all candidates of a recipe share."""


class Gates(Block):
    """What the shipped engine must reach; a missed gate is exit code 3, and the bundle says so."""

    beats: tuple[str, ...] = Field(
        default=(),
        description="`lambda0`, a method (at lambda 0, on the same grid), or a candidate's name: more right answers "
        "by McNemar's test.",
    )
    level: float = Field(default=0.05, gt=0, lt=1, description="Level of that test.")
    max_top1_drop: float | None = Field(default=None, ge=0, description="Points below the float receiver.")
    max_stored_bits: float | None = Field(default=None, gt=0, description="Bits a quantized weight, scales included.")
    min_speedup: float | None = Field(
        default=None, gt=0, description="Against the float engine at the first batch size; the interval's lower end."
    )

    @property
    def asked(self) -> bool:
        """Whether anything is asked for; a level alone is nothing."""
        limits = (self.max_top1_drop, self.max_stored_bits, self.min_speedup)
        return bool(self.beats) or any(limit is not None for limit in limits)


class Measure(Block):
    """How latency is measured."""

    blocks: int = Field(default=60, ge=2, description="Random blocks; each runs every candidate once.")
    warmup: int = Field(
        default=5, ge=0, description="Least unmeasured blocks; more are run until times are stable. 0: none at all."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the order in which engines run.")
    max_seconds: float | None = Field(
        default=None, gt=0, description="Time for all of it; fewer samples are taken when it is up."
    )
    cores: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Hold the process to these cores; wherever the system puts it if absent."
    )
    l2: Literal["warm", "cold"] = Field(
        default="warm", description="`cold`: empty the GPU's L2 cache before every run."
    )
    scenarios: tuple[Literal["single_stream", "offline"], ...] = Field(
        default=(), description="MLPerf's scenarios by name; `single_stream` adds batch size 1."
    )
    mlperf_rules: bool = Field(
        default=False, description="Take as many samples, for as long, as MLPerf's rules ask of `scenarios`."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.cores)) != len(self.cores):
            raise ValueError("a core is named twice")
        if len(set(self.scenarios)) != len(self.scenarios):
            raise ValueError("a scenario is named twice")
        if self.mlperf_rules and not self.scenarios:
            raise ValueError("`mlperf_rules` are those of `scenarios`: name some")
        return self


class Variant(Block):
    """Another candidate that is built and measured beside the recipe's own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Its name in tables.")
    set: dict[str, Any] = Field(description="Changed fields by dotted name, as with --set.")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        for key in self.set:
            if any(f"{key}.".startswith(f"{shared}.") for shared in SHARED):
                raise ValueError(f"`{key}` belongs to the whole recipe and cannot be set in a variant")
        return self
