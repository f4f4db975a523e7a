"""How long a request's tokens are gathered: from the first time they could have gone, again and again."""

from forebay.decode.stream import TokenGathering


def test_tokens_are_gathered_for_as_long_as_wished_each_time_anew() -> None:
    gathering = TokenGathering(gather_s=1.0)

    assert [gathering.is_over(now_s) for now_s in (5.0, 5.9, 6.0, 6.9, 7.5, 8.4, 8.5)] == [
        False,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
