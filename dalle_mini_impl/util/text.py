"""Text that can be printed and encoded."""


def printable(text: str) -> str:
    """One line of valid Unicode: file names and messages may hold bytes that are neither."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def without_surrogates(text: str) -> str:
    """Text as it can be encoded: a shell passes bytes that are no UTF-8 on as lone surrogates."""
    return text.encode("utf-8", "replace").decode()
