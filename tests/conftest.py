"""Set-up shared by all tests."""

import signal

import torch

from dagscale.models.timm import declare_torchvision_ops

torch.set_num_threads(1)


def pytest_configure() -> None:
    """Ctrl-C means what it does at a terminal, even where tests are started in the background, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    declare_torchvision_ops()  # before any test imports a library that imports torchvision
