"""``python -m adept_fast`` is ``adept-fast``."""

from adept_fast.cli import main

main(prog_name="adept-fast")
