"""`python -m handler.tickets`."""

from handler.tickets.command import main

if __name__ == "__main__":
    main()
