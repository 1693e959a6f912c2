"""`python -m cbtqa` is the same program as `cbtqa`."""

from cbtqa.cli.main import main

if __name__ == "__main__":
    main()
