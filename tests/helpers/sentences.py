"""Sentences by their parts: a test pins what a message or a verdict says, and leaves its wording free."""


def assert_says(text: str, *parts: str) -> None:
    """Fail unless a text has all these parts, one after the other; what stands between them is free."""
    assert parts, "say what the text must have"
    rest = text
    for part in parts:
        _, found, rest = rest.partition(part)
        assert found, f"{part!r} is not in this text, or not where it belongs: {text!r}"
