"""`python -m vla_train`."""

from vla_train.cli import main

if __name__ == "__main__":
    main()
