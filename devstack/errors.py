"""The one exception of devstack: something on this machine stops an engine, and the text says what to do about it."""


class DevstackError(Exception):
    """An engine cannot start or go on. The message is written for the person at the terminal."""
