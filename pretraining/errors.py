"""The one error type that users see as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can put right: the message names the file or setting, what is wrong and what to do."""
