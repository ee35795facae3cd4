"""`python -m handler.replay`."""

from handler.replay.command import main

if __name__ == "__main__":
    main()
