"""What all tests stand on."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start.

    In the background of a shell, and with some CI services, it is ignored, and so it would be in
    every child.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
