"""Converters between layouts: the native one where it comes in time, and never more than a few kept."""

import threading
from dataclasses import replace

from forebay.kernels.converter import BlockConverter
from forebay.kernels.converter_reference import ReferenceConverter
from forebay.kv.conversion import ConversionPlan, plan_conversion
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kvcache.transfer.converters import MOST_CONVERTERS, Converters
from forebay.testing.waiting import until

HOME = KvLayout(dtype=KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=4, block_tokens=4)


def plan_of(block_tokens: int) -> ConversionPlan:
    return plan_conversion((replace(HOME, dtype=KvDtype.BFLOAT16, block_tokens=block_tokens),), HOME)


class Making:
    """Makes converters when it may."""

    def __init__(self) -> None:
        self.made: list[ConversionPlan] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, plan: ConversionPlan) -> BlockConverter:
        self.may_end.wait(20)
        self.made.append(plan)
        return ReferenceConverter(plan)


async def test_those_used_last_are_kept_and_no_more() -> None:
    making = Making()
    converters = Converters(making)
    plans = [plan_of(4 * number) for number in range(1, MOST_CONVERTERS + 2)]
    first = await converters.of(plans[0])
    for plan in plans[1:MOST_CONVERTERS]:
        await converters.of(plan)
    assert await converters.of(plans[0]) is first, "and it is the one used last now"
    await converters.of(plans[MOST_CONVERTERS])
    assert len(converters) == MOST_CONVERTERS
    assert await converters.of(plans[0]) is first
    assert making.made == plans
    await converters.of(plans[1])
    assert making.made == [*plans, plans[1]], "it had been used longest ago"


async def test_what_takes_long_is_done_without_until_it_is_there() -> None:
    making = Making()
    making.may_end.clear()
    converters = Converters(making)
    stopgap = await converters.of(plan_of(8))
    assert isinstance(stopgap, ReferenceConverter)
    making.may_end.set()
    await until(lambda: making.made)
    assert await converters.of(plan_of(8)) is not stopgap
    assert len(making.made) == 1


async def test_what_cannot_be_made_is_done_without() -> None:
    def fails(plan: ConversionPlan) -> BlockConverter:
        raise OSError("no compiler")

    assert isinstance(await Converters(fails).of(plan_of(8)), ReferenceConverter)
