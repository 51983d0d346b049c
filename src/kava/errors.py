"""The one exception that is a message to the user."""


class KavaError(Exception):
    """Bad input: one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with status 2.
    """
