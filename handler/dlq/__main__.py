"""`python -m handler.dlq`."""

from handler.dlq.command import main

if __name__ == "__main__":
    main()
