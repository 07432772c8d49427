"""The ways a propagation ends early: the input cannot be used, the user cancelled, or memory ran out."""

MEMORY_ADVICE = "Close other applications, crop the volume, or, if you can, take the preset 'fast' or the device 'cpu'."


class InputError(ValueError):
    """The input cannot be used. The text is for the user: what is wrong, with the value, and how to mend it."""


class Cancelled(Exception):
    """The caller's `is_cancelled` said yes; nothing was written."""


def out_of_memory(text: str) -> str:
    """What to tell the user when memory ran out; text: the message of the error."""
    return f"There was not enough memory ({text}). {MEMORY_ADVICE}"
