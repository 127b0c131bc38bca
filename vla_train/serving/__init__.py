"""A policy for others to play: `python -m vla_train serve`.

    client --message--> session --row--> batcher --B rows--> policy.act      (one session per connection, one policy)
    client <--message-- session <-chunk- batcher <-----------/

Sessions and the batcher live in one event loop, and the policy in a thread beside it. What a client sends is checked by its
session, so that whatever reaches the batcher can be decided: nobody's mistake is another one's error.
"""
