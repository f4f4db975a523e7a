"""Twenty varied prompts that tests of different rooms agree on. Texts only: ids depend on the tokenizer."""

_RECORD = "Row {row}: pump {pump} moved {litres} litres while the gate stood at {gate} of 9."
_CODE = "def stage_{stage}(flow, head):\n    loss = flow * {stage} / (head + {divisor})\n    return head - loss\n"


def _log_of_a_dam(rows: int) -> str:
    lines = [
        _RECORD.format(row=row, pump=row * 7 % 11, litres=row * row % 983, gate=row % 9) for row in range(1, rows + 1)
    ]
    return "Read this log and say which pump was busiest.\n" + "\n".join(lines)


def _pipeline_source(stages: int) -> str:
    return "Explain this module.\n\n" + "\n".join(
        _CODE.format(stage=stage, divisor=stage % 5) for stage in range(stages)
    )


LONG_PROMPTS: tuple[str, ...] = (_log_of_a_dam(44), _pipeline_source(32))
"""Each over 1,000 tokens with SmolLM2's tokenizer."""

SHORT_PROMPTS: tuple[str, ...] = (
    "Hi",
    "What is the capital of France?",
    "The quick brown fox jumps over the lazy dog because",
    "1, 1, 2, 3, 5, 8, 13,",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n",
    "SELECT name, COUNT(*) FROM turbines\nWHERE state = 'running'\nGROUP BY",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; ++i) {\n",
    '{"model": "smollm2", "messages": [{"role": "user", "content": "',
    "请用中文解释水力发电的原理。",
    "长江是亚洲最长的河流，全长约六千三百公里，它发源于",
    "日本で一番高い山は",
    "Объясните простыми словами, что такое",
    "ما هي عاصمة مصر؟",
    "🌊🏞️⚡ Tell me a story with these: 🐟🐻🌲",
    "👩‍👩‍👧‍👦 👍🏽 🇫🇷 é é \u200b ½ ﬁ",
    "   leading spaces,\ttabs,\n\n\nblank lines   and trailing ones   ",
    "Water flows from the reservoir through the penstock and turns the turbine, which drives a generator. "
    "List the parts in order and say in one sentence what each of them does.",
    "Dear Sir or Madam,\n\nI am writing to ask about the room you advertised. Could you please tell me whether it is "
    "still free in September, how far it is from the station, and",
)

PROMPTS: tuple[str, ...] = SHORT_PROMPTS + LONG_PROMPTS
