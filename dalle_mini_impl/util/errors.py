"""The exception that means "the user can fix this": the command line shows its message as one line, no traceback."""


class UserError(ValueError):
    """Bad input. The message names the value, what was expected and what to do."""


def need_extra(package: str, extra: str, *others: str) -> UserError:
    """Build the error for an optional dependency that is not installed.

    The package is on no index, so an extra can be installed by name only in a clone; elsewhere pip needs the names of
    the missing packages.

    Args:
        package: name on PyPI of the package that could not be imported.
        extra: the extra in pyproject.toml that it belongs to.
        others: further packages of that extra which the same command needs.
    """
    names = " ".join((package, *others))
    return UserError(
        f"{package} is not installed; run: pip install {names} "
        f"(in a clone: pip install -c constraints.txt '.[{extra}]')"
    )
