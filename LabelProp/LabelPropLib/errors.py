"""The two ways a propagation ends early: the input cannot be used, or the user cancelled."""


class InputError(ValueError):
    """The input cannot be used. The text is for the user: what is wrong, with the value, and how to mend it."""


class Cancelled(Exception):
    """The caller's `is_cancelled` said yes; nothing was written."""
