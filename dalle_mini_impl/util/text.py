"""Makes arbitrary text, such as file names and captions, safe to print and to encode."""


def printable(text: str) -> str:
    """One line of valid Unicode: bytes that were not UTF-8 are shown as escapes, white space becomes single spaces."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def without_surrogates(text: str) -> str:
    """Text with lone surrogates replaced by `?`; the shell passes bytes that are not UTF-8 as such surrogates."""
    return text.encode("utf-8", "replace").decode()
