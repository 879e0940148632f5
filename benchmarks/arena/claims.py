"""What the default is held to, computed from finished cells: held-out KL, means over seeds, one line a claim."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .methods import methods
from .results import Result, curve, groups, row, tokens_to_reach
from .teachers import teachers

OWN = ("default", "dense")
"""Methods that are no baselines."""
LARGE = "1m"
START_TOKENS = 128_000
"""Calibration tokens at most of the start that is held against training."""
COLUMNS = ("claim", "cells", "target", "found", "verdict")
Groups = dict[str, list[Result]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A ratio that is to stay at or below a limit."""

    what: str
    cells: tuple[str, ...]
    """Names without the seed."""
    limit: float
    is_strict: bool = False
    """The ratio must be below the limit."""
    ratio: float | None
    """None: not reached, if all cells are there."""
    not_run: int = 0
    """Further cells that the claim is about."""

    def shown(self, known: Groups) -> str:
        """Return the claim's line of the table."""
        cells = ", ".join(f"{name} ({_seeds(known.get(name, []))})" for name in self.cells)
        target = f"{'<' if self.is_strict else '≤'} {self.limit:.3g}"
        verdict, found = self._verdict(known), "–" if self.ratio is None else f"{self.ratio:.3f}"
        return row([self.what, cells, target, found, verdict])

    def _verdict(self, known: Groups) -> str:
        if not all(name in known for name in self.cells):
            return "not run"
        if len({_texts(result) for name in self.cells for result in known[name]}) > 1:
            return "other texts"
        if self.ratio is None:
            return "fails, not reached"
        holds = self.ratio < self.limit if self.is_strict else self.ratio <= self.limit
        return f"{'holds' if holds else 'fails'}{f', {self.not_run} not run' if self.not_run else ''}"


def claims_table(results: Sequence[Result], *, on: str, tokens: str) -> str:
    """Return the Markdown table of all claims.

    Args:
        results: Finished cells.
        on: TEACHER/WIDTH that the methods are compared on.
        tokens: Token budget of the main table there; the other is 1 M.
    """
    known = groups(results)
    claims = [*_against_published(known, on, tokens), *_against_red(known, on, (tokens, LARGE))]
    sides = dict.fromkeys([on, *(f"{name}/{width}" for name in teachers() for width in teachers()[name].widths)])
    for side in sides:
        teacher = side.partition("/")[0]
        if side == on or teacher != "tiny":
            claims.append(_against_all(known, side, tokens if side == on else teachers()[teacher].headline))
    claims.append(_final_ratio(known, f"{on}/dense/{tokens}", f"{on}/default/{tokens}", 0.9))
    lines = [row(COLUMNS), row(["---"] * len(COLUMNS)), *(claim.shown(known) for claim in claims)]
    return "\n".join(lines)


def _against_published(known: Groups, on: str, tokens: str) -> Iterable[Claim]:
    for budget, limit in ((tokens, 0.35), (LARGE, 0.5)):
        yield _final_ratio(known, f"{on}/default/{budget}", f"{on}/published/{budget}", limit)
    starts = (f"{on}/default/{LARGE}", f"{on}/default/{tokens}", f"{on}/calibration-{START_TOKENS}/{tokens}")
    own, other = next((name for name in starts if _starts_small(known, name)), starts[-1]), f"{on}/published/{LARGE}"
    ratio = None
    if own in known and other in known:
        ratio = mean_curve(known[own])[0][1] / mean_curve(known[other])[-1][1]
    what = f"KL, start from at most {START_TOKENS:,} tokens / published at the end"
    yield Claim(what=what, cells=(own, other), limit=1, is_strict=True, ratio=ratio)
    if ratio is not None:
        ratio = _agreement(known[other], -1) / max(1e-9, _agreement(known[own], 0))
    what = "agreement, published at the end / such a start"
    yield Claim(what=what, cells=(other, own), limit=1, is_strict=True, ratio=ratio)


def _starts_small(known: Groups, name: str) -> bool:
    """Say whether a cell was run, and from no more calibration tokens than a start may have."""
    return name in known and all(result["calibration_tokens"] <= START_TOKENS for result in known[name])


def _agreement(seeds: Sequence[Result], point: int) -> float:
    """Return the held-out agreement at a point of the curve, the mean over the seeds."""
    return statistics.fmean(result["points"][point]["held_out"]["top1_agreement"] for result in seeds)


def _against_red(known: Groups, on: str, budgets: Sequence[str]) -> Iterable[Claim]:
    pairs = [(f"{on}/default/{budget}", f"{on}/red/{budget}") for budget in budgets]
    for own, red in pairs:
        yield _final_ratio(known, own, red, 0.75)
    for own, red in pairs:
        ratio = None
        if own in known and red in known:
            tokens, level = mean_curve(known[red])[-1]
            needed = tokens_to_reach(mean_curve(known[own]), level)
            ratio = None if needed is None else needed / tokens
        yield Claim(what="tokens to red's final KL, default / red", cells=(own, red), limit=1 / 3, ratio=ratio)


def _against_all(known: Groups, side: str, tokens: str) -> Claim:
    """The default against the best baseline."""
    own = f"{side}/default/{tokens}"
    baselines = [f"{side}/{method}/{tokens}" for method in methods() if method not in OWN]
    run = sorted((name for name in baselines if name in known), key=lambda name: mean_curve(known[name])[-1][1])
    best = run[0] if run else f"{side}/published/{tokens}"
    claim = _final_ratio(known, own, best, 1)
    return Claim(
        what="KL, default / best baseline",
        cells=claim.cells,
        limit=1,
        is_strict=True,
        ratio=claim.ratio,
        not_run=len(baselines) - len(run),
    )


def _final_ratio(known: Groups, over: str, under: str, limit: float) -> Claim:
    ratio = None
    if over in known and under in known:
        ratio = mean_curve(known[over])[-1][1] / mean_curve(known[under])[-1][1]
    what = f"KL, {' / '.join(name.split('/')[2] for name in (over, under))}"
    return Claim(what=what, cells=(over, under), limit=limit, ratio=ratio)


def mean_curve(seeds: Sequence[Result]) -> list[tuple[float, float]]:
    """Return (tokens, held-out KL), the mean over the seeds; points that one of them lacks are left out."""
    curves = [dict(curve(result)) for result in seeds]
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    return [(tokens, statistics.fmean(own[tokens] for own in curves)) for tokens in shared]


def _seeds(results: Sequence[Result]) -> str:
    return "not run" if not results else "1 seed" if len(results) == 1 else f"{len(results)} seeds"


def _texts(result: Result) -> str:
    """Tell what a result was trained and measured on."""
    texts = result.get("texts", {})
    return json.dumps([*(texts.get("sha256", {}).get(role) for role in ("train", "held_out")), texts.get("windows")])
