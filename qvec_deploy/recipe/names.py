"""Names that recipes take from a table of the code: whoever adds a row there touches no recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from qvec_deploy.quantize.methods import METHODS, calibrated_methods
from qvec_deploy.runtimes.registry import RUNTIMES, lowering_names


@dataclass(frozen=True)
class OneOf:
    """A string that is one of some names, which are looked up when a value is checked: as Literal, but not fixed."""

    names: Callable[[], Iterable[str]]

    def check(self, value: str) -> str:
        """The value, if it is one of the names."""
        known = list(self.names())
        if value not in known:
            *most, last = map(repr, known)
            expected = f"{', '.join(most)} or {last}" if most else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.names()), **handler(schema)}


RuntimeName = Annotated[str, OneOf(lambda: RUNTIMES)]
LoweringName = Annotated[str, OneOf(lowering_names)]
CalibratedName = Annotated[str, OneOf(calibrated_methods)]
MethodName = Annotated[str, OneOf(lambda: METHODS)]
