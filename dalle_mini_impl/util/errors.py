"""The one exception that means "the user can fix this": shown as a single line, never as a traceback."""


class UserError(ValueError):
    """Bad input. The message names what came, what was expected and what to do."""


def need_extra(package: str, extra: str) -> UserError:
    """Build the error for an optional dependency that is not installed."""
    return UserError(f"{package} is not installed; it comes with an extra: pip install 'dalle-mini-impl[{extra}]'")
