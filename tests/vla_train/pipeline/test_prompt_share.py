"""Prompts shared by ranks: each group is begun once, however far ranks are, and however many go on."""

import json
from dataclasses import asdict

from vla_train.pipeline.episodes import PromptStream
from vla_train.pipeline.prompt_share import PromptPosition, PromptShare


def make_shares(size: int, position: PromptPosition | None = None) -> list[PromptShare]:
    def stream() -> PromptStream:
        return PromptStream([0, 1], {0: 7}, group_size=2, train_fraction=0.8, split_seed=0, seed=0)

    shares = [PromptShare(stream(), rank=rank, size=size) for rank in range(size)]
    for share in shares:
        share.go_on_from(position or PromptPosition())
    return shares


def play(shares: list[PromptShare], *counts: int) -> list[int]:
    """Ids of the groups that ranks begin, so many each."""
    return [next(share)[0].group_id for share, count in zip(shares, counts, strict=True) for _ in range(count)]


def position_of(shares: list[PromptShare]) -> PromptPosition:
    """The same for all ranks, as it is after a checkpoint."""
    positions = {share.position([other.next_group_id for other in shares]) for share in shares}
    assert len(positions) == 1
    return PromptPosition.from_json(json.loads(json.dumps(asdict(positions.pop()))))


def test_ranks_that_are_not_equally_far_skip_no_group_and_begin_none_twice_whatever_their_number() -> None:
    begun: list[int] = []
    position = PromptPosition()
    for counts in [(2, 5), (1, 0, 4), (6,), (1, 1, 1, 3), (0, 0), (3, 2)]:
        shares = make_shares(len(counts), position)
        begun += play(shares, *counts)
        position = position_of(shares)
        assert sorted(begun) == [*range(position.next_group_id), *position.begun_ahead]
    rest = play(make_shares(1, position), 30)
    assert sorted(begun + rest) == list(range(len(begun) + 30))


def test_as_many_ranks_go_on_each_with_its_own_groups() -> None:
    unbroken, first = make_shares(3), make_shares(3)
    play(unbroken, 4, 1, 2)
    play(first, 4, 1, 2)
    resumed = make_shares(3, position_of(first))
    assert play(resumed, 3, 3, 3) == play(unbroken, 3, 3, 3)


def test_the_position_that_earlier_versions_wrote_is_read() -> None:
    assert PromptPosition.from_json({"next_group_ids": [12]}) == PromptPosition(next_group_id=12)
