"""`python -m safelight`, for launchers that want a module, such as torchrun."""
from safelight.cli import main

main()
