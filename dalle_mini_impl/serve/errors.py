"""What is wrong with a request, in the JSON form of OpenAI's API."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from dalle_mini_impl.util.command_line import is_out_of_memory
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable

LONGEST_VALUE = 60
"""Characters of a wrong value that a message shows."""
log = logging.getLogger("uvicorn.error")


class ApiError(HTTPException):
    """An answer that is an error.

    Args:
        message: what was expected, what was got, what to do.
        status: of HTTP.
        param: the field that it is about.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    @classmethod
    def of_fields(cls, error: ValidationError) -> "ApiError":
        """The first thing that is wrong with the fields of a request."""
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            return cls(f"expected {name}, got a request without it; add it", param=name)
        value = printable(repr(first["input"]))[:LONGEST_VALUE]
        if first["type"] == "extra_forbidden":
            return cls(f"expected fields of the API, got {printable(name)}; leave it out", param=name)
        wanted = first["msg"].removeprefix("Input should ").removesuffix(".")
        return cls(f"expected {name} to {wanted}, got {value}; change it", param=name)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON form."""
        kind = "invalid_request_error" if self.status_code < 500 else "server_error"
        kind = "requests" if self.status_code == 429 else kind
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status_code, self.headers)


def api_error(error: Exception) -> ApiError:
    """The answer to any error: what the client can mend is told, everything else is only logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(printable(str(error)))
    if isinstance(error, StarletteHTTPException):
        message = f"expected a request that the API has, got another ({error.detail}); see /openapi.json"
        return ApiError(message, error.status_code, headers=dict(error.headers or {}))
    if is_out_of_memory(error):
        return ApiError("the memory of the server is full; ask for less", 503)
    log.error("a request failed", exc_info=error)
    return ApiError("the server made a mistake, which it has logged; try again", 500)


def add_error_handlers(app: FastAPI) -> None:
    """Have an app answer what clients can mend in OpenAI's form; `guard.Guard` answers everything else."""

    async def answer(_: Request, error: Exception) -> Response:
        return api_error(error).response

    async def nobody(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # the client is gone; the number is nginx's

    for kind in (UserError, StarletteHTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientDisconnect, nobody)
