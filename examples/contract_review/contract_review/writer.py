"""Agent: the report in Markdown, to the length and with the contents it is asked for."""

from __future__ import annotations

from typing import TypedDict

from contract_review.blocks import SECTIONS, Block, all_blocks
from contract_review.markdown import plain_to_markdown
from contract_review.shapes import Brief, Context, Dossier, Draft


class WriteInput(TypedDict):
    dossier: Dossier
    brief: Brief


def write_report(ctx: Context, input: WriteInput) -> Draft:
    """What the brief demands is in, whatever its length; the rest by importance while it fits ``brief.length``.

    A section says how many of its points were left out. Sections with nothing in them are not written.
    """
    brief = input["brief"]
    blocks = list(all_blocks(input["dossier"]))
    demanded = {f"clause:{key}" for key in brief["clauses"]} | {f"duty:{key}" for key in brief["duties"]}
    chosen = _choose(blocks, demanded, brief["length"])
    ctx.log.info("report_drafted", blocks=len(chosen), of=len(blocks), length=brief["length"])
    title = plain_to_markdown(input["dossier"]["facts"]["title"], 100)
    return {"markdown": "\n\n".join([f"# Contract review: {title}", *_render(blocks, chosen)]) + "\n"}


def _choose(blocks: list[Block], demanded: set[str], length: int) -> set[int]:
    forced = {i for i, block in enumerate(blocks) if block.rank == 0 or block.covers in demanded}
    left = length - sum(len(blocks[i].text) for i in forced)
    chosen = set(forced)
    for index in sorted(set(range(len(blocks))) - forced, key=lambda i: blocks[i].rank):
        if len(blocks[index].text) <= left:
            chosen.add(index)
            left -= len(blocks[index].text) + 1
    return chosen


def _render(blocks: list[Block], chosen: set[int]) -> list[str]:
    parts: list[str] = []
    number = 0
    for section, title in enumerate(SECTIONS):
        own = [i for i, block in enumerate(blocks) if block.section == section]
        written = [blocks[i].text for i in own if i in chosen]
        if not written:
            continue
        number += 1
        joint = "\n" if all(text.startswith("- ") for text in written) else "\n\n"
        parts += [f"## {number}. {title}", joint.join(written)]
        if len(written) < len(own):
            parts.append(f"({len(own) - len(written)} more in the data, left out here for length.)")
    return parts
