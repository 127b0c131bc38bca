"""`python -m vla_train bench`: how fast this machine plays and learns with the options of a run, and what limits it."""
