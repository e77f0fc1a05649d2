"""Where a process stands among the ranks."""

from __future__ import annotations

import pytest

from afm_scale.core.place import Place, rank_of


def test_a_process_is_alone_unless_said_otherwise() -> None:
    place = Place()
    assert (place.rank, place.world_size, place.data_rank, place.num_data_ranks) == (0, 1, 0, 1) and place.leads_group


def test_neighbours_of_a_group_see_the_same_share_and_one_of_them_speaks() -> None:
    places = [Place(rank, 6, group_size=2) for rank in range(6)]
    assert [place.data_rank for place in places] == [0, 0, 1, 1, 2, 2]
    assert {place.num_data_ranks for place in places} == {3}
    assert [place.rank for place in places if place.leads_group] == [0, 2, 4]


@pytest.mark.parametrize("words, rank", [
    ({}, 0), ({"RANK": "3"}, 3), ({"SLURM_PROCID": "2"}, 2), ({"RANK": "1", "SLURM_PROCID": "0"}, 1),
    ({"RANK": "one"}, 0),
])
def test_the_launcher_s_words_tell_the_rank(words: dict[str, str], rank: int) -> None:
    assert rank_of(words) == rank
