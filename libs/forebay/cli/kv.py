"""`forebay kv`: what the local mesh's KV-cache service keeps, and what an operator may do about it."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any, Final

from forebay import tasks
from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.client.kv_operator import KvOperator, KvStats
from forebay.errors import StartError
from forebay.mesh.record import read_record
from forebay.mesh.state_dir import current_state_dir, elsewhere
from forebay.rpc.address import checked_address

_EXAMPLES: Final = """\
  forebay kv stats                        blocks by tier, hits, evictions
  forebay kv ls --tier disk               what lies on disk alone
  forebay kv ls --json | jq -r '.[].hash' hashes, as pin takes them
  forebay kv pin HASH HASH --ttl 600      keep two blocks for ten minutes
  forebay kv unpin --all                  let what is pinned be evicted again
  forebay kv flush                        drop all that is neither in use nor pinned
  forebay kv verify                       read the whole disk tier and check it"""
_TIERS: Final = ("device", "host", "disk")
_HEADER: Final = ("tier", "blocks", "free", "leased", "sealed", "in use")
_HASH_DIGITS: Final = 32
_TTL_HELP: Final = (
    "seconds from now, at most a day (default: 3600); a pin that lasts longer already stays as it is, and none outlives"
    " the service"
)

Ask = Callable[[KvOperator, argparse.Namespace], Coroutine[Any, Any, int]]


def run(arguments: Sequence[str]) -> int:
    """Does what the subcommand says; 1 when `verify` found damage or `pin` found blocks missing."""
    parser = command_parser("kv", "Shows and steers what the KV-cache service of the local mesh keeps.", _EXAMPLES)
    address_help = "of a KV-cache service (default: that of the local mesh)"
    parser.add_argument("--address", type=_address, metavar="HOST:PORT", help=address_help)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asks: dict[str, Ask] = {}
    for name, summary, ask in _COMMANDS:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("--json", action="store_true", help="print JSON")
        # Also behind the subcommand, where it is typed most readily; absent there, what stands before it counts.
        command.add_argument(
            "--address", type=_address, metavar="HOST:PORT", default=argparse.SUPPRESS, help=address_help
        )
        asks[name] = ask
        if name == "ls":
            command.add_argument("--tier", choices=_TIERS, help="only blocks of which this is the nearest tier")
        if name == "pin":
            command.add_argument(
                "hashes", nargs="+", type=_block_hash, metavar="HASH", help="32 hexadecimal digits, as ls prints"
            )
            command.add_argument("--ttl", type=float, default=3600.0, metavar="S", help=_TTL_HELP)
        if name == "unpin":
            which = command.add_mutually_exclusive_group(required=True)
            which.add_argument("hashes", nargs="*", default=[], type=_block_hash, metavar="HASH", help="as ls prints")
            which.add_argument("--all", action="store_true", help="all that are pinned")
    given = parser.parse_args(arguments)
    return tasks.run(_asked(asks[given.command], given))


async def _asked(ask: Ask, given: argparse.Namespace) -> int:
    async with KvOperator(given.address or _local_address()) as operator:
        return await ask(operator, given)


def _local_address() -> str:
    state_dir, program = current_state_dir(), program_name()
    record = read_record(state_dir)
    if record is None:
        raise StartError(f"no mesh runs in {state_dir}; start one: {program} up; {elsewhere(f'{program} kv stats')}")
    return next(service.address for service in record.services if service.role == "kvcache")


async def _stats(operator: KvOperator, given: argparse.Namespace) -> int:
    stats = await operator.stats()
    print(json.dumps(asdict(stats), indent=2) if given.json else _table(stats))
    return 0


async def _ls(operator: KvOperator, given: argparse.Namespace) -> int:
    blocks = [one for one in await operator.blocks() if given.tier in (None, one.tier)]
    if given.json:
        print(json.dumps([{"hash": one.block_hash.hex(), "tier": one.tier} for one in blocks], indent=2))
        return 0
    for one in blocks:
        print(f"{one.block_hash.hex()}  {one.tier}")
    counts = Counter(one.tier for one in blocks)
    print(_blocks(len(blocks)) + "".join(f", {counts[tier]} {tier}" for tier in _TIERS if counts[tier]))
    return 0


async def _pin(operator: KvOperator, given: argparse.Namespace) -> int:
    missing = await operator.pin(given.hashes, given.ttl)
    pinned_count = len(set(given.hashes)) - len(missing)
    if given.json:
        print(json.dumps({"pinned_blocks": pinned_count, "missing": [one.hex() for one in missing]}, indent=2))
    else:
        print(f"{_blocks(pinned_count)} pinned for at least {given.ttl:g} s")
        for one in missing:
            print(f"{one.hex()} is not held")
    return 1 if missing else 0


async def _unpin(operator: KvOperator, given: argparse.Namespace) -> int:
    unpinned_count = await operator.unpin(None if given.all else given.hashes)
    print(json.dumps({"unpinned_blocks": unpinned_count}) if given.json else f"{_blocks(unpinned_count)} unpinned")
    return 0


async def _flush(operator: KvOperator, given: argparse.Namespace) -> int:
    removed_count = await operator.flush()
    if given.json:
        print(json.dumps({"removed_blocks": removed_count}))
    else:
        kept = sum(one.leased_blocks + one.referenced_blocks for one in (await operator.stats()).tiers)
        rest = f"; {_blocks(kept)} in use or pinned stay" if kept else ""
        print(f"{_blocks(removed_count)} removed, each tier's copy counted{rest}")
    return 0


async def _verify(operator: KvOperator, given: argparse.Namespace) -> int:
    stats = await operator.stats()
    disk = next((one for one in stats.tiers if one.tier == "disk"), None)
    if disk is not None and disk.sealed_blocks:
        size_mib = disk.sealed_blocks * stats.block_bytes / 2**20
        print(f"reading {_blocks(disk.sealed_blocks)} ({size_mib:.0f} MiB) of the disk tier ...", file=sys.stderr)
    verified = await operator.verify()
    if given.json:
        print(json.dumps(asdict(verified)))
    elif disk is None:
        print("there is no disk tier here, and nothing to verify")
    else:
        damage = f"{verified.corrupt_blocks} damaged, and dropped" if verified.corrupt_blocks else "none damaged"
        print(f"{_blocks(verified.verified_blocks)} of the disk tier read: {damage}")
    return 1 if verified.corrupt_blocks else 0


_COMMANDS: Final[tuple[tuple[str, str, Ask], ...]] = (
    ("stats", "Blocks by tier, hits, evictions; totals are since the service started.", _stats),
    ("ls", "Sealed blocks and the nearest tier that each lies in.", _ls),
    ("pin", "Keeps blocks from eviction and flush for a while.", _pin),
    ("unpin", "Ends pins before their time.", _unpin),
    ("flush", "Removes all blocks that are neither in use nor pinned, from all tiers, disk included.", _flush),
    ("verify", "Reads every block of the disk tier and checks it; damaged ones are dropped.", _verify),
)


def _table(stats: KvStats) -> str:
    rows = [
        _HEADER,
        *(
            (
                one.tier,
                *map(str, (one.capacity_blocks, one.free_blocks, one.leased_blocks)),
                *map(str, (one.sealed_blocks, one.referenced_blocks)),
            )
            for one in stats.tiers
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    asked, found = stats.prefix_blocks_asked, stats.prefix_blocks_found
    share = f" ({found / asked:.0%})" if asked else ""
    lines += [
        f"node: {stats.node_id}; block: {stats.block_tokens} tokens, {stats.block_bytes} bytes; eviction:"
        f" {stats.eviction_policy}",
        f"prefix: {found} of {asked} blocks found{share}",
        f"gone: {stats.evicted_blocks} evicted for want of room, {stats.flushed_blocks} flushed,"
        f" {stats.lost_blocks} lost with the disk; pinned: {stats.pinned_blocks}",
        f"sequences: {stats.active_sequences}; workers: {stats.attached_workers}; taken over: {stats.take_overs}",
    ]
    if stats.disk_failure is not None:
        lines.append(f"{stats.disk_failure}; serving goes on without it until the service is started again")
    elif any(one.tier == "disk" for one in stats.tiers):
        lines.append(
            f"disk: {stats.disk_read_blocks} blocks read, {stats.disk_written_blocks} written,"
            f" {stats.disk_corrupt_blocks} corrupt"
        )
    return "\n".join(lines)


def _blocks(count: int) -> str:
    return f"{count} block" if count == 1 else f"{count} blocks"


def _address(text: str) -> str:
    try:
        return checked_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _block_hash(text: str) -> bytes:
    try:
        block_hash = bytes.fromhex(text)
    except ValueError:
        block_hash = b""
    if len(text) != _HASH_DIGITS or len(block_hash) * 2 != _HASH_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a block's hash, which has {_HASH_DIGITS} hexadecimal digits")
    return block_hash
