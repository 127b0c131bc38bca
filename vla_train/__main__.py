"""`python -m vla_train`."""

from vla_train.cli import main
from vla_train.trainer.background import end_process_of

if __name__ == "__main__":
    end_process_of(main)
