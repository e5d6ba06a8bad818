"""Body: the JSON object of a request, read strictly, and its schema in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, from_json, to_json
from starlette.requests import Request

from adept_fast.server.api_error import ApiError
from adept_fast.system.json_file import MAX_BRACKETS
from adept_fast.system.short_text import short_repr, shortened

_UNSUPPORTED, _UNKNOWN = "unsupported_parameter", "unknown_parameter"
_NULL = {"type": "null"}
_BRANCH = "<"  # begins the name of a union's branch, which is no part of a parameter's name


def _whole(value: object) -> object:
    # JSON has one kind of number: some clients write 16.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_entries(value: object) -> object:
    # Of a million ids, this looks at the types alone.
    has_floats = isinstance(value, list) and float in set(map(type, value))
    return [_whole(entry) for entry in value] if isinstance(value, list) and has_floats else value


READ_WHOLE = BeforeValidator(_whole)  # after an integer's bounds, else the schema lacks them
Whole = Annotated[int, READ_WHOLE]
WholeNumbers = Annotated[list[int], Field(fail_fast=True), BeforeValidator(_whole_entries)]


class Body(BaseModel):
    """An object of named parameters; null stands for a parameter's default, other names are refused.

    ``unsupported`` has OpenAI's parameters that do nothing here, with the values besides null that ask for
    nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        for name in data:  # here, as pydantic would describe every one of very many
            if name not in cls.model_fields and name not in cls.unsupported:
                raise PydanticCustomError(_UNKNOWN, "unknown", {"name": name})
        given = {name: value for name, value in data.items() if value is not None}
        for name in cls.unsupported.keys() & given.keys():
            value = given.pop(name)
            neutral = cls.unsupported[name]
            if not any(type(value) is type(allowed) and value == allowed for allowed in neutral):
                expected = " or ".join(["null", *(_json_repr(allowed) for allowed in neutral)])
                message = f"is {short_repr(value)}, which this server does not support; expected {expected}"
                # Braces in it would be read as fields.
                raise PydanticCustomError(_UNSUPPORTED, "{message}", {"name": name, "message": message})
        return given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema.setdefault("properties", {})
        for name in properties.keys() - set(schema.get("required", ())):
            properties[name] = _or_null(properties[name])
        for name, neutral in cls.unsupported.items():
            properties[name] = {"enum": [None, *neutral], "description": "Not supported by this server."}
        return schema


BodyT = TypeVar("BodyT", bound=Body)


async def read_body(request: Request, model: type[BodyT]) -> BodyT:
    """The parameters of a request. Raises ApiError that names the first wrong one.

    That the body is declared as JSON, and not too large, was checked before.
    """
    content = await request.body()
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > MAX_BRACKETS:
        message = f"the body has {brackets} opening brackets and braces; expected at most {MAX_BRACKETS}"
        raise ApiError(400, message, code="invalid_json")
    try:
        data = from_json(content)
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is {short_repr(data)}; expected a JSON object", code="invalid_json")
    return validated(data, model)


def validated(data: object, model: type[BodyT]) -> BodyT:
    """The parameters in the value of a JSON document. Raises ApiError that names the first wrong one."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise described_error(error) from error


def inlined_schema(model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
    """The JSON schema of a model, without references."""
    schema = model.model_json_schema(mode=mode)
    found: dict[str, Any] = _inlined(schema, schema.pop("$defs", {}))
    return found


def body_schema(model: type[Body], bounds: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The OpenAPI entry of a route whose body ``read_body`` reads.

    Args:
        bounds: more of a parameter's schema, such as ``{"n": {"maximum": 16}}``.
    """
    schema = inlined_schema(model, "validation")
    for name, more in (bounds or {}).items():
        schema["properties"][name].update(more)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described_error(error: ValidationError) -> ApiError:
    """The first fault that pydantic found: the parameter, its value, and the allowed values."""
    return _api_error(error.errors(include_url=False)[0])


def _api_error(details: ErrorDetails) -> ApiError:
    kind, context = details["type"], details.get("ctx", {})
    if kind == _UNSUPPORTED:
        name = _joined(details["loc"], context["name"])
        return ApiError(400, f"{name} {context['message']}", name, _UNSUPPORTED)
    if kind == _UNKNOWN:
        name = _joined(details["loc"], context["name"])
        return ApiError(400, f"{name} is no parameter of this path", name, _UNKNOWN)
    name = _joined(details["loc"])
    if kind == "missing":
        return ApiError(400, f"{name} is missing", name, "missing_required_parameter")
    if kind == "value_error":
        return ApiError(400, f"{name} {context['error']}", name, "invalid_value")
    if kind in _EXPECTED:
        bounds = {name: f"{bound:.0f}" if bound == int(bound) else bound for name, bound in _numbers(context)}
        expected = _EXPECTED[kind].format(**bounds)
    else:
        expected = details["msg"].removeprefix("Input should be ")
    value = details["input"]
    found = f"has {len(value)} entries" if kind in ("too_long", "too_short") else f"is {short_repr(value)}"
    return ApiError(400, f"{name} {found}; expected {expected}", name, "invalid_value")


_EXPECTED = {  # with what pydantic calls an error's context
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "an integer",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "text",
    "too_long": "at most {max_length}",
    "too_short": "at least {min_length}",
}


def _numbers(context: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in context.items() if isinstance(value, (int, float)))


def _joined(location: Sequence[int | str], last: str = "") -> str:
    """A parameter's name, as ``messages[0].role``; ``last`` is the client's own word."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not part.startswith(_BRANCH):
            name += f".{part}" if name else part
    return shortened(f"{name}.{last}" if name and last else name or last)


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema without references: the OpenAPI document has no place for their definitions."""
    if isinstance(schema, list):
        return [_inlined(entry, definitions) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        schema = {**target, **{name: value for name, value in schema.items() if name != "$ref"}}
    return {
        name: _inlined(value, definitions)
        for name, value in schema.items()
        if not (name == "discriminator" or (name == "title" and isinstance(value, str)))
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that null meets too."""
    if isinstance(schema.get("type"), str) and not schema.keys() & {"enum", "const"}:
        return {**schema, "type": [schema["type"], "null"]}
    choices = [choice for choice in schema.get("anyOf", ()) if choice != _NULL]
    if len(choices) == 1 and schema["anyOf"] != choices:
        outer = {name: value for name, value in schema.items() if name != "anyOf"}
        return _or_null({**choices[0], **outer})
    outside = {name: value for name, value in schema.items() if name in ("default", "description")}
    inside = {name: value for name, value in schema.items() if name not in outside}
    return {"anyOf": [*(choices or [inside]), _NULL], **outside}


def _json_repr(value: object) -> str:
    return to_json(value).decode()
