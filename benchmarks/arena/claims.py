"""What the default is held to, computed from finished cells: held-out KL, means over seeds, one line a claim."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .identity import differing, settings_of
from .methods import FORMS, methods
from .results import Result, curve, groups, row, tokens_to_reach
from .teachers import teachers

OWN = ("default", "dense")
"""Methods that are no baselines."""
LARGE = "1m"
START_TOKENS = 128_000
"""Calibration tokens at most of the start that is held against training."""
FLOOR = 0.8
"""Nats that a student of half the width is to come to with `LARGE` tokens."""
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
        remarks = [f"{self.not_run} not run"] if self.not_run else []
        return ", ".join(["holds" if holds else "fails", *remarks, *_remarks([known[name] for name in self.cells])])


def _remarks(sides: Sequence[Sequence[Result]]) -> list[str]:
    """Say what makes a ratio less sure than it looks: seeds of unlike recipes, sides in unlike dtypes."""
    found = []
    for seeds in sides:
        first, *others = ({**settings_of(one["recipe"]), "train.seed": None} for one in seeds)
        if any(differing(first, other) for other in others):
            found.append(f"seeds of {seeds[0]['cell'].rpartition('/')[0]} differ in more")
    dtypes = [sorted({one.get("machine", {}).get("dtype", "") for one in seeds}) for seeds in sides]
    if any(dtype != dtypes[0] for dtype in dtypes):
        found.append(" / ".join(" and ".join(dtype) for dtype in dtypes))
    return found


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
    claims.append(_floor(known, f"{on}/default/{LARGE}"))
    lines = [row(COLUMNS), row(["---"] * len(COLUMNS)), *(claim.shown(known) for claim in claims)]
    return "\n".join(lines)


def _against_published(known: Groups, on: str, tokens: str) -> Iterable[Claim]:
    for budget, limit in ((tokens, 0.35), (LARGE, 0.5)):
        yield _final_ratio(known, f"{on}/default/{budget}", f"{on}/published/{budget}", limit)
        yield from _against_forms(known, on, "published", budget, limit)
    # a start is the same whatever is trained from it
    few = [f"{on}/{what}-{START_TOKENS}/" for what in ("basis-principal", "calibration")]
    begun = [name for prefix in few for name in known if name.startswith(prefix)]
    starts = (f"{on}/default/{LARGE}", f"{on}/default/{tokens}", *begun, f"{few[0]}{tokens}")
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


def _against_forms(known: Groups, on: str, method: str, budget: str, limit: float) -> Iterable[Claim]:
    """The default against the best other form of a method, if one was run: its source can be read more than one way."""
    forms = [f"{on}/{form}/{budget}" for form in FORMS[method]]
    best = _best(known, forms)
    if best:
        claim = _final_ratio(known, f"{on}/default/{budget}", best[0], limit)
        yield replace(claim, not_run=len(forms) - len(best))


def _best(known: Groups, names: Iterable[str]) -> list[str]:
    """Return the cells that were run, the lowest final KL first."""
    return sorted((name for name in names if name in known), key=lambda name: mean_curve(known[name])[-1][1])


def _floor(known: Groups, own: str) -> Claim:
    """The KL of the default itself."""
    kl = mean_curve(known[own])[-1][1] if own in known else None
    return Claim(what="KL in nats, default", cells=(own,), limit=FLOOR, ratio=kl)


def _starts_small(known: Groups, name: str) -> bool:
    """Say whether a cell was run, and from no more tokens than a start may have, without a gradient step."""
    return name in known and all(
        result["calibration_tokens"] <= START_TOKENS and not _tuning_passes(result) for result in known[name]
    )


def _tuning_passes(result: Result) -> int:
    """Return how often a start went over its tokens with gradient steps, beside looking at them."""
    return int(settings_of(result.get("recipe", {})).get("start.correction_passes", 0))


def _agreement(seeds: Sequence[Result], point: int) -> float:
    """Return the held-out agreement at a point of the curve, the mean over the seeds."""
    return statistics.fmean(result["points"][point]["held_out"]["top1_agreement"] for result in seeds)


def _against_red(known: Groups, on: str, budgets: Sequence[str]) -> Iterable[Claim]:
    for budget in budgets:
        yield _final_ratio(known, f"{on}/default/{budget}", f"{on}/red/{budget}", 0.75)
        yield from _against_forms(known, on, "red", budget, 0.75)
    for budget in budgets:
        own = f"{on}/default/{budget}"
        forms = [f"{on}/{name}/{budget}" for name in ("red", *FORMS["red"])]
        red = (_best(known, forms) or forms)[0]
        name, needed, looked_at, tokens = red.split("/")[2], None, 0, 1.0
        if own in known and red in known:
            tokens, level = mean_curve(known[red])[-1]
            needed = tokens_to_reach(mean_curve(known[own]), level)
            looked_at = max(result["calibration_tokens"] * (1 + _tuning_passes(result)) for result in known[own])
        for what, more in (
            (f"tokens to {name}'s final KL, default / {name}", 0),
            ("the same, calibration counted", looked_at),
        ):
            ratio = None if needed is None else (needed + more) / tokens
            yield Claim(what=what, cells=(own, red), limit=1 / 3, ratio=ratio)


def _against_all(known: Groups, side: str, tokens: str) -> Claim:
    """The default against the best baseline, each in the best of its forms that were run."""
    own = f"{side}/default/{tokens}"
    baselines = [f"{side}/{method}/{tokens}" for method in methods() if method not in OWN]
    forms = [f"{side}/{form}/{tokens}" for method in methods() for form in FORMS.get(method, ())]
    run = _best(known, dict.fromkeys((*baselines, *forms)))
    best = run[0] if run else f"{side}/published/{tokens}"
    claim = _final_ratio(known, own, best, 1)
    return Claim(
        what="KL, default / best baseline",
        cells=claim.cells,
        limit=1,
        is_strict=True,
        ratio=claim.ratio,
        not_run=len(set(baselines) - set(run)),
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
