"""`python -m handler.worker`."""

from handler.worker.command import main

if __name__ == "__main__":
    main()
