"""What is compared: each method as what it changes in the demo's recipe, each question about the default as a sweep.

A method is a tuple of `section.key=value`. Keys that the recipe does not know end in its own error, by name.
"""

from dataclasses import dataclass, replace

from lrc.errors import ConfigError, nearest_name

ADAMW_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
RED_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
"""Raw clone errors are larger at RED's start than at a random one."""
MUON_RATES = (5e-4, 1.5e-3, 4e-3)
DEFAULT_BATCH = 2
"""Windows a step of the default: of 250 k tokens it makes more in twice as many steps (docs/quality.md)."""
CALIBRATION_TOKENS = (4_096, 16_384, 65_536, 128_000, 256_000)
"""Of the sweep; the last is the default's."""

FORMS = {
    "published": ("published-long", "published-batch-2", "published-paper"),
    "red": ("red-token-mean", "red-long", "red-batch-2"),
    "red-relative": ("red-relative-muon",),
    "only-kd": ("only-kd-muon", "only-kd-lm"),
    "tiny-bert": ("tiny-bert-relative",),
    "minitron": ("minitron-muon", "minitron-magnitude"),
    "slicegpt": ("slicegpt-muon",),
}
"""Other readings of what a paper and its code say; the default is held against the best that was run, too."""

ADAMW = ("train.optimizer=adamw", "train.schedule=linear", "train.warmup_ratio=0.05")
WITHOUT_CORRECTION = "student.correction=none"
"""Of what does not begin with a calibrated start, which alone fits corrections."""
UNGUARDED = "train.divergence_factor=null"
"""Raw errors spike to hundreds of times their median; clipping bounds the step, as in the published code."""
LOGITS_ALONE = ("objective.lm_weight=0", "objective.clone_weight=0", "objective.without=[all]")
DENSE_FROM_THE_FIRST_STEP = ("phases.dense_share=1", "phases.dense_tensors=all")
PUBLISHED = (
    WITHOUT_CORRECTION,
    "start.method=random",
    "objective.temperature=40",
    "objective.kl_reduction=published",
    "objective.lm_weight=1",
    "objective.kl_weight=1",
    "objective.clone_weight=0.2",
    "objective.clone_error=raw",
    "objective.clone_reduction=sum",
    "objective.attention_output_space=teacher",
    *ADAMW,
    "train.warmup_ratio=0.005",
    UNGUARDED,
)
KL_AT_2048 = 1.28
"""The published KL term at sequences of 2,048, in token means times `T^2`: 2,048 / 40^2."""
RED = (*PUBLISHED, "start.method=channel", "objective.temperature=1")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to a student."""

    about: str
    """One line."""
    changes: tuple[str, ...] = ()
    """Overrides of the demo's recipe; later ones win."""
    rate: float = 1.5e-3
    """Learning rate where none was picked on the development text."""
    rates: tuple[float, ...] = MUON_RATES
    """Rates to pick from."""
    base: str | None = None
    """Method whose picked rate a sweep's variant takes."""
    batch_size: int | None = None
    """Windows a step, for equal tokens in more or fewer steps; None: the teacher's entry says."""


def _adamw(about: str, *changes: str, rate: float = 1e-3, rates: tuple[float, ...] = ADAMW_RATES) -> Method:
    return Method(about=about, changes=(WITHOUT_CORRECTION, *ADAMW, *changes), rate=rate, rates=rates)


def methods() -> dict[str, Method]:
    """Return the methods of the main table, in its order."""
    return {
        "published": Method(
            about="the paper and its code: random start, T 40, raw clone errors summed, AdamW",
            changes=PUBLISHED,
            rate=1e-3,
            rates=ADAMW_RATES,
        ),
        "published-long": Method(
            about="published, its KL term weighted as it is at sequences of 2,048",
            changes=(*PUBLISHED, "objective.kl_reduction=token_mean", f"objective.kl_weight={KL_AT_2048}"),
            rate=1e-3,
            rates=ADAMW_RATES,
        ),
        "red": Method(
            about="RED: one channel selection for all projections, T 1, otherwise as published",
            changes=RED,
            rate=1e-4,
            rates=RED_RATES,
        ),
        "red-token-mean": _adamw(
            "RED's start and T 1 with the KL a mean over tokens, 1 / 255 of its weight in published",
            "start.method=channel",
            "objective.temperature=1",
            "objective.lm_weight=1",
            "objective.clone_error=raw",
            "objective.clone_reduction=sum",
            "objective.attention_output_space=teacher",
            UNGUARDED,
            rates=RED_RATES,
        ),
        "red-relative": _adamw("RED's start with the default's objective, AdamW", "start.method=channel"),
        "default": Method(
            about="the demo's recipe: calibrated start, T 1, relative clone errors, Muon; two windows a step",
            batch_size=DEFAULT_BATCH,
        ),
        "dense": Method(
            about="default, then merged MLP weights for the second half",
            changes=("phases.dense_share=0.5", "phases.dense_tensors=mlp"),
            base="default",
            batch_size=DEFAULT_BATCH,
        ),
        "origin": _adamw("no teacher: the same shape from scratch on text", "method=origin"),
        "only-kd": _adamw("plain distillation of the same shape from scratch", "method=only_kd", *LOGITS_ALONE),
        "tiny-bert": _adamw(
            "TinyBERT-style: hidden states and attention maps through a learned alignment, raw errors summed",
            "method=tiny_bert",
            "objective.lm_weight=1",
            "objective.clone_weight=1",
            "objective.clone_error=raw",
            "objective.clone_reduction=sum",
            UNGUARDED,
        ),
        "minitron": _adamw(
            "Minitron-style: width pruned by the norms' outputs, then all weights by distillation",
            "start.method=channel",
            "start.channel_score=normalised",
            *LOGITS_ALONE,
            *DENSE_FROM_THE_FIRST_STEP,
            rate=3e-4,
        ),
        "slicegpt": _adamw(
            "SliceGPT-style: width sliced by principal directions, then all weights by distillation",
            "start.method=pca",
            *LOGITS_ALONE,
            *DENSE_FROM_THE_FIRST_STEP,
            rate=3e-4,
        ),
    }


def _per_value(prefix: str, key: str, values: tuple[object, ...], *more: str) -> dict[str, tuple[str, ...]]:
    return {f"{prefix}-{value}": (f"{key}={value}", *more) for value in values}


TERMS = ("attn-q", "attn-k", "attn-v", "attn-out", "mlp-gate", "mlp-up", "mlp-out")


def default_sweeps() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return each question about the default: sweep name -> variant name -> what it changes."""
    return {
        # T^2 times the token mean keeps the gradient of the KL term, and so its weight, the same at every T
        "temperature": _per_value("temperature", "objective.temperature", (1, 2, 4, 10, 40)),
        "lm-weight": _per_value("lm-weight", "objective.lm_weight", (0, 0.1, 0.3, 1)),
        "kl-weight": _per_value("kl-weight", "objective.kl_weight", (0, 0.3, 1, 3)),
        "clone-weight": _per_value("clone-weight", "objective.clone_weight", (0, 0.05, 0.2, 0.8, 3)),
        "clone-error": {
            "clone-error-relative": (),
            "clone-error-raw": (
                "objective.clone_error=raw",
                "objective.clone_reduction=sum",
                "objective.attention_output_space=teacher",
                UNGUARDED,
            ),
        },
        "clone-terms": _per_value("without", "objective.without", ("[]", *(f"[{term}]" for term in TERMS), "[all]")),
        "term-weights": {
            f"{term}-{weight:g}": (f"objective.clone_term_weights.{term}={weight}",)
            for term in TERMS
            for weight in (0.2, 5)
        },
        "depth": _per_value("depth", "objective.clone_depth_slope", (-0.9, 0, 0.9)),
        "schedule": _per_value("schedule", "train.schedule", ("linear", "cosine", "wsd", "constant")),
        "optimizer": {
            **{f"muon-{rate:g}": ("train.optimizer=muon", f"train.learning_rate={rate}") for rate in MUON_RATES},
            **{f"adamw-{rate:g}": (*ADAMW, f"train.learning_rate={rate}") for rate in ADAMW_RATES},
        },
        # docs/log.md, 2026-11-30: whose steps stir the loss most
        "rates-by-kind": {
            "rates-alike": (),
            "rates-by-kind": tuple(
                f"train.rate_shares.{part}={share}"
                for part, share in {
                    "down_proj": 0.5,
                    "v_proj": 0.5,
                    "o_proj": 0.7,
                    "q_proj": 1.5,
                    "k_proj": 1.5,
                    "embed_tokens": 1.5,
                }.items()
            ),
        },
        "momentum": _per_value("momentum", "train.beta1", (0.8, 0.9, 0.95)),
        "kl-direction": _per_value("kl", "objective.kl_direction", ("forward", "reverse", "skewed")),
        "start": {
            **_per_value("start", "start.method", ("random", "channel", "pca"), WITHOUT_CORRECTION),
            "start-calibrated": (),
        },
        "calibration": _per_value("calibration", "start.tokens", CALIBRATION_TOKENS),
        "correction": {
            "mlp-correction": (),
            "output-correction": ("student.correction=outputs",),
            "without-correction": (WITHOUT_CORRECTION,),
        },
        "correction-passes": _per_value("passes", "start.correction_passes", (1, 2, 4, 8)),
        "basis": {
            "basis-sensitive": (WITHOUT_CORRECTION,),
            "basis-principal": (WITHOUT_CORRECTION, "start.basis=principal"),
            "basis-principal-128000": (WITHOUT_CORRECTION, "start.basis=principal", "start.tokens=128000"),
        },
        "outliers": _per_value("outliers", "start.outlier_channels", (0, 8, 16, 48)),
        "variants": {
            "untied": (),
            "tied": ("student.tie_embedding_projection=true",),
            "io": ("student.attention_projections=io", "student.ffn_projections=io"),
        },
        "dense-share": _per_value("dense-mlp", "phases.dense_share", (0.25, 0.5, 0.75, 1), "phases.dense_tensors=mlp"),
        "dense-all": _per_value("dense-all", "phases.dense_share", (0.25, 0.5, 0.75, 1), "phases.dense_tensors=all"),
        "dense-form": _per_value("dense", "phases.dense_form", ("replace", "complement"), "phases.dense_share=0.5"),
        "dense-rate": _per_value(
            "dense-rate", "phases.dense_learning_rate", (1e-4, 3e-4, 1e-3), "phases.dense_share=0.5"
        ),
    }


def published_sweeps() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the questions about the published recipe: T alone, its KL weight held where 2,048 positions put it."""
    weight = ("objective.kl_reduction=token_mean", f"objective.kl_weight={KL_AT_2048}")
    return {
        "published-temperature": _per_value(
            "published-temperature", "objective.temperature", (1, 2, 4, 10, 40), *weight
        )
    }


def baseline_forms() -> dict[str, Method]:
    """Return other forms of the baselines, each another reading of its source or with the default's optimiser."""
    known = methods()
    muon = ("train.optimizer=muon", "train.warmup_ratio=0.1")
    found = {
        f"{name}-muon": replace(
            known[name],
            about=f"{name} with Muon",
            changes=(*known[name].changes, *muon),
            rate=1.5e-3,
            rates=MUON_RATES,
        )
        for name in ("red-relative", "only-kd", "minitron", "slicegpt")
    }
    for name, changes in {
        "published-paper": ("objective.attention_output_space=student",),
        "red-long": ("objective.kl_reduction=token_mean", "objective.kl_weight=2048"),
        "only-kd-lm": ("objective.lm_weight=1",),
        "tiny-bert-relative": ("objective.clone_error=relative", "objective.clone_reduction=mean"),
        "minitron-magnitude": ("start.channel_score=magnitude",),
    }.items():
        base = max((method for method in known if name.startswith(method)), key=len)
        found[name] = replace(
            known[base], about=f"{base} with {', '.join(changes)}", changes=(*known[base].changes, *changes), base=base
        )
    return found


def sweeps() -> dict[str, dict[str, Method]]:
    """Return every sweep: name -> its variants, ready to run; a variant takes its base's picked learning rate."""
    known = methods()
    found = {"baseline-forms": baseline_forms()}
    for base, questions in (("default", default_sweeps()), ("published", published_sweeps()), ("red", {})):
        for name, variants in questions.items():
            found[name] = {
                _plain(variant): replace(
                    known[base],
                    about=f"{base} with {', '.join(changes) or 'nothing changed'}",
                    changes=(*known[base].changes, *changes),
                    base=base,
                )
                for variant, changes in variants.items()
            }
        found |= _batch_sweep(base, known[base])
    return found


def _batch_sweep(base: str, method: Method) -> dict[str, dict[str, Method]]:
    """Return the question of steps: the same tokens in more or fewer of them; `@RATE` gives the rate to each.

    Eight windows a step take up to 14 % more tokens at 60 k, since a run is a whole number of eighths.
    """
    prefix = "batch" if base == "default" else f"{base}-batch"
    about = f"{base} with {{}} windows a step"
    sizes = (1, 2, 4, 8)
    return {prefix: {f"{prefix}-{n}": replace(method, about=about.format(n), base=base, batch_size=n) for n in sizes}}


def _plain(name: str) -> str:
    """Take list brackets out of a variant's name: `without-[attn-q]` -> `without-attn-q`."""
    return name.replace("[]", "none").replace("[", "").replace("]", "")


def find_method(name: str) -> Method:
    """Return a method or a sweep's variant by name.

    Raises:
        ConfigError: There is none, with the nearest name.
    """
    known = methods()
    for variants in sweeps().values():
        known |= {variant: method for variant, method in variants.items() if variant not in known}
    if name not in known:
        near = nearest_name(name, known)
        hint = f"Did you mean {near!r}?" if near else "`--list` shows all."
        raise ConfigError(f"There is no method {name!r}. {hint}")
    return known[name]
