"""Fields of the OpenAI API that this server knows but does not carry out.

They are accepted with the values that change nothing, because clients send those unasked. With any other value the
request is refused: a field is never accepted and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from server.api.schemas.bounds import StrictModel


class Only:
    """Annotation of a field that may only hold one of ``neutral``."""

    def __init__(self, *neutral: Any) -> None:
        self.neutral = (None, *neutral)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Replaces the field's own validation."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Documents the accepted values."""
        return {"enum": list(self.neutral), "description": "Not supported; accepted only with a value without effect."}

    def _check(self, value: Any) -> Any:
        if any(type(value) is type(neutral) and value == neutral for neutral in self.neutral):
            return value
        raise PydanticCustomError("not_supported", "This field is not supported by this server: leave it out")


class UnsupportedChatFields(StrictModel):
    """Of ``POST /v1/chat/completions``: tools, other output than text, stored answers and hosted-service settings."""

    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, Only(True, False)] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    store: Annotated[Any, Only(False)] = None
    metadata: Annotated[Any, Only({})] = None
    service_tier: Annotated[Any, Only("auto", "default")] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    verbosity: Annotated[Any, Only("medium")] = None
    web_search_options: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prompt_cache_key: Annotated[Any, Only()] = None
    prompt_cache_options: Annotated[Any, Only()] = None
    prompt_cache_retention: Annotated[Any, Only()] = None
    best_of: Annotated[Any, Only(1)] = None


class UnsupportedCompletionFields(StrictModel):
    """Of ``POST /v1/completions``."""

    best_of: Annotated[Any, Only(1)] = None
    suffix: Annotated[Any, Only("")] = None


class UnsupportedMessageFields(StrictModel):
    """Of a chat message; the empty values are those that clients send back with an earlier answer."""

    name: Annotated[Any, Only()] = None
    refusal: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only()] = None
    tool_calls: Annotated[Any, Only([])] = None
    tool_call_id: Annotated[Any, Only()] = None


EndUser = Annotated[
    str | None,
    Field(max_length=256, description="The client's own label of its user. It changes nothing and is not kept."),
]
